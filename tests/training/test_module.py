"""Fine-tuning changes what it says and nothing else, and stops when it is told to."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.fake import make_images, tiny_recipe

from sonobreast.errors import Diverged
from sonobreast.models.zoo import Backbone, load_backbone, tensors_of_last_stages
from sonobreast.training.frozen import Fitted, Images
from sonobreast.training.module import FineTuning, _own_copy, fit_network

TRAIN, VALIDATION = np.arange(12), np.arange(12, 18)
TUNE = {"model.backbone": "finetune", "augment": {}, "training.early_stopping": None, "head.dropout": 0.0}


@pytest.fixture(scope="module")
def images() -> Images:
    return make_images(18)


@pytest.fixture(scope="module")
def backbone(tiny_weights: Path) -> Backbone:
    return load_backbone("test_resnet", str(tiny_weights), cut_uncovered=False, image_size=64)


@pytest.fixture(scope="module")
def partial(tiny_weights: Path) -> Backbone:
    return load_backbone("test_resnet", str(tiny_weights / "partial"), cut_uncovered=False, image_size=64)


def tune(backbone: Backbone, images: Images, seed: int = 0, optimizer: str = "adam", **changes: object) -> Fitted:
    recipe = tiny_recipe({**TUNE, **{k.replace("__", "."): v for k, v in changes.items()}})
    return fit_network(backbone, images, TRAIN, VALIDATION, recipe, optimizer, seed)


def changed(backbone: Backbone, fitted: Fitted) -> set[str]:
    before = backbone.network.state_dict()
    tuned = {k.removeprefix("backbone."): v for k, v in fitted.state.items() if k.startswith("backbone.")}
    return {k for k, v in tuned.items() if not torch.equal(v, before[k])}


def test_overfits_twelve_images(backbone: Backbone, images: Images) -> None:
    fitted = tune(backbone, images, training__epochs=25, training__learning_rate=0.003)
    assert fitted.history[-1].train_loss < 0.1 * fitted.history[0].train_loss
    assert fitted.history[-1].train_accuracy == 1.0
    assert fitted.probability.shape == (18, 3)


def test_batch_norm_statistics_stay_in_inference_mode(backbone: Backbone, images: Images) -> None:
    before = {k: v.clone() for k, v in backbone.network.state_dict().items()}
    kept = changed(backbone, tune(backbone, images, model__batch_norm="inference"))
    assert not any("running" in k or "num_batches" in k for k in kept)
    trained = changed(backbone, tune(backbone, images, model__batch_norm="train"))
    assert any("running_mean" in k for k in trained)
    parameters = {k for k, _ in backbone.network.named_parameters()}
    assert kept == parameters
    after = backbone.network.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before), "the given backbone is copied, not changed"


@pytest.mark.parametrize("n", [1, 2])
def test_last_stages(backbone: Backbone, images: Images, n: int) -> None:
    fitted = tune(backbone, images, model__trainable=n)
    allowed = set(tensors_of_last_stages(backbone.network, n))
    parameters = {k for k, _ in backbone.network.named_parameters()}
    assert {k.removeprefix("backbone.") for k in fitted.state if k.startswith("backbone.")} == allowed
    assert changed(backbone, fitted) == allowed & parameters


@pytest.mark.parametrize("batch_norm", ["inference", "train"])
def test_uncovered_trains_exactly_the_uncovered(partial: Backbone, images: Images, batch_norm: str) -> None:
    fitted = tune(partial, images, model__backbone="frozen", model__uncovered="train", model__batch_norm=batch_norm)
    saved = {k.removeprefix("backbone.") for k in fitted.state if k.startswith("backbone.")}
    assert saved == set(partial.coverage.missing)
    assert changed(partial, fitted) == set(partial.coverage.missing)


def test_the_rest_of_the_network_stays_bit_for_bit(partial: Backbone, images: Images) -> None:
    """All of the network after training, not only what is saved: probabilities come from the whole."""
    networks: list[FineTuning] = []
    original = FineTuning.on_train_epoch_start

    def remember(self: FineTuning) -> None:
        networks.append(self)
        original(self)

    before = {k: v.clone() for k, v in partial.network.state_dict().items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FineTuning, "on_train_epoch_start", remember)
        tune(partial, images, model__backbone="frozen", model__uncovered="train", model__batch_norm="train")
    after = networks[-1].backbone.network.state_dict()
    missing = set(partial.coverage.missing)
    covered = [k for k in before if k not in missing and not k.startswith("layer4.")]
    assert len(covered) > 50
    assert all(torch.equal(before[k], after[k]) for k in covered)


def test_same_seed_same_network(backbone: Backbone, images: Images) -> None:
    one, two, other = (tune(backbone, images, seed=s, head__dropout=0.3) for s in (0, 0, 1))
    assert one.history == two.history
    assert all(torch.equal(one.state[k], two.state[k]) for k in one.state)
    assert one.history != other.history


def test_best_epoch_is_kept_and_stopping_stops(backbone: Backbone, images: Images) -> None:
    fitted = tune(
        backbone,
        images,
        training__epochs=40,
        training__learning_rate=0.02,
        training__early_stopping={"patience": 3},
    )
    assert len(fitted.history) < 40
    assert len(fitted.history) == fitted.best_epoch + 3
    p = fitted.probability[VALIDATION, images.label[VALIDATION].numpy()].clip(1e-12)
    assert -np.log(p).mean() == pytest.approx(fitted.history[fitted.best_epoch - 1].validation_loss, rel=1e-2)


def test_test_labels_are_not_looked_at(backbone: Backbone, images: Images) -> None:
    from dataclasses import replace

    recipe = tiny_recipe(TUNE)
    label = images.label.clone()
    label[15:] = (label[15:] + 1) % 3
    one, two = (
        fit_network(backbone, i, TRAIN, np.arange(12, 15), recipe, "adam", 0)
        for i in (images, replace(images, label=label))
    )
    assert all(torch.equal(one.state[k], two.state[k]) for k in one.state)


def test_loss_that_becomes_nan(backbone: Backbone, images: Images) -> None:
    with pytest.raises(Diverged):
        tune(backbone, images, optimizer="sgdm", training__learning_rate=1e30)


def test_interrupt_really_stops(backbone: Backbone, images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning would end the process with status 1 and leave Ctrl-C without effect."""

    def interrupt(self: FineTuning, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        raise KeyboardInterrupt

    monkeypatch.setattr(FineTuning, "training_step", interrupt)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        tune(backbone, images)
    assert signal.getsignal(signal.SIGINT) is handler


def test_progress_counts_epochs(backbone: Backbone, images: Images) -> None:
    steps: list[int] = []
    fit_network(backbone, images, TRAIN, VALIDATION, tiny_recipe(TUNE), "adam", 0, steps.append)
    assert steps == [1, 1, 1]


def test_nothing_is_left_in_the_working_folder(
    backbone: Backbone, images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tune(backbone, images, training__epochs=1)
    assert list(tmp_path.iterdir()) == []


def test_what_is_drawn_afresh_follows_the_seed() -> None:
    """Two calls give the same network; two seeds give two."""
    first, second = load_backbone("test_resnet", "none"), load_backbone("test_resnet", "none")
    assert first.sha256() == second.sha256()
    assert _own_copy(first, 3).sha256() == _own_copy(second, 3).sha256()
    assert _own_copy(first, 3).sha256() != _own_copy(first, 4).sha256()
