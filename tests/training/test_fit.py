"""A run folder appears complete or not at all, and rebuilds the network that wrote it."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from numpy.typing import NDArray
from tests.fake import fake_cases, make_images, tiny_recipe

from sonobreast.config import Recipe
from sonobreast.data.masks import Masks
from sonobreast.data.masks_out import to_original_size
from sonobreast.data.preprocess import decode_mask, scale, scaling_constants
from sonobreast.errors import SonobreastError
from sonobreast.models.zoo import Backbone, load_backbone
from sonobreast.records import Case, Run, read_json, read_table
from sonobreast.training.fit import (
    Fold,
    fit_runs,
    fold_of,
    is_finished,
    load_run,
    prediction_rows,
    read_config,
    write_run,
)
from sonobreast.training.fitted import Fitted
from sonobreast.training.frozen import compute_bank
from sonobreast.training.images import Images
from sonobreast.training.study import _save_backbone

RUN = Run(architecture="test_resnet", optimizer="adam", seed=2)
FOLD = Fold(np.arange(0, 9), np.arange(9, 13), np.arange(13, 18), tuple(f"g{i}" for i in range(18)))
TUNE = {"model.backbone": "finetune"}
KINDS: dict[str, tuple[str, dict[str, object]]] = {
    "frozen": ("", {}),
    "cut": ("partial", {}),
    "cut without norm": ("partial", {"model.cut_norm": "none"}),
    "uncovered": ("partial", {"model.uncovered": "train"}),
    "finetune": ("", {**TUNE, "model.batch_norm": "train"}),
    "last stage": ("", {**TUNE, "model.trainable": 1}),
}


@pytest.fixture(scope="module")
def images() -> Images:
    return make_images(18)


def made(folder: Path, weights: Path, images: Images, changes: dict[str, object]) -> tuple[Path, Fitted, Recipe]:
    recipe = tiny_recipe({"training.epochs": 2, **changes})
    cut = recipe.model.backbone == "frozen" and recipe.model.uncovered == "cut"
    backbone: Backbone = load_backbone("test_resnet", str(weights), cut_uncovered=cut, image_size=64)
    bank = compute_bank(backbone, images, recipe) if cut else None
    [(_, fitted)] = fit_runs(backbone, bank, images, [(RUN, FOLD)], recipe)
    assert isinstance(fitted, Fitted)
    run = folder / "runs" / RUN.id
    name = _save_backbone(backbone, folder)
    write_run(run, fitted, backbone, images, FOLD, recipe, RUN, backbone_file=name, data_fingerprint="f" * 64)
    return run, fitted, recipe


def with_masks(images: Images) -> Images:
    """Each image's brighter half as its lesion, at twice the size; of one nothing is known, one has none."""
    mask = images.pixels[:, :, :, 0] > np.median(images.pixels[:, :, :, 0], axis=(1, 2), keepdims=True)
    known = np.arange(len(mask)) != 14
    mask[[14, 15]] = False
    side = 2 * mask.shape[1]
    cases = tuple(
        Case(image=n, label="benign", group=n, width=side, height=side, spacing_mm=0.1, sha256="0", source="t")
        for n in images.names
    )
    return replace(images, masks=Large(np.packbits(mask, axis=2), known, Path(), cases))


class Large(Masks):
    """Masks without files: the original is the small one, enlarged."""

    def original(self, image: int) -> NDArray[np.bool_] | None:
        small = self.resized(np.asarray([image]))[0]
        return small.repeat(2, 0).repeat(2, 1) if self.known[image] else None


