"""Heads on stored features are the heads of a plain loop over the images."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.fake import make_images, tiny_recipe
from torch.nn import functional

from sonobreast.config import EarlyStopping, Recipe
from sonobreast.errors import Diverged, SonobreastError
from sonobreast.models.forward import frozen_forward
from sonobreast.models.heads import Standardise, build_head
from sonobreast.models.zoo import Backbone, load_backbone
from sonobreast.training import frozen
from sonobreast.training.augment import draw_views, warp
from sonobreast.training.fitted import Epoch, Watch
from sonobreast.training.frozen import cache_key, compute_bank, fit_head
from sonobreast.training.images import Images
from sonobreast.training.optimizers import build_optimizer

N = 18
TRAIN, VALIDATION, TEST = np.arange(0, 10), np.arange(10, 14), np.arange(14, N)


@pytest.fixture(scope="module")
def images() -> Images:
    return make_images(N)


@pytest.fixture(scope="module")
def whole(tiny_weights: Path) -> Backbone:
    return load_backbone("test_resnet", str(tiny_weights), image_size=64)


@pytest.fixture(scope="module")
def cut(tiny_weights: Path) -> Backbone:
    return load_backbone("test_resnet", str(tiny_weights / "partial"), image_size=64)


@dataclass
class Plain:
    """What the plain loop leaves."""

    state: dict[str, torch.Tensor]
    history: list[tuple[float, float, float, float]]
    best_epoch: int


def plain_loop(backbone: Backbone, images: Images, recipe: Recipe, optimizer: str, seed: int) -> Plain:
    """Every batch of every epoch from the images: augment, normalise, backbone, head. Nothing is kept."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (backbone.mean, backbone.std))

    def features(index: np.ndarray, view: int | None) -> torch.Tensor:
        x = torch.from_numpy(images.pixels[index]).permute(0, 3, 1, 2).float() / 255.0
        if view is not None:
            x = warp(x, draw_views([images.names[i] for i in index], view, 0, recipe.augment), recipe.augment)
        with torch.no_grad():
            return folded((x - mean) / std)

    # With the norms folded as the bank has them: that changes features in the sixth digit, and Adam's first steps go by
    # the sign. `tests/models/test_forward.py` holds folded against plain.
    folded = frozen_forward(backbone, torch.zeros(2, 3, 64, 64))
    torch.manual_seed(seed)
    head = build_head(backbone.features, 3, recipe.head, standardise=backbone.cut is not None)
    order = torch.Generator().manual_seed(seed)
    updater = build_optimizer(optimizer, head.parameters(), recipe.training)
    if backbone.cut is not None:
        head[0].measure(features(TRAIN, None))
    count = torch.bincount(images.label[TRAIN], minlength=3)
    weight = len(TRAIN) / (3.0 * count)
    history, best, best_loss, best_epoch, waited = [], {}, float("inf"), 0, 0
    for epoch in range(recipe.training.epochs):
        head.train()
        losses, hits = 0.0, 0
        for batch in torch.randperm(len(TRAIN), generator=order).split(recipe.training.batch_size):
            index = TRAIN[batch.numpy()]
            logits = head(features(index, epoch % recipe.augment.views))
            label = images.label[index]
            loss = (functional.cross_entropy(logits, label, reduction="none") * weight[label]).sum() / len(batch)
            updater.zero_grad()
            loss.backward()
            updater.step()
            losses += loss.item() * len(batch)
            hits += (logits.argmax(1) == label).sum().item()
        head.eval()
        with torch.no_grad():
            logits = head(features(VALIDATION, None))
        label = images.label[VALIDATION]
        value = functional.cross_entropy(logits, label).item()
        right = (logits.argmax(1) == label).float().mean().item()
        history.append((losses / len(TRAIN), hits / len(TRAIN), value, right))
        waited = 0 if value < best_loss else waited + 1
        if value < best_loss:
            best, best_loss, best_epoch = copy.deepcopy(head.state_dict()), value, epoch + 1
        if recipe.training.early_stopping is not None and waited >= recipe.training.early_stopping.patience:
            break
    return Plain(best, history, best_epoch)


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop", "sgdm"])
@pytest.mark.parametrize("views", [2, 6])
@pytest.mark.parametrize("kind", ["whole", "cut"])
def test_equals_a_plain_loop_over_the_images(
    optimizer: str, views: int, kind: str, images: Images, request: pytest.FixtureRequest
) -> None:
    backbone: Backbone = request.getfixturevalue(kind)
    recipe = tiny_recipe(
        {
            "augment.views": views,
            "training.epochs": 6,
            "training.batch_size": 4,
            "training.learning_rate": 1e-3,
            "training.early_stopping": {"patience": 3},
        }
    )
    fitted = fit_head(compute_bank(backbone, images, recipe), images, TRAIN, VALIDATION, recipe, optimizer, seed=3)
    with torch.random.fork_rng(devices=[]):
        plain = plain_loop(backbone, images, recipe, optimizer, seed=3)
    assert fitted.best_epoch == plain.best_epoch
    found = [(e.train_loss, e.train_accuracy, e.validation_loss, e.validation_accuracy) for e in fitted.history]
    np.testing.assert_allclose(found, plain.history, atol=2e-5)
    assert {k.removeprefix("head.") for k in fitted.state} == set(plain.state)
    for key, value in plain.state.items():
        torch.testing.assert_close(fitted.state[f"head.{key}"], value, atol=1e-6, rtol=1e-5, msg=key)


