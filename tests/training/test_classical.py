"""Classical systems go through a study as networks do, and what they leave predicts the same when it is read again."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import skops.io
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image
from tests.fake import make_images, tiny_recipe, write_busi, write_class_folders

from sonobreast.data import manifest as manifests
from sonobreast.data.manifest import Manifest
from sonobreast.data.preprocess import decode_mask, scale, scaling_constants
from sonobreast.errors import SonobreastError
from sonobreast.evaluation.report import write_report
from sonobreast.models import classical as files
from sonobreast.models import handcrafted
from sonobreast.models.classical import Handcrafted
from sonobreast.models.networks import architecture
from sonobreast.records import Case, Run, read_json, read_table
from sonobreast.training import classical, study
from sonobreast.training.classical import Prepared, class_weight_of, fit_classical, fit_forest, fit_fusion, prepare
from sonobreast.training.fit import Fold, is_finished, load_run, read_config
from sonobreast.training.fitted import Fitted, class_weights
from sonobreast.training.images import Images
from sonobreast.training.reporter import Reporter
from sonobreast.training.study import Outcome, run_study

FOREST, SHAPE, FUSION = "RandomForest", "RandomForest+shape", "DeepFusion:test_resnet"


@pytest.fixture(scope="module", autouse=True)
def _small_and_quick() -> Any:
    """The intervals have tests of their own, and so has scikit-learn."""
    with pytest.MonkeyPatch.context() as patch:
        original = study.study_metrics
        patch.setattr(study, "study_metrics", lambda *given: original(*given, resamples=1000))
        patch.setattr(classical, "TREES", 10)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_busi(tmp_path_factory.mktemp("data") / "busi")


class Listening(Reporter):
    """Keeps what a study tells."""

    def __init__(self) -> None:
        self.stages: list[list[Any]] = []
        self.said: list[str] = []
        self.textures = 0

    def stage(self, title: str, total: int) -> None:
        self.stages.append([title, total, 0])

    def advance(self, steps: int = 1) -> None:
        self.stages[-1][2] += steps

    def say(self, text: str) -> None:
        self.said.append(text)


RECIPE = tiny_recipe(
    {
        "model.architectures": [FOREST, SHAPE, FUSION, "test_resnet"],
        "training.optimizers": ["adam", "sgdm"],
        "training.epochs": 1,
        "training.seeds": [0, 1],
        "preprocess.scaling": "symmetric",
    }
)


@pytest.fixture(scope="module")
def told(data: Path, tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Listening]:
    """A study of three classical systems and a network, and what it told."""
    out, reporter = tmp_path_factory.mktemp("whole") / "out", Listening()
    original = handcrafted.texture

    def counted(image: NDArray[np.uint8]) -> NDArray[np.float32]:
        reporter.textures += 1
        return original(image)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(handcrafted, "texture", counted)
        outcome = run_study(RECIPE, data, str(tiny_weights), out, images=False, reporter=reporter)
    assert outcome == Outcome(10, 0, {})
    return out, reporter


@pytest.fixture(scope="module")
def whole(told: tuple[Path, Listening]) -> Path:
    """The folder of that study; tests only read it."""
    return told[0]


def features_of(n: int = 90, classes: int = 3, width: int = 60, seed: int = 0) -> tuple[NDArray[np.float32], Any]:
    """Features of which the first three tell the classes apart."""
    rng = np.random.default_rng(seed)
    label = np.arange(n) % classes
    x = rng.normal(size=(n, width)).astype(np.float32)
    x[np.arange(n), label] += 3.0
    return x, label


def fold_of_parts(n: int = 90, train: int = 54, validation: int = 18) -> Fold:
    return Fold(
        np.arange(train),
        np.arange(train, train + validation),
        np.arange(train + validation, n),
        tuple(f"g{i}" for i in range(n)),
    )


# A study


def test_one_run_for_each_fold_and_seed_whatever_the_optimizers(whole: Path) -> None:
    table = pd.read_csv(whole / "results.csv")
    runs = table.groupby("architecture", sort=False)["optimizer"].apply(list).to_dict()
    assert runs == {FOREST: ["none"] * 2, SHAPE: ["none"] * 2, FUSION: ["none"] * 2,
                    "test_resnet": ["adam", "adam", "sgdm", "sgdm"]}  # fmt: skip
    ids = {p.name for p in (whole / "runs").iterdir()}
    assert "RandomForest-none-r0-f0-s0" in ids
    assert "RandomForest_shape-none-r0-f0-s1" in ids
    assert "DeepFusion_test_resnet-none-r0-f0-s0" in ids


def test_files_of_a_run(whole: Path) -> None:
    for name in ("RandomForest-none-r0-f0-s0", "DeepFusion_test_resnet-none-r0-f0-s0"):
        folder = whole / "runs" / name
        assert is_finished(folder)
        assert {p.name for p in folder.iterdir()} == {
            "config.yaml", "history.csv", "estimator.skops", "predictions.csv", "metrics.json", "environment.json",
        }  # fmt: skip
        assert read_table(folder / "history.csv", ("epoch", "train_loss")) == []
        assert (read_json(folder / "metrics.json")["epochs"], read_json(folder / "metrics.json")["best_epoch"]) == (
            0,
            0,
        )
        assert read_config(folder)["estimator"]["scikit_learn"]
    assert [p.name.split("-")[0] for p in (whole / "backbones").iterdir()] == ["test_resnet"]


def test_what_stands_beside_the_figures(whole: Path) -> None:
    said = pd.read_csv(whole / "results.csv").drop_duplicates("architecture").set_index("architecture")["coverage"]
    assert said[FOREST] == "no network: 219 handcrafted features (first-order, GLCM, LBP and HOG)"
    assert "227 handcrafted" in said[SHAPE]
    assert "gives normal images away" in said[SHAPE]
    assert said[FUSION] == "100% of the backbone's parameters pre-trained"


def test_the_report_names_them_without_an_optimizer(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    page = write_report(out, images=False).read_text(encoding="utf-8")
    assert "RandomForest + none" not in page
    assert "RandomForest + –" not in page
    assert "RandomForest: fitted without epochs" in page
    assert "gives normal images away" in page
    assert "RandomForest+shape looks at the radiologist" in page  # in red, at the top
    assert not list((out / "figures").glob("curves-RandomForest*"))
    assert list((out / "figures").glob("curves-test_resnet*"))


def inputs(out: Path, data: Path, names: Sequence[str], network: Any) -> torch.Tensor:
    recipe = tiny_recipe({"preprocess.scaling": "symmetric"})
    manifest = manifests.build(data)
    case_of = {c.image: c for c in manifest.cases}
    from sonobreast.data.store import open_store

    cases = [case_of[n] for n in names]
    pixels = open_store([manifest.path(c) for c in cases], [c.sha256 for c in cases], recipe.preprocess)
    mean, std = scaling_constants("symmetric", network.backbone.mean, network.backbone.std)
    return torch.from_numpy(scale(pixels[:], mean, std))


@pytest.mark.parametrize("name", [FOREST, SHAPE, FUSION])
def test_a_reload_predicts_the_same(name: str, whole: Path, data: Path) -> None:
    folder = whole / "runs" / Run(architecture=name, optimizer="none", seed=1).id
    network, _, classes = load_run(folder)
    assert not network.training
    table = pd.read_csv(folder / "predictions.csv")
    images = inputs(whole, data, table["image"], network)
    with torch.inference_mode():
        if name == SHAPE:
            with pytest.raises(SonobreastError, match="describe the lesion's mask"):
                network(images)
            manifest = manifests.build(data)
            files_of = {c.image: c.masks for c in manifest.cases}
            masks = [
                np.logical_or.reduce([decode_mask(manifest.root / m) for m in files_of[n]] or [np.zeros((2, 2), bool)])
                for n in table["image"]
            ]
            assert isinstance(network.backbone.network, Handcrafted)
            logits = network.head(network.backbone.network(images, masks))
        else:
            logits = network(images)
    written = table[[f"p_{c}" for c in classes]].to_numpy()
    np.testing.assert_allclose(logits.softmax(1).numpy(), written, atol=2e-5)
    assert len(np.unique(written.round(3), axis=0)) > 5


@pytest.mark.parametrize("name", [FOREST, FUSION])
def test_seeds_differ(name: str, whole: Path) -> None:
    folders = [whole / "runs" / Run(architecture=name, optimizer="none", seed=s).id for s in (0, 1)]
    one, other = (pd.read_csv(f / "predictions.csv").filter(like="p_").to_numpy() for f in folders)
    assert (one != other).any()


def test_progress_adds_up(told: tuple[Path, Listening]) -> None:
    stages, said = told[1].stages, told[1].said
    assert all(done == total for _, total, done in stages), stages
    titles = [t for t, *_ in stages if "features" in t]
    assert titles[:3] == [f"{n}: features" for n in (FOREST, SHAPE, FUSION)]
    assert not any("licence" in s for s in said if "RandomForest" in s)
    assert any("licence of the weights: made for a test" in s for s in said if FUSION in s)


def test_textures_are_computed_once_for_both_forests(told: tuple[Path, Listening]) -> None:
    assert told[1].textures == 21


# Masks


def prepared(manifest: Manifest, images: Images, said: list[str]) -> Prepared:
    reporter = Listening()
    found = prepare(architecture(SHAPE), images, manifest, tiny_recipe(), "none", Path("unused"), reporter)
    said += reporter.said
    return found


def shaped(tmp_path: Path, change: Callable[[Case], Case]) -> tuple[Prepared, list[str], Images]:
    """Three images with masks, a fourth normal one without, changed by ``change``."""
    labels = ("benign", "malignant", "benign", "normal")
    for i in range(3):
        mask = np.zeros((40, 80), np.uint8)
        mask[10:20, 10 : 20 + 10 * i] = 255
        Image.fromarray(mask).save(tmp_path / f"mask{i}.png")
    cases = tuple(
        change(
            Case(
                image=f"{i}.png",
                label=label,
                group=str(i),
                width=80,
                height=40,
                sha256=str(i),
                source="csv",
                masks=(f"mask{i}.png",) if i < 3 else (),
            )
        )
        for i, label in enumerate(labels)
    )
    images = replace(make_images(4), names=tuple(f"{i}.png" for i in range(4)))
    said: list[str] = []
    return prepared(Manifest(tmp_path, cases), images, said), said, images


def test_shape_comes_from_the_masks_at_their_own_size(tmp_path: Path) -> None:
    found, said, images = shaped(tmp_path, lambda c: c)
    assert found.shape
    assert not said
    plain = handcrafted.textures(images.pixels)
    np.testing.assert_array_equal(found.features[:, : plain.shape[1]], plain)
    shapes = found.features[:, plain.shape[1] :]
    assert shapes[:, 0].tolist() == [1, 1, 1, 0]
    np.testing.assert_allclose(shapes[:, 1], [100 / 3200, 200 / 3200, 300 / 3200, 0], rtol=1e-6)
    np.testing.assert_allclose(shapes[:, 7], [1, 2, 3, 0], rtol=1e-6)


def test_several_masks_are_one_lesion(tmp_path: Path) -> None:
    found, _, images = shaped(tmp_path, lambda c: c.model_copy(update={"masks": ("mask0.png", "mask2.png")}))
    assert found.features[0, len(handcrafted.names()) + 1] == pytest.approx(300 / 3200)
    assert len(images.names) == 4


@pytest.mark.parametrize("without", [["1.png"], ["0.png", "1.png", "2.png"]])
def test_a_mask_that_is_not_known_leaves_shape_out(without: list[str], tmp_path: Path) -> None:
    found, said, _ = shaped(tmp_path, lambda c: c.model_copy(update={"masks": ()}) if c.image in without else c)
    assert not found.shape
    assert found.features.shape[1] == len(handcrafted.names())
    assert "shape features are left out" in said[0]
    assert "mask, whose" not in found.backbone.coverage.sentence()


def test_folders_without_masks_and_without_weights(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path / "data", seed=3)
    recipe = tiny_recipe({"model.architectures": [SHAPE], "training.optimizers": ["adam", "sgdm"]})
    assert run_study(recipe, folder, "none", tmp_path / "out", images=False) == Outcome(1, 0, {})
    run = tmp_path / "out" / "runs" / "RandomForest_shape-none-r0-f0-s0"
    assert read_config(run)["estimator"]["shape"] is False
    load_run(run)


def test_masks_of_two_sizes(tmp_path: Path) -> None:
    Image.fromarray(np.full((3, 3), 255, np.uint8)).save(tmp_path / "small.png")
    with pytest.raises(SonobreastError, match="differ in size") as caught:
        shaped(tmp_path, lambda c: c.model_copy(update={"masks": ("mask0.png", "small.png")}))
    assert "small.png" in str(caught.value.file)


# Fits


def test_class_weights_are_those_of_the_networks() -> None:
    label = np.asarray([0] * 96 + [1] * 102 + [2] * 93)
    for how in ("balanced", "none"):
        recipe = tiny_recipe({"training.class_weights": how})
        wanted = class_weights(torch.from_numpy(label), 3, recipe)
        np.testing.assert_allclose(class_weight_of(label, 3, recipe), wanted, rtol=1e-6)


@pytest.mark.parametrize("kind", [FOREST, FUSION])
def test_only_training_and_validation_labels_are_looked_at(kind: str) -> None:
    x, label = features_of()
    fold, recipe = fold_of_parts(), tiny_recipe()
    other = label.copy()
    other[fold.test] = (other[fold.test] + 1) % 3
    if kind == FOREST:
        other[fold.validation] = (other[fold.validation] + 1) % 3
        (one, _), (two, _) = (fit_forest(x, y, fold.train, 3, recipe, 0) for y in (label, other))
    else:
        (one, _), (two, _) = (fit_fusion(x, y, fold, 3, recipe, 0) for y in (label, other))
    np.testing.assert_array_equal(one.probability(x), two.probability(x))
    spoilt = x.copy()
    spoilt[fold.test] = 1e6
    again = fit_forest(spoilt, label, fold.train, 3, recipe, 0) if kind == FOREST else fit_fusion(
        spoilt, label, fold, 3, recipe, 0
    )  # fmt: skip
    np.testing.assert_array_equal(one.probability(x), again[0].probability(x))


@pytest.mark.parametrize("kind", [FOREST, FUSION])
def test_they_learn(kind: str) -> None:
    x, label = features_of()
    fold = fold_of_parts()
    fits = fit_forest(x, label, fold.train, 3, tiny_recipe(), 0) if kind == FOREST else fit_fusion(
        x, label, fold, 3, tiny_recipe(), 0
    )  # fmt: skip
    p = fits[0].probability(x)
    assert p.dtype == np.float32
    np.testing.assert_allclose(p.sum(axis=1), 1.0, atol=1e-6)
    assert (p.argmax(axis=1) == label)[fold.test].mean() > 0.8


def test_the_fusion_takes_the_features_that_tell() -> None:
    x, label = features_of(width=600)
    ensemble, found = fit_fusion(x, label, fold_of_parts(), 3, tiny_recipe(), 0)
    assert set(ensemble.selected[:3]) == {0, 1, 2}
    assert found["selected"] == len(ensemble.selected) in (32, 64, 128, 256, 512, 600)
    assert found["selected"] < 600
    assert set(ensemble.members) == {"svm", "neighbours", "discriminants", "logistic", "forest"}
    assert sum(ensemble.weights.values()) == pytest.approx(1.0)
    assert found["left_out"] == []


def test_selection_sees_the_training_subset_alone() -> None:
    """A feature that is the label, but in the other subsets only, is not among the best."""
    x, label = features_of(width=100)
    fold = fold_of_parts()
    outside = np.setdiff1d(np.arange(90), fold.train)
    x[outside, 70] = 100.0 * label[outside]
    ensemble, _ = fit_fusion(x, label, fold, 3, tiny_recipe(), 0)
    x[:, 70] = 100.0 * label
    knowing, _ = fit_fusion(x, label, fold, 3, tiny_recipe(), 0)
    assert ensemble.selected[0] != 70
    assert knowing.selected[0] == 70


def test_balanced_weights_help_the_rare_class() -> None:
    rng = np.random.default_rng(0)
    label = (np.arange(300) % 10 == 0).astype(np.intp)
    x = rng.normal(size=(300, 40)).astype(np.float32)
    x[:, 0] += 1.2 * label
    fold = fold_of_parts(300, 200, 50)
    recall = {}
    for how in ("balanced", "none"):
        recipe = tiny_recipe({"training.class_weights": how})
        ensemble, _ = fit_fusion(x, label, fold, 2, recipe, 0)
        x_used = files.standardised(x, ensemble.selected, ensemble.centre, ensemble.spread)
        for name, member in ensemble.members.items():
            p = files.member_probability(member, x_used, ensemble.factors[name])
            recall[how, name] = float(p[fold.test][label[fold.test] == 1, 1].mean())
    for name in ("svm", "neighbours", "discriminants", "logistic"):
        assert recall["balanced", name] > recall["none", name] + 0.05, name


def test_classes_too_small_for_a_calibration_leave_the_machine_out() -> None:
    x, label = features_of(n=30)
    fold = Fold(np.arange(18), np.arange(18, 24), np.arange(24, 30), tuple("abc"[i % 3] for i in range(30)))
    ensemble, found = fit_fusion(x, label, fold, 3, tiny_recipe(), 0)  # each class is one group
    assert found["left_out"] == ["svm"]
    assert "svm" not in ensemble.members
    assert sum(ensemble.weights.values()) == pytest.approx(1.0)


@pytest.mark.parametrize("kind", [FOREST, FUSION])
def test_a_class_that_training_never_saw_gets_no_probability(kind: str) -> None:
    x, label = features_of()
    fold = fold_of_parts()
    fold = replace(fold, train=fold.train[label[fold.train] != 2])
    fits = fit_forest(x, label, fold.train, 3, tiny_recipe(), 0) if kind == FOREST else fit_fusion(
        x, label, fold, 3, tiny_recipe(), 0
    )  # fmt: skip
    p = fits[0].probability(x)
    assert p.shape == (90, 3)
    assert (p[:, 2] == 0).all()


def test_one_class_alone_is_refused() -> None:
    images = make_images(12)
    x, _ = features_of(12)
    fold = Fold(np.asarray([0, 3, 6]), np.asarray([1, 2]), np.asarray([4, 5]), tuple("abcdefghijkl"))
    fits = fit_classical(
        architecture(FOREST), Prepared(None, x), images,  # type: ignore[arg-type]
        [(Run(architecture=FOREST, optimizer="none"), fold)], tiny_recipe(),
    )  # fmt: skip
    with pytest.raises(SonobreastError, match="one class only"):
        next(fits)


def test_features_that_do_not_vary() -> None:
    x, label = features_of(width=40)
    x[:, 5:] = 1.0
    ensemble, _ = fit_fusion(x, label, fold_of_parts(), 3, tiny_recipe(), 0)
    assert np.isfinite(ensemble.probability(x)).all()
    assert set(ensemble.selected[:5].tolist()) == set(range(5))


# The file


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "out")
    return tmp_path / "out" / "runs" / "DeepFusion_test_resnet-none-r0-f0-s0"


def refused(run: Path, said: str) -> SonobreastError:
    with pytest.raises(SonobreastError, match=said) as caught:
        load_run(run)
    assert Path(str(caught.value.file)).name == "estimator.skops"
    assert caught.value.remedy
    return caught.value


class NotOurs:
    """A type that no file of ours holds."""

    def __init__(self) -> None:
        self.x = 1


def test_other_types_are_not_built(run: Path) -> None:
    kept = skops.io.loads((run / "estimator.skops").read_bytes(), trusted=list(files._TRUSTED))
    (run / "estimator.skops").write_bytes(skops.io.dumps({**kept, "members": {"forest": NotOurs()}}))
    assert "NotOurs" in refused(run, "types that no classifier").what


def test_pickle_is_not_opened(run: Path) -> None:
    import pickle

    (run / "estimator.skops").write_bytes(pickle.dumps({"members": {}}))
    refused(run, "cannot be read")


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_file(run: Path, share: float) -> None:
    content = (run / "estimator.skops").read_bytes()
    (run / "estimator.skops").write_bytes(content[: int(share * len(content))])
    refused(run, "cannot be read")


def test_another_archive(run: Path) -> None:
    with zipfile.ZipFile(run / "estimator.skops", "w") as archive:
        archive.writestr("schema.json", "{}")
    refused(run, "cannot be read")


def test_something_else_of_the_same_types(run: Path) -> None:
    (run / "estimator.skops").write_bytes(skops.io.dumps({"members": {}}))
    refused(run, "cannot be read")


def test_another_version_of_scikit_learn(run: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["estimator"]["scikit_learn"] = "0.1"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert "scikit-learn==0.1" in refused(run, "fitted with scikit-learn 0.1").remedy


def test_a_lost_file(run: Path) -> None:
    (run / "estimator.skops").unlink()
    assert not is_finished(run)
    refused(run, "cannot be read")


def test_a_lost_file_is_fitted_again(run: Path, data: Path, tiny_weights: Path) -> None:
    before = (run / "predictions.csv").read_bytes()
    (run / "estimator.skops").unlink()
    outcome = run_study(RECIPE, data, str(tiny_weights), run.parent.parent, images=False)
    assert outcome == Outcome(10, 9, {})
    assert (run / "predictions.csv").read_bytes() == before


def test_twelve_images_are_learned_by_heart() -> None:
    """Fitted on all twelve, the forest and the fusion name each of them."""
    images = make_images(12)
    fold = Fold(np.arange(12), np.arange(12), np.arange(0), tuple(f"g{i}" for i in range(12)))
    features = handcrafted.textures(images.pixels)
    for name in (FOREST, "DeepFusion:test_resnet"):
        run = Run(architecture=name, optimizer="none")
        [(_, fitted)] = fit_classical(
            architecture(name),
            Prepared(None, features),
            images,
            [(run, fold)],
            tiny_recipe(),  # type: ignore[arg-type]
        )
        assert isinstance(fitted, Fitted)
        assert (fitted.probability.argmax(axis=1) == images.label.numpy()).all()
        assert fitted.estimator is not None