@pytest.mark.parametrize("decoder", ["unet", "attention"])
def test_a_reloaded_joint_run_predicts_and_segments_what_it_wrote(
    decoder: str, tiny_weights: Path, tmp_path: Path, images: Images
) -> None:
    shown = with_masks(images)
    name = {"unet": "joint:test_resnet", "attention": "joint:test_resnet"}[decoder]
    changes = {**TUNE, "segmentation": {"channels": [8, 8, 8], "shortcuts": 8}, "training.epochs": 2}
    recipe = tiny_recipe(changes)
    backbone = load_backbone(name, str(tiny_weights), image_size=64)
    backbone.decoder = decoder  # type: ignore[assignment]
    [(_, fitted)] = fit_runs(backbone, None, shown, [(RUN, FOLD)], recipe)
    assert isinstance(fitted, Fitted)
    run = tmp_path / "runs" / RUN.id
    file = _save_backbone(backbone, tmp_path)
    write_run(run, fitted, backbone, shown, FOLD, recipe, RUN, backbone_file=file, data_fingerprint="f" * 64)
    network, _, classes = load_run(run)
    mean, std = scaling_constants(recipe.preprocess.scaling, network.backbone.mean, network.backbone.std)
    with torch.inference_mode():
        given = torch.from_numpy(scale(images.pixels, mean, std))
        p, mask = network(given).softmax(1).numpy(), network.segment(given)
    table = pd.read_csv(run / "predictions.csv")
    np.testing.assert_allclose(table[[f"p_{c}" for c in classes]].to_numpy(), p, atol=1e-5)
    assert mask is not None
    small = mask.sigmoid().numpy()[FOLD.test, 0]
    masks = pd.read_csv(run / "segmentation.csv", keep_default_na=False)
    assert list(masks["image"]) == [images.names[i] for i in FOLD.test]
    assert list(masks["truth"]) == ["lesion", "unknown", "empty", "lesion", "lesion"]
    for row, probability in zip(masks.itertuples(), small, strict=True):
        side = 2 * probability.shape[0]
        written = decode_mask(run / "masks" / Path(row.image).with_suffix(".png"))
        assert written.shape == (side, side)
        assert int(written.sum()) == int(row.predicted_area_px)
        wanted = to_original_size(probability, side, side, "stretch")
        assert np.mean(written != (wanted >= 0.5)) < 0.01  # the network's map was kept in 255ths
    history = read_table(run / "history.csv", ("validation_dice",))
    assert all(0.0 <= float(r["validation_dice"]) <= 1.0 for r in history)
    assert is_finished(run)
    (run / "segmentation.csv").unlink()
    assert not is_finished(run)  # else its study's Dice would be that of the other runs, without a word


def test_both_tasks_are_learnt(tiny_weights: Path, images: Images) -> None:
    shown = with_masks(images)
    recipe = tiny_recipe(
        {
            **TUNE,
            "augment": {},
            "head.dropout": 0.0,
            "training.early_stopping": None,
            "training.epochs": 20,
            "training.learning_rate": 0.001,
            "training.batch_size": 4,
            "segmentation": {"channels": [16, 16, 8, 8, 8], "shortcuts": 16},
        }
    )
    backbone = load_backbone("joint:test_resnet", str(tiny_weights), image_size=64)
    seen = Fold(np.arange(12), np.arange(12), np.arange(13, 18), FOLD.groups)  # judged on what it was trained on
    [(_, fitted)] = fit_runs(backbone, None, shown, [(RUN, seen)], recipe)
    assert isinstance(fitted, Fitted)
    best = max(e.validation_dice or 0.0 for e in fitted.history)
    assert fitted.history[-1].train_accuracy > 0.9
    assert best > 0.7  # half of each image is lesion: all of it called so would give 0.67


@pytest.mark.parametrize("kind", KINDS)
def test_reloaded_run_predicts_what_it_wrote(kind: str, tiny_weights: Path, tmp_path: Path, images: Images) -> None:
    part, changes = KINDS[kind]
    folder, _, recipe = made(tmp_path, tiny_weights / part, images, changes)
    network, read, classes = load_run(folder)
    assert read == recipe
    assert classes == images.classes
    assert not network.training
    table = pd.read_csv(folder / "predictions.csv")
    assert list(table["subset"]) == ["train"] * 9 + ["validation"] * 4 + ["test"] * 5
    mean, std = scaling_constants(recipe.preprocess.scaling, network.backbone.mean, network.backbone.std)
    with torch.inference_mode():
        p = network(torch.from_numpy(scale(images.pixels, mean, std))).softmax(1).numpy()
    np.testing.assert_allclose(table[[f"p_{c}" for c in classes]].to_numpy(), p, atol=1e-5)
    assert list(table["predicted"]) == [classes[i] for i in p.argmax(1)]
    assert list(table["label"]) == [classes[i] for i in images.label]


def test_run_folder(tiny_weights: Path, tmp_path: Path, images: Images) -> None:
    folder, fitted, _ = made(tmp_path, tiny_weights / "partial", images, {})
    assert {p.name for p in folder.iterdir()} == {
        "config.yaml",
        "history.csv",
        "weights.safetensors",
        "predictions.csv",
        "metrics.json",
        "environment.json",
    }
    assert is_finished(folder)
    assert not is_finished(tmp_path)
    rows = read_table(folder / "predictions.csv")
    header = "run,architecture,optimizer,repeat,fold,seed,subset,image,group,label,predicted"
    assert ",".join(rows[0]) == header + ",p_benign,p_malignant,p_normal,schema_version"
    assert (rows[0]["run"], rows[0]["seed"], rows[0]["group"]) == (RUN.id, "2", "g0")
    history = read_table(folder / "history.csv", ("epoch", "train_loss", "validation_loss"))
    assert [int(r["epoch"]) for r in history] == list(range(1, len(fitted.history) + 1))
    metrics = read_json(folder / "metrics.json")
    table = pd.DataFrame(rows)
    for subset, content in metrics["subsets"].items():
        part = table[table["subset"] == subset]
        assert content["metrics"]["accuracy"] == pytest.approx((part["label"] == part["predicted"]).mean())
        assert sum(content["support"].values()) == content["n"] == len(part)
    assert 0 < metrics["pretrained_share"] < 1
    assert "layer3" in metrics["coverage"]
    config = read_config(folder)
    assert config["data_fingerprint"] == "f" * 64
    assert (tmp_path / config["network"]["backbone_file"]).is_file()
    environment = read_json(folder / "environment.json")
    assert {"python", "packages", "processor", "threads", "git"} <= environment.keys()


