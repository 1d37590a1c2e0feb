"""The recipe ``best`` runs from images to tables, in small: three kinds of networks and their ensemble."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tests.fake import write_busi

from sonobreast.config import Augment, Inference, Recipe, Training, load_recipe
from sonobreast.data.cohort import Sources
from sonobreast.data.manifest import build
from sonobreast.errors import SonobreastError
from sonobreast.evaluation.predictions import read_predictions
from sonobreast.evaluation.report import write_report
from sonobreast.inspection.evaluate import evaluate_runs, find_runs
from sonobreast.inspection.predict import predict, shares
from sonobreast.models.zoo import load_backbone
from sonobreast.records import read_json
from sonobreast.training.images import Images, shown_pixels
from sonobreast.training.module import FineTuning
from sonobreast.training.study import run_study

THREE = ("LinearProbe:test_resnet", "joint:test_resnet", "finetune:test_resnet")


def small(**more: object) -> Recipe:
    """The recipe with the demonstration's network in place of its three, each as the recipe treats that kind."""
    own = {name.replace("DenseNet169", "test_resnet"): v for name, v in load_recipe("best").settings_of.items()}
    own["finetune:test_resnet"] |= {"training.epochs": 2}
    settings = {
        "model.architectures": list(THREE),
        "settings_of": own,
        "model.precision": "float32",
        "preprocess.size": 64,
        "segmentation.channels": [8, 8],
        "training.epochs": 3,
        "training.batch_size": 4,
        "split.folds": 2,
        **more,
    }
    return load_recipe("best", [f"{k}={yaml.safe_dump(v, default_flow_style=True)}" for k, v in settings.items()])


def test_what_it_adds_is_explained() -> None:
    """Every setting of those that only this recipe has is on, and says why."""
    recipe = load_recipe("best")
    for group, default, names in (
        (
            "augment",
            Augment(),
            ("aspect", "lesion_zoom", "gain", "depth_attenuation", "contrast", "speckle", "blur", "inpaint_marks"),
        ),
        (
            "training",
            Training(),
            ("schedule", "warmup", "weight_decay", "label_smoothing", "gradient_clip", "averaging", "resolutions"),
        ),
        ("inference", Inference(), ("flips",)),
    ):
        for name in names:
            assert getattr(getattr(recipe, group), name) != getattr(default, name), name
            assert recipe.ours[f"{group}.{name}"], name
    assert recipe.split.grouping == "group"
    assert not recipe.augment.vertical_flip
    assert recipe.ensemble is not None


