"""Fine-tuning changes what it says and nothing else, and stops when it is told to."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.fake import make_images, tiny_recipe, write_class_folders
from torch import Tensor

from sonobreast.errors import Diverged
from sonobreast.models.heads import build_head
from sonobreast.models.zoo import Backbone, load_backbone, tensors_of_last_stages
from sonobreast.records import Run
from sonobreast.training import module as fine_tuning
from sonobreast.training.batches import Ahead, Inputs
from sonobreast.training.fit import Fold, fit_runs, load_run, read_config, write_run
from sonobreast.training.fitted import Fitted, weighted_loss
from sonobreast.training.images import Images, network_input
from sonobreast.training.module import FineTuning, _own_copy, choose_precision, fit_network
from sonobreast.training.optimizers import build_optimizer
from sonobreast.training.speed import speed_file
from sonobreast.training.study import run_study

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


AUGMENT = {"rotation": 10, "zoom": 0.1, "shift": 0.1, "horizontal_flip": True, "brightness": 0.1, "views": 2}


@pytest.mark.parametrize("batch_norm", ["inference", "train"])
def test_float32_is_the_plain_loop(backbone: Backbone, images: Images, batch_norm: str) -> None:
    """Written out with nothing folded, fused, prefetched or kept: the same epochs, up to rounding."""
    recipe = tiny_recipe({**TUNE, "augment": AUGMENT, "model.batch_norm": batch_norm, "training.learning_rate": 0.001})
    fitted = fit_network(backbone, images, TRAIN, VALIDATION, recipe, "sgdm", 4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        plain = _own_copy(backbone, 4)
        head = build_head(plain.features, 3, recipe.head)
        order = torch.Generator().manual_seed(4)
        updater = build_optimizer("sgdm", [*plain.parameters(), *head.parameters()], recipe.training)
        for epoch in fitted.history:
            losses = []
            plain.train(batch_norm == "train")
            loader = torch.utils.data.DataLoader(TRAIN.tolist(), batch_size=8, shuffle=True, generator=order)  # type: ignore[arg-type, var-annotated]
            for index in loader:
                inputs = network_input(images, index.numpy(), recipe, plain, (epoch.epoch - 1) % 2, seed=4)
                loss = weighted_loss(head(plain(inputs)), images.label[index], torch.ones(3))
                updater.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                updater.step()
                losses += [float(loss.detach())] * len(index)
            plain.eval()
            with torch.no_grad():
                logits = head(plain(network_input(images, VALIDATION, recipe, plain, None)))
                held = torch.nn.functional.cross_entropy(logits, images.label[VALIDATION])
            # Rounding grows from step to step, and faster where norms follow the batch.
            near = 2e-5 if epoch.epoch == 1 else 1e-3
            assert epoch.train_loss == pytest.approx(np.mean(losses), rel=near)
            assert epoch.validation_loss == pytest.approx(float(held), rel=near)


def test_inputs_are_those_of_the_frozen_path(backbone: Backbone, images: Images) -> None:
    recipe = tiny_recipe({**TUNE, "augment": AUGMENT})
    inputs = Inputs(images, recipe, backbone, 5, torch.device("cpu"))
    for view in (None, 0, 3):
        wanted = network_input(images, TRAIN, recipe, backbone, view, seed=5)
        torch.testing.assert_close(inputs(TRAIN, view), wanted, rtol=0, atol=1e-6)
        alone = torch.cat([inputs(TRAIN[[i]], view) for i in range(len(TRAIN))])
        torch.testing.assert_close(alone, inputs(TRAIN, view), rtol=0, atol=1e-6)
    inputs.pixels = torch.from_numpy(images.pixels)  # as on a GPU
    torch.testing.assert_close(inputs(TRAIN, 3), wanted, rtol=0, atol=1e-6)


def batches(n: int, seed: int) -> torch.utils.data.DataLoader[Any]:
    generator = torch.Generator().manual_seed(seed)
    return torch.utils.data.DataLoader(torch.arange(n), batch_size=3, shuffle=True, generator=generator)  # type: ignore[arg-type]


def test_one_ahead_gives_the_same_batches_in_the_same_order() -> None:
    plain = batches(11, 2)
    ahead = Ahead(batches(11, 2), lambda index: (torch.from_numpy(index) * 10, None))
    threads = torch.get_num_threads()
    for _ in range(3):
        wanted = [b.tolist() for b in plain]
        found = list(ahead)
        assert [index.tolist() for index, *_ in found] == wanted
        assert all(torch.equal(inputs, 10 * index) for index, inputs, _ in found)
    assert len(ahead) == 4
    assert torch.get_num_threads() == threads


def test_an_error_in_the_second_thread_arrives() -> None:
    def make(index: Any) -> tuple[Tensor, None]:
        if 7 in index:
            raise ValueError("image 7")
        return torch.from_numpy(index), None

    given = iter(Ahead(batches(11, 2), make))
    for _ in range([7 in b for b in batches(11, 2)].index(True)):
        next(given)
    with pytest.raises(ValueError, match="image 7"):
        next(given)


def test_an_error_of_augmentation_ends_the_fit(
    backbone: Backbone, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Inputs.__call__

    def broken(self: Inputs, index: Any, view: int | None) -> Tensor:
        if view is not None:
            raise ValueError("no view")
        return original(self, index, view)

    monkeypatch.setattr(Inputs, "__call__", broken)
    with pytest.raises(ValueError, match="no view"):
        tune(backbone, images)


def test_bfloat16_learns_and_its_report_is_float32(backbone: Backbone, images: Images, tmp_path: Path) -> None:
    recipe = tiny_recipe({**TUNE, "training.epochs": 8, "model.precision": "bfloat16"})
    one, two = (fit_network(backbone, images, TRAIN, VALIDATION, recipe, "adam", 0) for _ in range(2))
    assert one.precision == "bfloat16"
    assert one.history == two.history
    assert all(torch.equal(one.state[k], two.state[k]) for k in one.state)
    assert all(v.dtype in (torch.float32, torch.int64) for v in one.state.values())
    assert one.history[-1].train_loss < 0.5 * one.history[0].train_loss
    exact = tune(backbone, images, training__epochs=1)
    assert one.history[0] != exact.history[0], "trained in float32 after all"
    from safetensors.torch import save_file

    (tmp_path / "backbones").mkdir()
    save_file({k: v.contiguous() for k, v in backbone.used_tensors().items()}, tmp_path / "backbones" / "b.safetensors")
    run = Run(architecture="test_resnet", optimizer="adam", repeat=0, fold=0, seed=0)
    fold = Fold(TRAIN, VALIDATION[:3], VALIDATION[3:], images.names)
    folder = tmp_path / "runs" / run.id
    names = {"backbone_file": "backbones/b.safetensors", "data_fingerprint": "x"}
    write_run(folder, one, backbone, images, fold, recipe, run, **names)
    assert read_config(folder)["network"]["precision"] == "bfloat16"
    network, _, _ = load_run(folder)
    with torch.inference_mode():
        inputs = network_input(images, np.arange(18), recipe, backbone, None)
        again = network(inputs).softmax(dim=1).numpy()
    np.testing.assert_allclose(one.probability, again, atol=1e-5)


@pytest.fixture
def bfloat16_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A machine on which bfloat16 is said to be the faster one; the calls that timed it are returned."""
    timed: list[str] = []

    def measure(key: str, ways: dict[str, Any]) -> str:
        timed.append(key)
        for step in ways.values():
            step()
        return "bfloat16"

    monkeypatch.setenv("SONOBREAST_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(fine_tuning, "has_bfloat16", lambda: True)
    monkeypatch.setattr(fine_tuning, "fastest", measure)
    return timed


def test_the_choice_is_made_for_this_very_work(
    backbone: Backbone, images: Images, bfloat16_machine: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.random.get_rng_state()
    for changes in ({}, {"training.batch_size": 4}, {"model.trainable": 1}, {"model.batch_norm": "train"}):
        recipe = tiny_recipe({**TUNE, "model.precision": "auto", **changes})
        assert choose_precision(backbone, images, TRAIN, recipe) == "bfloat16"
    assert len(set(bfloat16_machine)) == 4
    assert torch.equal(before, torch.random.get_rng_state())
    for wanted in ("float32", "bfloat16"):
        recipe = tiny_recipe({**TUNE, "model.precision": wanted})
        assert choose_precision(backbone, images, TRAIN, recipe) == wanted
    monkeypatch.setattr(fine_tuning, "has_bfloat16", lambda: False)
    assert choose_precision(backbone, images, TRAIN, tiny_recipe({**TUNE, "model.precision": "auto"})) == "float32"
    assert len(bfloat16_machine) == 4


def test_the_choice_is_kept_in_the_home(
    backbone: Backbone, images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SONOBREAST_HOME", str(tmp_path))
    monkeypatch.setattr(fine_tuning, "has_bfloat16", lambda: True)
    recipe = tiny_recipe({**TUNE, "model.precision": "auto"})
    first = choose_precision(backbone, images, TRAIN, recipe)
    content = json.loads(speed_file().read_text())
    (row,) = content["measured"].values()
    assert row["fastest"] == first
    assert set(row["seconds"]) == {"float32", "bfloat16"}
    row["fastest"] = "float32" if first == "bfloat16" else "bfloat16"
    speed_file().write_text(json.dumps(content))
    assert choose_precision(backbone, images, TRAIN, recipe) == row["fastest"]


def test_a_study_goes_on_in_the_precision_of_its_runs(
    tiny_weights: Path, tmp_path: Path, bfloat16_machine: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    data = write_class_folders(tmp_path / "data", seed=3)
    recipe = tiny_recipe({**TUNE, "model.precision": "auto", "training.seeds": [0, 1], "training.epochs": 1})
    out = tmp_path / "out"
    run_study(recipe, data, str(tiny_weights), out, images=False)
    folders = sorted((out / "runs").iterdir())
    assert [read_config(f)["network"]["precision"] for f in folders] == ["bfloat16"] * 2
    assert len(bfloat16_machine) == 1
    kept = (folders[1] / "predictions.csv").read_bytes()
    shutil.rmtree(folders[1])
    monkeypatch.setattr(fine_tuning, "fastest", lambda key, ways: "float32")  # another machine, another day
    outcome = run_study(recipe, data, str(tiny_weights), out, images=False)
    assert (outcome.finished, outcome.reused) == (2, 1)
    assert read_config(folders[1])["network"]["precision"] == "bfloat16"
    assert (folders[1] / "predictions.csv").read_bytes() == kept


def test_all_runs_of_a_call_have_one_precision(backbone: Backbone, images: Images, bfloat16_machine: list[str]) -> None:
    recipe = tiny_recipe({**TUNE, "model.precision": "auto", "training.epochs": 1})
    fold = Fold(TRAIN, VALIDATION[:3], VALIDATION[3:], images.names)
    runs = [(Run(architecture="a", optimizer="adam", repeat=0, fold=0, seed=s), fold) for s in (0, 1)]
    found = [r for _, r in fit_runs(backbone, None, images, runs, recipe)]
    assert [r.precision for r in found if isinstance(r, Fitted)] == ["bfloat16"] * 2
    assert len(bfloat16_machine) == 1