def test_probabilities_are_those_of_the_best_epoch(whole: Backbone, images: Images) -> None:
    recipe = tiny_recipe({"training.epochs": 8, "training.learning_rate": 0.05})
    bank = compute_bank(whole, images, recipe)
    fitted = fit_head(bank, images, TRAIN, VALIDATION, recipe, "adam", seed=0)
    best = fitted.history[fitted.best_epoch - 1]
    assert best.validation_loss == min(e.validation_loss for e in fitted.history)
    p = fitted.probability[VALIDATION, images.label[VALIDATION].numpy()]
    assert -np.log(p).mean() == pytest.approx(best.validation_loss, rel=1e-4)
    np.testing.assert_allclose(fitted.probability.sum(1), 1.0, atol=1e-6)


def test_it_learns(whole: Backbone) -> None:
    many = make_images(60)
    recipe = tiny_recipe({"training.epochs": 40, "training.learning_rate": 0.01, "training.early_stopping": None})
    bank = compute_bank(whole, many, recipe)
    fitted = fit_head(bank, many, np.arange(36), np.arange(36, 48), recipe, "adam", seed=0)
    right = fitted.probability[48:].argmax(1) == many.label[48:].numpy()
    assert right.mean() > 0.6


def test_same_seed_same_head_other_seed_other_head(whole: Backbone, images: Images) -> None:
    recipe = tiny_recipe()
    bank = compute_bank(whole, images, recipe)
    torch.manual_seed(1)
    one = fit_head(bank, images, TRAIN, VALIDATION, recipe, "adam", seed=0)
    state = torch.random.get_rng_state()
    two = fit_head(bank, images, TRAIN, VALIDATION, recipe, "adam", seed=0)
    assert torch.equal(torch.random.get_rng_state(), state), "the caller's random state is not touched"
    other = fit_head(bank, images, TRAIN, VALIDATION, recipe, "adam", seed=1)
    assert all(torch.equal(one.state[k], two.state[k]) for k in one.state)
    assert not all(torch.equal(one.state[k], other.state[k]) for k in one.state)


