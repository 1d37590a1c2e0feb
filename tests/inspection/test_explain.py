"""Maps of relevance: Grad-CAM by its closed form, the same for every batch and call, and the command on bad input."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.fake import speckle, tiny_recipe, write_busi, write_class_folders
from torch import Tensor, nn
from torch.nn import functional

from sonobreast.cli import _call
from sonobreast.errors import SonobreastError
from sonobreast.inspection.attribution import METHODS, explained, relevance
from sonobreast.inspection.evaluate import find_runs
from sonobreast.inspection.explain import explain_runs
from sonobreast.inspection.randomised import STEPS, randomised
from sonobreast.models.zoo import load_backbone
from sonobreast.records import read_json, read_table
from sonobreast.training.classical import handcrafted_backbone
from sonobreast.training.fit import TrainedNetwork, load_run
from sonobreast.training.study import run_study

SIZE = 64


@pytest.fixture(scope="module")
def study(tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    base = tmp_path_factory.mktemp("explain")
    data = write_busi(base / "own")
    recipe = tiny_recipe(
        {
            "data.subsample": None,
            "split": {"kind": "kfold", "folds": 2, "validation": 0.3},
            "model.architectures": ["joint:test_resnet"],
            "model.backbone": "finetune",
            "segmentation": {"channels": [8, 8, 8], "shortcuts": 8},
            "training.epochs": 1,
            "training.optimizers": ["adam"],
            "inference.flips": True,
            "preprocess.size": SIZE,
        }
    )
    run_study(recipe, data, str(tiny_weights), base / "study", images=False)
    return base / "study", data


def linear(weights: Path, name: str = "test_resnet", classes: int = 3, *, flips: bool = False) -> TrainedNetwork:
    torch.manual_seed(0)
    backbone = load_backbone(name, str(weights), image_size=SIZE)
    return TrainedNetwork(backbone, nn.Linear(backbone.features, classes), flips=flips).eval()


def images(n: int = 3) -> Tensor:
    return torch.randn(n, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("target", [0, 2])
def test_gradcam_of_a_pooled_linear_head_is_the_class_activation_map(tiny_weights: Path, target: int) -> None:
    """With logit = w . mean(A) every gradient is w / (h w): Grad-CAM is relu(sum_k w_k A_k) / (h w) (Zhou 2016)."""
    network = linear(tiny_weights)
    image = images(1)
    with torch.no_grad():
        network.head.weight[0].abs_()  # type: ignore[union-attr,index,operator]
        network.head.weight[2].abs_().neg_()  # type: ignore[union-attr,index,operator]
        maps = network.backbone.network.forward_features(image)  # type: ignore[operator]
        weight = network.head.weight[target]  # type: ignore[union-attr,index]
        cam = (weight[:, None, None] * maps[0]).sum(0).clamp(min=0) / (maps.shape[2] * maps.shape[3])  # type: ignore[operator]
        wanted = functional.interpolate(cam[None, None], (SIZE, SIZE), mode="bilinear", align_corners=False)[0, 0]
    found = relevance(explained(network, SIZE), "gradcam", image, target)
    assert (found.max() > 0) == (target == 0)  # what speaks against the class is not shown
    assert np.allclose(found, wanted.numpy(), rtol=1e-4, atol=1e-7)


def test_gradcam_of_a_cut_network_reads_the_last_stage_that_is_used(tiny_weights: Path) -> None:
    network = linear(tiny_weights / "partial")
    of = explained(network, SIZE)
    assert of.layer is network.backbone.network.get_submodule("layer3")
    assert relevance(of, "gradcam", images(1), 0).shape == (SIZE, SIZE)


@pytest.mark.parametrize("method", ["gradcam", "smoothgrad", "occlusion"])
def test_a_map_is_the_same_at_every_call_and_mirrored_with_the_image(tiny_weights: Path, method: str) -> None:
    of = explained(linear(tiny_weights, flips=True), SIZE)
    image = images(1)
    state = torch.random.get_rng_state()
    once = relevance(of, method, image, 1)
    assert (torch.random.get_rng_state() == state).all()
    assert (once == relevance(of, method, image, 1)).all()
    assert once.min() >= 0
    assert np.isfinite(once).all()
    if method != "occlusion":  # its squares begin at the left
        assert np.allclose(relevance(of, method, image.flip(3), 1), once[:, ::-1], rtol=1e-3, atol=1e-6)


def test_occlusion_finds_the_square_that_matters() -> None:
    class Corner(nn.Module):
        """The second class is likely where the lower right quarter is bright."""

        flips = False

        def forward(self, x: Tensor) -> Tensor:
            bright = x[:, :, SIZE // 2 :, SIZE // 2 :].mean((1, 2, 3))
            return torch.stack([-bright, bright], dim=1)

    image = torch.zeros(1, 3, SIZE, SIZE)
    image[:, :, SIZE // 2 :, SIZE // 2 :] = 4.0
    of = explained(linear_like(Corner()), SIZE)
    found = relevance(of, "occlusion", image, 1)
    assert found[SIZE // 2 + 8 :, SIZE // 2 + 8 :].min() > 0
    assert found[: SIZE // 4, : SIZE // 4].max() == pytest.approx(0.0, abs=1e-6)


def linear_like(module: nn.Module) -> TrainedNetwork:
    """A network whose logits are those of a module of its own."""

    class Stub(nn.Module):
        network = nn.Identity()
        decoder = None
        cut = None

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = module(x)
            return out

    return TrainedNetwork(Stub(), nn.Identity())  # type: ignore[arg-type]


def test_what_is_not_applicable_says_why(tiny_weights: Path) -> None:
    forest = explained(TrainedNetwork(handcrafted_backbone(tiny_recipe({}), shape=True), nn.Identity()), SIZE)
    assert set(forest.why_not) == set(METHODS)
    torch.manual_seed(0)
    vit = load_backbone("test_vit", str(tiny_weights), image_size=160)
    of = explained(TrainedNetwork(vit, nn.Linear(vit.features, 3)).eval(), 160)
    assert set(of.why_not) == {"gradcam", "mask"}
    assert relevance(of, "smoothgrad", torch.randn(1, 3, 160, 160), 0).shape == (160, 160)


def test_a_blank_image_has_maps_without_nan(study: tuple[Path, Path]) -> None:
    network, recipe, _ = load_run(find_runs([study[0]], None)[0])
    of = explained(network, recipe.preprocess.size)
    assert not of.why_not
    for method in METHODS:
        assert np.isfinite(relevance(of, method, torch.zeros(1, 3, SIZE, SIZE), 0)).all()


def test_randomised_weights_are_the_same_values_elsewhere(tiny_weights: Path) -> None:
    network = linear(tiny_weights)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    changed = []
    for step in STEPS:
        other = randomised(network, step, images())
        assert not other.training
        own = dict(other.named_parameters())
        for k, p in network.named_parameters():
            assert torch.equal(own[k].flatten().sort().values, p.flatten().sort().values)
        changed.append({k for k, p in network.named_parameters() if p.numel() > 99 and not torch.equal(own[k], p)})
        assert torch.isfinite(other(images())).all()
    assert changed[0] < changed[1] < changed[2]
    assert all(k.startswith("head") for k in changed[0])
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert torch.equal(
        randomised(network, "all", images(), seed=3)(images()), randomised(network, "all", images(), seed=3)(images())
    )


def test_what_comes_before_randomised_weights_stays_as_it_was_trained(tiny_weights: Path) -> None:
    network = linear(tiny_weights)
    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms
    for norm in norms:  # statistics of a whole training set are not those of a few images
        torch.nn.init.constant_(norm.running_mean, 0.3)
    given, kept, new = images(), [], []
    for step in STEPS:
        other = randomised(network, step, given)
        own = [m for m in other.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        same = [torch.equal(a.running_mean, b.running_mean) for a, b in zip(norms, own, strict=True)]
        kept.append(sum(same))
        new.append(len(same) - sum(same))
        assert torch.equal(other.backbone(given), network.backbone(given)) == (step == "head")
    assert new[0] == 0
    assert kept[1] > 0 < new[1]
    assert kept[2] == 0


def test_of_a_cut_network_only_what_is_used_is_randomised(tiny_weights: Path) -> None:
    network = linear(tiny_weights / "partial")
    used = network.backbone.used_tensors()
    named = dict(network.backbone.network.named_parameters())
    assert set(named) - set(used)
    own = dict(randomised(network, "head and upper half", images()).backbone.network.named_parameters())
    changed = {k for k, p in named.items() if not torch.equal(own[k], p)}
    assert changed
    assert changed < set(used)


def test_the_command_scores_the_test_images_of_each_fold(study: tuple[Path, Path], tmp_path: Path) -> None:
    out, data = study
    arguments = ["explain", out, "--data", data, "--out", tmp_path / "e", "--methods", "gradcam,mask", "--limit", "6"]
    assert _call(list(map(str, arguments)), debug=True) == 0
    rows = read_table(tmp_path / "e" / "explanations.csv")
    tested = {
        (r["run"], r["image"])
        for run in find_runs([out], None)
        for r in read_table(run / "predictions.csv")
        if r["subset"] == "test"
    }
    assert {(r["run"], r["image"]) for r in rows} <= tested
    assert len({r["image"] for r in rows}) == 6
    assert {r["target"] for r in rows} == {"malignant"}
    for r in rows:
        assert (r["area"] == "") == (r["label"] == "normal")
        if r["overlay"]:
            picture = Image.open(tmp_path / "e" / r["overlay"])
            original = Image.open(data / r["image"])
            assert (picture.height, picture.width) == (original.height, 2 * original.width + 78)
    found = read_json(tmp_path / "e" / "explain.json")
    assert found["about"]["flips"] is True
    assert {s["step"] for s in found["sanity"]} == set(STEPS)
    page = (tmp_path / "e" / "explain.html").read_text(encoding="utf-8")
    assert "http" not in page
    assert "Does the map lie on the lesion?" in page


def test_nobody_explains_what_it_learnt_whatever_the_files_are_called(study: tuple[Path, Path], tmp_path: Path) -> None:
    out, data = study
    names = {}
    for label in ("benign", "malignant", "normal"):
        (tmp_path / "moved" / label).mkdir(parents=True)
        for i, file in enumerate(sorted(f for f in (data / label).glob("*.png") if "_mask" not in f.name)):
            shutil.copy(file, tmp_path / "moved" / label / f"scan-{i}.png")
            names[f"{label}/scan-{i}.png"] = f"{label}/{file.name}"
    learnt = {
        (run.name, r["image"])
        for run in find_runs([out], None)
        for r in read_table(run / "predictions.csv")
        if r["subset"] != "test"
    }
    said: list[str] = []
    run = find_runs([out], None)[0]
    explain_runs(run, tmp_path / "one", data=tmp_path / "moved", methods=("mask",), limit=100, say=said.append)
    rows = read_table(tmp_path / "one" / "explanations.csv")
    assert len({r["image"] for r in rows}) == len(names) - sum(r == run.name for r, _ in learnt)
    assert not {(r["run"], names[r["image"]]) for r in rows} & learnt
    assert any("no run that was given has tested them" in text for text in said)
    other = write_busi(tmp_path / "other", seed=7)  # the very same names, other pictures
    explain_runs(run, tmp_path / "two", data=other, methods=("mask",), limit=100)
    rows = read_table(tmp_path / "two" / "explanations.csv")
    assert len({r["image"] for r in rows}) == len(names)


def test_the_same_seed_gives_the_same_pictures(study: tuple[Path, Path], tmp_path: Path) -> None:
    for name in ("a", "b"):
        explain_runs(study[0], tmp_path / name, data=study[1], methods=("smoothgrad",), limit=2, seed=5)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a" / "overlays").rglob("*.png"))
    assert len(files) == 2
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)


def test_one_image_and_one_that_cannot_be_read(
    study: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad, blank = tmp_path / "scan.png", tmp_path / "bad.png", tmp_path / "blank.png"
    Image.fromarray(speckle(3)[0]).save(good)
    bad.write_bytes(b"no image")
    Image.new("L", (70, 50)).save(blank)
    methods = ("gradcam", "smoothgrad", "mask")
    explain_runs(study[0], tmp_path / "e", images=[good, bad, blank], methods=methods, target="predicted")
    found = read_json(tmp_path / "e" / "explain.json")
    assert found["localisation"] == []
    assert "not applicable" in found["why_not_scored"]
    assert "bad.png" in found["problems"][0]
    rows = read_table(tmp_path / "e" / "explanations.csv")
    assert {r["image"] for r in rows} == {"scan.png", "blank.png"}
    with pytest.raises(SonobreastError, match=r"bad\.png"):
        explain_runs(study[0], tmp_path / "f", images=[bad], methods=methods)


def test_images_without_masks_are_explained_and_not_scored(study: tuple[Path, Path], tmp_path: Path) -> None:
    data = write_class_folders(tmp_path / "data", {"benign": 2, "malignant": 2})
    explain_runs(study[0], tmp_path / "e", data=data, methods=("gradcam",), limit=3)
    found = read_json(tmp_path / "e" / "explain.json")
    assert "not applicable" in found["why_not_scored"]
    assert found["methods"][0]["seconds"] > 0


def test_questions_that_have_no_answer(study: tuple[Path, Path], tmp_path: Path) -> None:
    out, data = study
    for options, words in (
        ({"data": data, "target": "cyst"}, "cyst"),
        ({"data": data, "methods": ("lime",)}, "lime"),
        ({"data": data, "methods": ()}, "none"),
        ({}, "image files or a data set"),
        ({"data": data, "limit": 0}, "limit"),
    ):
        with pytest.raises(SonobreastError, match=words):
            explain_runs(out, tmp_path / "e", **options)  # type: ignore[arg-type]


def test_without_a_malignant_class_the_prediction_is_explained(study: tuple[Path, Path], tmp_path: Path) -> None:
    """A run whose classes have other names: the order of the logits is all that is left."""
    other = tmp_path / "study"
    shutil.copytree(study[0], other)
    run = find_runs([other], None)[0]
    text = (run / "config.yaml").read_text(encoding="utf-8")
    (run / "config.yaml").write_text(text.replace("- benign\n- malignant\n- normal", "- a\n- b\n- c"), encoding="utf-8")
    Image.fromarray(speckle(3)[0]).save(tmp_path / "scan.png")
    explain_runs(run, tmp_path / "e", images=[tmp_path / "scan.png"], methods=("gradcam",))
    row = read_table(tmp_path / "e" / "explanations.csv")[0]
    assert row["target"] == row["predicted"] in "abc"