@pytest.fixture(scope="module")
def study(tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    base = tmp_path_factory.mktemp("best")
    data, out = write_busi(base / "busi"), base / "out"
    outcome = run_study(small(), data, str(tiny_weights), out)
    assert (outcome.finished, len(outcome.failed)) == (6, 0)
    return data, out


def test_its_runs_say_the_same_again(study: tuple[Path, Path]) -> None:
    data, out = study
    manifest = build(data, strict=True)
    table = read_predictions(out / "predictions.csv").set_index("image")
    columns = ["p_benign", "p_malignant", "p_normal"]
    for run in sorted((out / "runs").iterdir()):
        found = predict([run], manifest.root, manifest.cases)
        wanted = table[table["run"] == run.name].loc[[c.image for c in manifest.cases], columns].to_numpy()
        np.testing.assert_allclose(found.probability, wanted, atol=1e-4)
        assert (run / "segmentation.csv").is_file() == ("joint" in run.name)


def test_each_kind_has_its_own_settings(study: tuple[Path, Path]) -> None:
    epochs = {p.name.split("-")[0]: len((p / "history.csv").read_text().splitlines()) - 1 for p in _runs(study[1])}
    assert epochs == {"LinearProbe_test_resnet": 0, "joint_test_resnet": 3, "finetune_test_resnet": 2}


def _runs(out: Path) -> list[Path]:
    return sorted((out / "runs").glob("*-f0-*"))


def test_the_ensemble_is_a_configuration_with_a_report(study: tuple[Path, Path]) -> None:
    _, out = study
    metrics = read_json(out / "metrics.json")
    assert [c["architecture"] for c in metrics["configurations"]] == [*THREE, "ensemble"]
    assert len(metrics["comparisons"]["pairs"]) == 6
    text = write_report(out, images=False).read_text()
    assert "mean of the probabilities of networks of this study" in text
    folds = read_json(out / "ensemble.json")["folds"]
    assert [f["fold"] for f in folds] == [0, 1]
    table = read_predictions(out / "predictions.csv")
    for fold in folds:
        mine = table[table["run"].isin(fold["runs"])].groupby(["subset", "image"])["p_malignant"].mean()
        given = table[table["run"] == fold["run"]].set_index(["subset", "image"])["p_malignant"]
        np.testing.assert_allclose(mine.to_numpy(), given.loc[mine.index].to_numpy(), atol=1e-6)


def test_a_second_call_changes_nothing(study: tuple[Path, Path], tiny_weights: Path) -> None:
    data, out = study
    before = (out / "predictions.csv").read_bytes()
    outcome = run_study(small(), data, str(tiny_weights), out)
    assert outcome.reused == 6
    assert (out / "predictions.csv").read_bytes() == before


def test_the_ensemble_goes_to_another_hospital(study: tuple[Path, Path], tmp_path: Path) -> None:
    _, out = study
    runs = find_runs([out], "ensemble")
    names = {run.name for run in runs}
    assert names == {r for fold in read_json(out / "ensemble.json")["folds"] for r in fold["runs"]}
    other = write_busi(tmp_path / "other", seed=77)
    evaluate_runs([out], Sources(other), tmp_path / "e", configuration="ensemble")
    given = read_predictions(tmp_path / "e" / "predictions.csv").sort_values("image")
    manifest = build(other, strict=True)
    cases = sorted(manifest.cases, key=lambda c: c.image)
    by_fold = []
    for fold in read_json(out / "ensemble.json")["folds"]:
        each = [predict([out / "runs" / r], manifest.root, cases).probability for r in fold["runs"]]
        by_fold.append(np.mean(each, axis=0))
    np.testing.assert_allclose(given["p_malignant"], np.mean(by_fold, axis=0)[:, 1], atol=1e-6)
    with pytest.raises(SonobreastError, match="and their ensemble"):
        find_runs([out], None)


def test_folds_count_alike_whatever_their_members(study: tuple[Path, Path]) -> None:
    _, out = study
    runs = {(p.name.split("_")[0], p.name[-4]): p for p in (out / "runs").iterdir()}
    chosen = [runs["joint", "0"], runs["LinearProbe", "0"], runs["joint", "1"]]
    np.testing.assert_allclose(shares(chosen), [0.25, 0.25, 0.5])


def test_a_study_without_an_ensemble_says_so(study: tuple[Path, Path], tmp_path: Path, tiny_weights: Path) -> None:
    out = tmp_path / "one"
    run_study(small(**{"model.architectures": [THREE[0]]}), study[0], str(tiny_weights), out, images=False)
    assert not (out / "ensemble.json").exists()  # nothing to average
    with pytest.raises(SonobreastError, match="no ensemble"):
        find_runs([out], "ensemble")


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"training.epoch": 3}, "training.epoch"),
        ({"preprocess.size": 32}, "preprocess.size"),
        ({"training.optimizers": ["sgd"]}, "the same for all"),
        ({"training.epochs": 0}, "training.epochs"),
        ({"training": {"epochs": 3}}, "a setting of"),
    ],
)
def test_own_settings_that_cannot_be(own: dict[str, object], said: str) -> None:
    with pytest.raises(SonobreastError, match=said):
        small(settings_of={THREE[2]: own})


def test_own_settings_of_no_network(study: tuple[Path, Path], tiny_weights: Path, tmp_path: Path) -> None:
    recipe = small(settings_of={"finetune:DenseNet16": {"training.epochs": 2}})
    with pytest.raises(SonobreastError, match="no network is called"):
        run_study(recipe, study[0], str(tiny_weights), tmp_path / "o")


def test_marks_are_filled_with_the_probability_that_was_asked() -> None:
    plain = np.zeros((200, 4, 4, 3), np.uint8)
    names, label = tuple(str(i) for i in range(200)), torch.zeros(200, dtype=torch.int64)
    images = Images(plain, names, label, ("a",), filled=np.full_like(plain, 255))
    index = np.arange(200)
    settings = Augment(inpaint_marks=0.25)
    shown = shown_pixels(images, index, 0, 0, settings)[:, 0, 0, 0] == 255
    assert 30 < shown.sum() < 70  # 50 expected, standard deviation 6.1
    some = shown_pixels(images, index[10:20], 0, 0, settings)[:, 0, 0, 0] == 255
    assert (some == shown[10:20]).all()  # of the image alone, not of the batch
    assert (shown_pixels(images, index, 1, 0, settings)[:, 0, 0, 0] == 255).tolist() != shown.tolist()
    assert (shown_pixels(images, index, None, 0, settings) == 0).all()
    assert (plain == 0).all()


def test_batches_come_at_every_resolution_with_their_masks(tiny_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    images = Images(pixels, tuple("abcd"), torch.tensor([0, 1, 2, 0]), ("benign", "malignant", "normal"))
    recipe = small(**{"training.resolutions": [0.5, 1.0, 1.5], "augment.lesion_zoom": 0})
    backbone = load_backbone("finetune:test_resnet", str(tiny_weights), cut_uncovered=False, image_size=64)
    module = FineTuning(backbone, images, np.arange(4), recipe, "adamw", 0)
    given, truth = torch.rand(4, 3, 64, 64), (torch.rand(4, 1, 64, 64) > 0.5).float()
    sides = set()
    for step in range(30):
        monkeypatch.setattr(FineTuning, "global_step", step)
        shown, masks = module.at_a_resolution(given, truth)
        assert masks is not None
        assert shown.shape[2:] == masks.shape[2:]
        sides.add(shown.shape[2])
        assert float(masks.mean()) == pytest.approx(float(truth.mean()), abs=1e-4)
    assert sides == {32, 64, 96}
