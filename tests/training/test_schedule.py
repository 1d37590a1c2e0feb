"""Rates, decay, smoothing and clipping are what they say, and what cannot be done is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.fake import make_images, tiny_recipe, write_class_folders

from sonobreast.config import Training
from sonobreast.errors import SonobreastError
from sonobreast.models.zoo import Backbone, load_backbone
from sonobreast.training.fitted import weighted_loss
from sonobreast.training.frozen import Bank, fit_head
from sonobreast.training.head_settings import check_head_settings
from sonobreast.training.images import Images
from sonobreast.training.many_heads import Job, fit_heads
from sonobreast.training.module import FineTuning, fit_network
from sonobreast.training.optimizers import build_optimizer, rate_factor
from sonobreast.training.study import run_study

TRAIN, VALIDATION = np.arange(12), np.arange(12, 18)
TUNE = {"model.backbone": "finetune", "augment": {}, "training.early_stopping": None, "head.dropout": 0.0}


@pytest.fixture(scope="module")
def images() -> Images:
    return make_images(18)


@pytest.fixture(scope="module")
def backbone(tiny_weights: Path) -> Backbone:
    return load_backbone("test_resnet", str(tiny_weights), cut_uncovered=False, image_size=64)


def test_warm_up_and_cosine_by_hand() -> None:
    settings = Training(schedule="cosine", warmup=2, epochs=6)
    found = [rate_factor(k, 2, settings) for k in range(12)]
    assert found[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert found[8] == pytest.approx(0.5)  # half-way between the end of warm-up and the end
    assert found[6] == pytest.approx(0.5 * (1 + 0.5**0.5))
    assert found[4:] == sorted(found[4:], reverse=True)
    assert rate_factor(12, 2, settings) == 0.0
    assert [rate_factor(k, 2, Training(warmup=1.0)) for k in range(4)] == [0.5, 1.0, 1.0, 1.0]
    assert rate_factor(0, 2, Training(warmup=0.1)) == 1.0, "less than one step"


def rates_of(backbone: Backbone, images: Images, monkeypatch: pytest.MonkeyPatch, **training: object) -> list[float]:
    seen: list[float] = []
    original = FineTuning.training_step

    def step(self: FineTuning, batch: object, batch_idx: int) -> torch.Tensor:
        seen.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        return original(self, batch, batch_idx)  # type: ignore[arg-type]

    monkeypatch.setattr(FineTuning, "training_step", step)
    recipe = tiny_recipe({**TUNE, **{f"training.{k}": v for k, v in training.items()}})
    fit_network(backbone, images, TRAIN, VALIDATION, recipe, "sgd", 0)
    return seen


def test_every_step_has_its_rate(backbone: Backbone, images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Training(schedule="cosine", warmup=1.5, epochs=3)
    found = rates_of(backbone, images, monkeypatch, schedule="cosine", warmup=1.5)  # 12 images, batches of 8
    np.testing.assert_allclose(found, [0.003 * rate_factor(k, 2, settings) for k in range(6)], rtol=1e-9)


def test_without_a_schedule_the_rate_is_constant(
    backbone: Backbone, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert rates_of(backbone, images, monkeypatch) == [0.003] * 6


@pytest.mark.parametrize("name", ["adamw", "sgd", "sgdm"])
def test_matrices_decay_and_vectors_do_not(name: str) -> None:
    start = {"weight": torch.full((2, 3), 2.0), "kernel": torch.full((1, 1, 3, 3), -1.0), "bias": torch.full((3,), 5.0)}
    after = {}
    for decay in (0.0, 0.1):
        parameters = {k: torch.nn.Parameter(v.clone()) for k, v in start.items()}
        optimizer = build_optimizer(
            name, parameters.values(), Training(optimizers=(name,), learning_rate=0.5, weight_decay=decay)
        )
        for p in parameters.values():
            p.grad = torch.full_like(p, 0.25)
        optimizer.step()
        after[decay] = {k: p.detach() for k, p in parameters.items()}
    for key in ("weight", "kernel"):  # p -= rate decay p
        torch.testing.assert_close(after[0.1][key], after[0.0][key] - 0.5 * 0.1 * start[key])
    assert torch.equal(after[0.1]["bias"], after[0.0]["bias"])


def test_decay_left_out_is_the_optimizers_own() -> None:
    one = torch.nn.Parameter(torch.ones(3))
    assert build_optimizer("adamw", [one], Training()).param_groups[0]["weight_decay"] == 0.01
    assert len(build_optimizer("sgdm", [one], Training()).param_groups) == 1


@pytest.mark.parametrize("name", ["adam", "rmsprop", "nadam"])
def test_decay_is_refused_where_it_is_not_written(name: str) -> None:
    with pytest.raises(SonobreastError, match=f"weight_decay is for adamw, sgd, sgdm, not for {name}"):
        tiny_recipe({"training.optimizers": [name], "training.weight_decay": 0.01})
    with pytest.raises(SonobreastError, match="weight_decay"):
        build_optimizer(name, [torch.nn.Parameter(torch.ones(2, 2))], Training(optimizers=("sgd",), weight_decay=0.1))


def test_warm_up_of_the_whole_training_is_refused() -> None:
    with pytest.raises(SonobreastError, match="warmup must be less than epochs"):
        tiny_recipe({"training.warmup": 3})


def test_smoothed_loss_is_the_written_out_one() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.1, 0.2, 0.3]])
    label, weight = torch.tensor([0, 2]), torch.tensor([0.5, 2.0, 1.25])
    target = 0.9 * torch.eye(3)[label] + 0.1 / 3
    by_hand = (-(target * logits.log_softmax(1)).sum(1) * weight[label]).mean()
    torch.testing.assert_close(weighted_loss(logits, label, weight, 0.1), by_hand)


def test_smoothing_is_of_training_alone(backbone: Backbone, images: Images) -> None:
    """With a rate of almost nothing the validation loss shows it."""
    fitted = {}
    for smoothing in (0.0, 0.5):
        changes = {"training.label_smoothing": smoothing, "training.learning_rate": 1e-12, "training.epochs": 1}
        fitted[smoothing] = fit_network(
            backbone, images, TRAIN, VALIDATION, tiny_recipe({**TUNE, **changes}), "sgd", 0
        ).history[0]
    assert fitted[0.5].validation_loss == pytest.approx(fitted[0.0].validation_loss, rel=1e-5)
    assert fitted[0.5].train_loss != pytest.approx(fitted[0.0].train_loss, rel=1e-3)


def test_a_clipped_step_has_the_length_it_may_have(backbone: Backbone, images: Images) -> None:
    changes = {"training.gradient_clip": 0.01, "training.learning_rate": 1.0, "training.epochs": 1}
    changes |= {"training.batch_size": 12, "model.batch_norm": "inference"}
    fitted = fit_network(backbone, images, TRAIN, VALIDATION, tiny_recipe({**TUNE, **changes}), "sgd", 0)
    before = backbone.network.state_dict()
    tuned = {k.removeprefix("backbone."): v for k, v in fitted.state.items() if k.startswith("backbone.")}
    moved = sum(float((v - before[k]).double().square().sum()) for k, v in tuned.items()) ** 0.5
    assert 0.001 < moved <= 0.01 * (1 + 1e-3)


HEAD_ALONE = [
    ("training.schedule", "cosine"),
    ("training.warmup", 1),
    ("training.label_smoothing", 0.1),
    ("training.gradient_clip", 1.0),
]


@pytest.mark.parametrize(("key", "value"), HEAD_ALONE)
def test_heads_on_stored_features_refuse(key: str, value: object, images: Images) -> None:
    recipe = tiny_recipe({key: value})
    features = torch.zeros(18, 4)
    bank = Bank(features, features[None])
    with pytest.raises(SonobreastError, match=key):
        next(iter(fit_heads(bank, images, [Job(TRAIN, VALIDATION, "adam", 0)], recipe)))
    with pytest.raises(SonobreastError, match=key):
        fit_head(bank, images, TRAIN, VALIDATION, recipe, "adam", 0)


def test_every_refused_setting_is_named() -> None:
    recipe = tiny_recipe({**dict(HEAD_ALONE), "training.optimizers": ["sgdm"], "training.weight_decay": 0.1})
    with pytest.raises(SonobreastError) as caught:
        check_head_settings(recipe)
    assert all(key in caught.value.what for key, _ in HEAD_ALONE)
    assert "training.weight_decay" in caught.value.what


def test_a_study_says_so_before_it_reads_an_image(tmp_path: Path, tiny_weights: Path) -> None:
    data = write_class_folders(tmp_path / "data")
    with pytest.raises(SonobreastError, match=r"training\.schedule: not for heads"):
        run_study(tiny_recipe({"training.schedule": "cosine"}), data, str(tiny_weights), tmp_path / "out")
    assert not (tmp_path / "out").exists()