@pytest.mark.parametrize("kind", ["whole", "cut"])
def test_other_subsets_never_influence_training(kind: str, images: Images, request: pytest.FixtureRequest) -> None:
    """Neither labels nor pixels of test images reach the weights; labels of validation images only choose the epoch."""
    backbone: Backbone = request.getfixturevalue(kind)
    recipe = tiny_recipe({"training.early_stopping": None})
    one = fit_head(compute_bank(backbone, images, recipe), images, TRAIN, VALIDATION, recipe, "adam", seed=0)
    label, pixels = images.label.clone(), images.pixels.copy()
    label[TEST] = (label[TEST] + 1) % 3
    pixels[TEST] = 255 - pixels[TEST]
    changed = replace(images, label=label, pixels=pixels)
    two = fit_head(compute_bank(backbone, changed, recipe), changed, TRAIN, VALIDATION, recipe, "adam", seed=0)
    assert all(torch.equal(one.state[k], two.state[k]) for k in one.state)
    assert one.history == two.history
    label[VALIDATION] = (label[VALIDATION] + 1) % 3
    changed = replace(images, label=label)
    three = fit_head(compute_bank(backbone, changed, recipe), changed, TRAIN, VALIDATION, recipe, "adam", seed=0)
    assert [e.train_loss for e in three.history] == [e.train_loss for e in one.history]
    assert [e.validation_loss for e in three.history] != [e.validation_loss for e in one.history]


def test_statistics_of_a_cut_network_come_from_training_images(cut: Backbone, images: Images) -> None:
    recipe = tiny_recipe()
    bank = compute_bank(cut, images, recipe)
    fitted = fit_head(bank, images, TRAIN, VALIDATION, recipe, "adam", seed=0)
    torch.testing.assert_close(fitted.state["head.0.mean"], bank.clean[TRAIN].mean(0))
    plain = tiny_recipe({"model.cut_norm": "none"})
    without = fit_head(compute_bank(cut, images, plain), images, TRAIN, VALIDATION, plain, "adam", seed=0)
    assert "head.0.mean" not in without.state
    assert isinstance(build_head(3, 2, recipe.head, standardise=True)[0], Standardise)


def test_early_stopping_ends_and_counts(whole: Backbone, images: Images) -> None:
    recipe = tiny_recipe(
        {"training.epochs": 200, "training.learning_rate": 0.3, "training.early_stopping": {"patience": 4}}
    )
    steps: list[int] = []
    bank = compute_bank(whole, images, recipe)
    fitted = fit_head(bank, images, TRAIN, VALIDATION, recipe, "adam", seed=0, progress=steps.append)
    assert len(fitted.history) < 200
    assert len(fitted.history) == fitted.best_epoch + 4
    assert steps == [1] * len(fitted.history)
    assert [e.epoch for e in fitted.history] == list(range(1, len(steps) + 1))


@pytest.mark.parametrize(
    ("monitor", "min_delta", "values", "best", "stops"),
    [
        ("validation_loss", 0.0, [3, 2, 2, 2, 1], 2, 4),
        ("validation_loss", 0.5, [3, 2.8, 2.6, 1, 1], 3, 3),
        ("validation_accuracy", 0.0, [0.1, 0.5, 0.5, 0.4, 0.9], 2, 4),
        ("validation_accuracy", 0.0, [0.1, 0.2, 0.3, 0.4, 0.9], 5, None),
    ],
)
def test_watch_stops_as_keras_does(
    monitor: str, min_delta: float, values: list[float], best: int, stops: int | None
) -> None:
    watch = Watch(EarlyStopping(monitor=monitor, patience=2, min_delta=min_delta))
    stopped = None
    for epoch, value in enumerate(values, start=1):
        row = {"validation_loss": 1.0, "validation_accuracy": 0.5, monitor: value}
        watch.see(Epoch(epoch=epoch, train_loss=1.0, train_accuracy=0.5, **row))
        if watch.over:
            stopped = epoch
            break
    assert (watch.best_epoch, stopped) == (best, stops)


# Failures


def test_loss_that_becomes_nan(whole: Backbone, images: Images) -> None:
    recipe = tiny_recipe({"training.learning_rate": 1e30, "training.epochs": 10})
    with pytest.raises(Diverged) as caught:
        fit_head(compute_bank(whole, images, recipe), images, TRAIN, VALIDATION, recipe, "sgdm", seed=0)
    assert "learning_rate" in caught.value.remedy