def test_study_folder_can_be_moved(tiny_weights: Path, tmp_path: Path, images: Images) -> None:
    folder, _, _ = made(tmp_path / "here", tiny_weights, images, {})
    (tmp_path / "here").rename(tmp_path / "there")
    load_run(tmp_path / "there" / "runs" / folder.name)


@pytest.mark.parametrize(
    "damage", ["config", "yaml", "weights", "backbone", "other", "no backbone", "recipe", "number"]
)
def test_damaged_run(damage: str, tiny_weights: Path, tmp_path: Path, images: Images) -> None:
    folder, _, _ = made(tmp_path, tiny_weights, images, {})
    config, weights = folder / "config.yaml", folder / "weights.safetensors"
    backbone = next((tmp_path / "backbones").iterdir())
    content = yaml.safe_load(config.read_text())
    if damage == "config":
        config.unlink()
    elif damage == "yaml":
        config.write_text("a: [")
    elif damage == "weights":
        weights.write_bytes(weights.read_bytes()[:-7])
    elif damage == "backbone":
        backbone.write_bytes(backbone.read_bytes()[:-7])
    elif damage == "other":
        weights.write_bytes(backbone.read_bytes())
    elif damage == "no backbone":
        backbone.unlink()
    elif damage == "recipe":
        content["recipe"]["training"]["epoch"] = 3
        config.write_text(yaml.safe_dump(content))
    else:
        content["schema_version"] = 99
        config.write_text(yaml.safe_dump(content))
    with pytest.raises(SonobreastError) as caught:
        load_run(folder)
    assert caught.value.file is not None


def test_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(SonobreastError, match="no run folder") as caught:
        load_run(tmp_path)
    assert "runs/<id>" in caught.value.remedy


def test_full_disk_leaves_no_half_run(
    tiny_weights: Path, tmp_path: Path, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every single write of the run folder."""
    folder, _, _ = made(tmp_path / "whole", tiny_weights, images, {})
    writes = len(list(folder.iterdir()))
    real = os.fsync
    for allowed in range(writes + 1):
        done = 0

        def fsync(handle: int, allowed: int = allowed) -> None:
            nonlocal done
            if not os.path.isdir(f"/proc/self/fd/{handle}") and "runs" in os.readlink(f"/proc/self/fd/{handle}"):
                done += 1
                if done > allowed:
                    raise OSError(errno.ENOSPC, "No space left on device")
            real(handle)

        out = tmp_path / f"full {allowed}"
        monkeypatch.setattr(os, "fsync", fsync)
        if allowed < writes:
            with pytest.raises(SonobreastError, match="No space left") as caught:
                made(out, tiny_weights, images, {})
            assert "free some space" in caught.value.remedy
            assert not (out / "runs" / RUN.id).exists()
            assert not any(p.name.endswith(".partial") for p in out.rglob("*"))
        else:
            made(out, tiny_weights, images, {})
            assert is_finished(out / "runs" / RUN.id)


def test_fold_of() -> None:
    from sonobreast.config import Split
    from sonobreast.data.split import divide

    cases = fake_cases({"benign": 10, "normal": 10}, lambda label, i: f"{label}{i // 2}")
    rows = divide(cases, Split(kind="kfold", folds=3, repeats=2, validation=0.3))
    names = sorted(c.image for c in cases)
    tested = []
    for repeat in range(2):
        for k in range(3):
            fold = fold_of(rows, names, repeat, k)
            parts = [set(fold.of(s).tolist()) for s in ("train", "validation", "test")]
            assert set().union(*parts) == set(range(20))
            assert sum(map(len, parts)) == 20
            assert all(g == {c.image: c.group for c in cases}[n] for g, n in zip(fold.groups, names, strict=True))
            tested += [(repeat, i) for i in parts[2]]
    assert sorted(tested) == [(r, i) for r in range(2) for i in range(20)]


def test_rows_of_predictions(images: Images) -> None:
    p = np.full((18, 3), 0.2, np.float32)
    p[:, 1] = 0.6
    fitted = Fitted({}, (), 1, p, 0.0)
    columns, rows = prediction_rows(fitted, images, FOLD, RUN)
    assert len(rows) == 18
    assert set(rows[0]) == set(columns)
    assert {r["predicted"] for r in rows} == {"malignant"}
    assert [r["image"] for r in rows if r["subset"] == "test"] == list(images.names[13:])