def test_feature_that_is_no_number_names_the_image(whole: Backbone, images: Images) -> None:
    class Spoiled(torch.nn.Module):
        features = whole.features
        mean, std, cut, network = whole.mean, whole.std, None, whole.network

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = whole(x)
            bright = x.mean((1, 2, 3)) > 2.0
            return torch.where(bright[:, None], torch.nan, out)

    pixels = images.pixels.copy()
    pixels[7] = 255
    with pytest.raises(SonobreastError, match="1 image") as caught:
        compute_bank(Spoiled(), replace(images, pixels=pixels), tiny_recipe())  # type: ignore[arg-type]
    assert caught.value.file == images.names[7]


# The cache


def count_images(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    seen: list[int] = []
    original = frozen.network_input

    def counted(images: Images, index: np.ndarray, *rest: object, **options: object) -> torch.Tensor:
        seen.append(len(index))
        return original(images, index, *rest, **options)

    monkeypatch.setattr(frozen, "network_input", counted)
    return seen


def test_finished_views_are_used_again(
    whole: Backbone, images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe({"augment.views": 3})
    fresh = compute_bank(whole, images, recipe)
    first = compute_bank(whole, images, recipe, tmp_path)
    seen = count_images(monkeypatch)
    steps: list[int] = []
    again = compute_bank(whole, images, recipe, tmp_path, steps.append)
    assert seen == []
    assert sum(steps) == 4 * N
    for bank in (first, again):
        assert torch.equal(bank.clean, fresh.clean)
        assert torch.equal(bank.views, fresh.views)


@pytest.mark.parametrize("damage", ["truncated", "empty", "noise", "nan", "shape", "key"])
def test_damaged_view_is_made_again(
    whole: Backbone, images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    from safetensors.torch import save_file

    recipe = tiny_recipe({"augment.views": 2})
    fresh = compute_bank(whole, images, recipe, tmp_path)
    file = sorted(tmp_path.glob("*.safetensors"))[1]
    content = file.read_bytes()
    if damage in ("truncated", "empty", "noise"):
        file.write_bytes({"truncated": content[:-10], "empty": b"", "noise": b"\x07" * 100}[damage])
    elif damage == "nan":
        save_file({"features": torch.full((N, whole.features), torch.nan)}, file)
    elif damage == "shape":
        save_file({"features": torch.zeros(N - 1, whole.features)}, file)
    else:
        save_file({"other": torch.zeros(N, whole.features)}, file)
    seen = count_images(monkeypatch)
    again = compute_bank(whole, images, recipe, tmp_path)
    assert sum(seen) == N
    assert torch.equal(again.views, fresh.views)
    assert torch.equal(again.clean, fresh.clean)
    assert file.read_bytes() == content


def test_views_of_images_that_are_trained_on_only(whole: Backbone, images: Images) -> None:
    recipe = tiny_recipe()
    every, some = compute_bank(whole, images, recipe), compute_bank(whole, images, recipe, trained_on=TRAIN)
    torch.testing.assert_close(some.views[:, TRAIN], every.views[:, TRAIN], atol=1e-5, rtol=1e-5)
    assert torch.equal(some.clean, every.clean)
    assert (some.views[:, TEST] == 0).all()


def test_cache_key_changes_with_whatever_changes_the_features(whole: Backbone, cut: Backbone, images: Images) -> None:
    recipe = tiny_recipe()
    pixels = images.pixels.copy()
    pixels[0, 0, 0, 0] ^= 1
    normalised = copy.copy(whole)
    normalised.mean = (0.5, 0.5, 0.5)
    keys = [
        cache_key(whole, images, recipe, TRAIN),
        cache_key(cut, images, recipe, TRAIN),
        cache_key(normalised, images, recipe, TRAIN),
        cache_key(whole, replace(images, pixels=pixels), recipe, TRAIN),
        cache_key(whole, replace(images, names=("other", *images.names[1:])), recipe, TRAIN),
        cache_key(whole, images, recipe, TRAIN[1:]),
        cache_key(whole, images, tiny_recipe({"augment.rotation": 11}), TRAIN),
        cache_key(whole, images, tiny_recipe({"preprocess.scaling": "unit"}), TRAIN),
    ]
    assert len(set(keys)) == len(keys)
    assert cache_key(whole, images, tiny_recipe({"training.learning_rate": 1.0}), TRAIN) == keys[0]
