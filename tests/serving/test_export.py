"""A bundle says what the runs say, and what cannot be exported is refused in words."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from tests.fake import tiny_recipe
from torch import Tensor

from sonobreast.config import Head, Segmentation
from sonobreast.data import manifest as manifests
from sonobreast.data.preprocess import decode
from sonobreast.errors import SonobreastError
from sonobreast.evaluation.external import averaged
from sonobreast.evaluation.predictions import read_predictions
from sonobreast.inspection.evaluate import find_runs
from sonobreast.inspection.predict import predict
from sonobreast.models.heads import build_head
from sonobreast.models.joint import JointHead
from sonobreast.models.listing import list_models
from sonobreast.models.networks import NETWORKS, Entry
from sonobreast.models.zoo import load_backbone, spread_levels
from sonobreast.serving import export as exports
from sonobreast.serving.bundle import Bundle
from sonobreast.serving.export import export, onnx_bytes
from sonobreast.serving.onnx_file import inspect
from sonobreast.serving.predictor import load_predictor
from sonobreast.serving.self_test import check
from sonobreast.training.fit import TrainedNetwork
from sonobreast.training.graph import Together, together


def test_an_ensemble_says_what_its_runs_say(study: tuple[Path, Path], ensemble: Bundle) -> None:
    out, data = study
    runs = find_runs([out], "joint:test_resnet-adam")
    found = manifests.build(data)
    masks: dict[int, np.ndarray] = {}
    wanted = predict(runs, found.root, found.cases, take_mask=masks.__setitem__)
    predictor = load_predictor(ensemble)
    for i, case in enumerate(found.cases):
        prediction = predictor.predict(found.path(case))
        np.testing.assert_allclose(prediction.probability, wanted.probability[i], atol=1e-5)
        assert prediction.mask is not None
        assert (prediction.mask != masks[i]).mean() < 1e-3
    assert wanted.probability.std(axis=0).max() > 1e-3  # a constant would agree, too
    assert ensemble.about.parity.largest_difference < 1e-5
    assert ensemble.about.parity.images == len(found.cases)
    assert not ensemble.about.parity.simulated


def test_what_is_known_is_in_the_bundle(study: tuple[Path, Path], ensemble: Bundle, single: Bundle) -> None:
    runs = find_runs([study[0]], "joint:test_resnet-adam")
    import pandas as pd

    table = pd.concat([read_predictions(r / "predictions.csv") for r in runs])
    validation = averaged(table[table["subset"] == "validation"])
    [point] = ensemble.about.thresholds
    cancers = validation[validation["label"] == "malignant"]["p_malignant"]
    assert (cancers >= point.value).mean() >= 0.95
    assert point.value in set(cancers)
    assert (point.cancers, point.images) == (len(cancers), len(validation))
    assert ensemble.about.outputs == ["logits", "features", "cam", "mask"]
    assert single.about.outputs == ["logits", "features", "cam"]
    assert single.about.mask_threshold is None
    assert all(m.flips for m in ensemble.about.members)
    assert [m.run for m in ensemble.about.members] == [r.name for r in runs]
    assert ensemble.about.metrics is not None
    assert {"estimate", "low", "high"} <= set(ensemble.about.metrics["intervals"]["accuracy"])
    assert ensemble.about.training["images"] == 21
    assert "not a medical device" in (ensemble.folder / "model_card.md").read_text()


def members() -> list[TrainedNetwork]:
    made = []
    for name in ("test_resnet", "joint:test_efficientnet"):
        backbone = load_backbone(name, "none", image_size=64)
        torch.manual_seed(len(made))
        head = (
            JointHead(
                backbone.features,
                backbone.stages,
                3,
                Head(hidden=(), dropout=0.0),
                Segmentation(channels=(8, 8, 8), shortcuts=8),
                "unet",
            )
            if backbone.decoder
            else build_head(backbone.features, 3, Head(hidden=(8,), dropout=0.2), standardise=True)
        )
        made.append(TrainedNetwork(backbone, head, flips=True).eval())
    return made


def run_onnx(whole: Together, pixels: Tensor) -> dict[str, np.ndarray]:
    content = onnx_bytes(whole, pixels.shape[-1])
    inspect(content, "model.onnx")
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    assert [o.name for o in session.get_outputs()] == whole.outputs
    return dict(zip(whole.outputs, session.run(None, {"pixels": pixels.numpy()}), strict=True))


def run_torch(whole: Together, pixels: Tensor) -> dict[str, np.ndarray]:
    with torch.inference_mode():
        return dict(zip(whole.outputs, (v.numpy() for v in whole(pixels)), strict=True))


@pytest.mark.parametrize("run", [run_torch, pytest.param(run_onnx, marks=pytest.mark.slow)])
def test_members_of_other_scalings_and_maps_are_one_graph(
    run: Callable[[Together, Tensor], dict[str, np.ndarray]],
) -> None:
    unit, symmetric = (tiny_recipe({"preprocess": {"size": 64, "scaling": s}}) for s in ("unit", "symmetric"))
    [one, two] = members()
    whole = together([(one, unit), (two, symmetric)])
    pixels = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found = run(whole, pixels)
    with torch.inference_mode():
        wanted = (one(pixels).softmax(1) + two((pixels - 0.5) / 0.5).softmax(1)) / 2
        mask = two.segment((pixels - 0.5) / 0.5)
        stages = one.backbone.network.forward_intermediates(  # type: ignore[operator]
            pixels, indices=spread_levels(one.backbone), intermediates_only=True, norm=False
        )
        first = torch.cat([m.mean((2, 3)) for m in stages], 1)
        second = torch.cat([m.mean((2, 3)) for m in two.backbone.maps((pixels - 0.5) / 0.5)[1]], 1)
    np.testing.assert_allclose(np.exp(found["logits"]), wanted.numpy(), atol=1e-6)
    assert mask is not None
    np.testing.assert_allclose(found["mask"], mask.sigmoid().numpy(), atol=1e-6)
    np.testing.assert_allclose(found["features"], torch.cat([first, second], 1).numpy(), atol=1e-5)
    assert [m.features for m in whole.cards] == [first.shape[1], second.shape[1]]
    alone = [together([(one, unit)]), together([(two, symmetric)])]
    with torch.inference_mode():
        cams = [dict(zip(w.outputs, w(pixels), strict=True))["cam"] for w in alone]
    finest = max((c.shape[2:] for c in cams), key=lambda s: s[0] * s[1])
    mean = sum(torch.nn.functional.interpolate(c, finest, mode="bilinear") for c in cams) / 2
    np.testing.assert_allclose(found["cam"], mean.numpy(), atol=1e-5 * float(mean.max()))
    assert found["cam"].min() >= 0.0 < found["cam"].max()


def test_maps_and_masks_of_the_mirror_image_are_mirrored() -> None:
    whole = together([(members()[1], tiny_recipe({"preprocess": {"size": 64, "scaling": "unit"}}))])
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        one, other = (dict(zip(whole.outputs, whole(p), strict=True)) for p in (pixels, pixels.flip(3)))
    torch.testing.assert_close(one["logits"], other["logits"], atol=1e-5, rtol=1e-5)
    for name in ("cam", "mask"):
        torch.testing.assert_close(one[name], other[name].flip(3), atol=1e-5, rtol=1e-4)
        assert not torch.allclose(one[name], other[name], rtol=1e-3, atol=0.0)


def test_the_number_of_images_is_free(single: Bundle) -> None:
    content = (single.folder / "model.onnx").read_bytes()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    pixels = np.random.default_rng(0).random((5, 3, 64, 64), np.float32)
    together_logits = session.run(["logits"], {"pixels": pixels})[0]
    alone = [session.run(["logits"], {"pixels": pixels[i : i + 1]})[0][0] for i in range(5)]
    np.testing.assert_allclose(together_logits, np.stack(alone), atol=1e-5)


def test_what_scikit_learn_fitted_is_refused(study: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(SonobreastError, match="scikit-learn"):
        export(find_runs([study[0]], "RandomForest-none"), tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_runs_that_differ_are_refused(study: tuple[Path, Path], tmp_path: Path) -> None:
    runs = find_runs([study[0]], "test_resnet-adam")
    copy = tmp_path / "study"
    shutil.copytree(study[0], copy)
    other = copy / "runs" / runs[1].name / "config.yaml"
    text = other.read_text()
    for old, new, why in (
        ("aspect: stretch", "aspect: pad", "prepared"),
        ("- normal\n", "- healthy\n", "classes"),
        ("data_fingerprint: ", "data_fingerprint: f", "training data are others"),
    ):
        assert old in text
        other.write_text(text.replace(old, new, 1))
        with pytest.raises(SonobreastError, match=why):
            export([runs[0], other.parent], tmp_path / "b")


def test_a_graph_that_says_something_else_is_not_written(
    study: tuple[Path, Path], single: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "onnx_bytes", lambda *_: (single.folder / "model.onnx").read_bytes())
    real = exports.probabilities
    monkeypatch.setattr(exports, "probabilities", lambda m, w, b: real(m, w, b) + np.array([0.002, -0.002, 0.0]))
    with pytest.raises(SonobreastError, match="differs from PyTorch"):
        export(find_runs([study[0]], "test_resnet-adam")[:1], tmp_path / "b")
    assert not list(tmp_path.iterdir())


def test_what_fails_its_own_test_does_not_stay(
    study: tuple[Path, Path], single: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "onnx_bytes", lambda *_: (single.folder / "model.onnx").read_bytes())
    real = exports._self_test

    def another(*args: Any) -> tuple[bytes, bytes]:
        picture, expected = real(*args)
        content = json.loads(expected)
        content["probability"]["benign"] += 0.002
        return picture, json.dumps(content).encode()

    monkeypatch.setattr(exports, "_self_test", another)
    with pytest.raises(SonobreastError, match="self-test differs"):
        export(find_runs([study[0]], "test_resnet-adam")[:1], tmp_path / "b", parity_images=2)
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_over(study: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine.txt").write_text("x")
    with pytest.raises(SonobreastError, match="something already"):
        export(find_runs([study[0]], "test_resnet-adam")[:1], tmp_path / "b")


def test_without_the_images_simulated_ones_are_compared(
    study: tuple[Path, Path], single: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "onnx_bytes", lambda *_: (single.folder / "model.onnx").read_bytes())
    copy = tmp_path / "elsewhere" / "deep" / "study"
    shutil.copytree(study[0], copy)
    done = export(find_runs([copy], "test_resnet-adam")[:1], tmp_path / "b")
    assert done.bundle.about.parity.simulated
    assert check(tmp_path / "b").difference < 1e-5


def settled(network: TrainedNetwork, images: Tensor) -> TrainedNetwork:
    """With statistics of its norms from scaled images, these ones: values stay of a usual size.

    A random network whose norms know other images (unscaled ones, say) lets values grow from layer to layer: logits of
    some thousands, in which PyTorch's own float32 and float64 differ by as much as their size, and nothing can agree.
    """
    for module in network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.momentum = None  # the mean over all batches
    network.train()
    with torch.no_grad():
        network(images)
        network.segment(images)
    return network.eval()


@pytest.mark.slow
@pytest.mark.parametrize("entry", [e for e in NETWORKS if not e.classical], ids=lambda e: e.name)
def test_every_network_that_is_listed_as_exportable_is(
    entry: Entry, record_property: Callable[[str, object], None]
) -> None:
    name = entry.name
    [listed] = list_models([name], "none")
    assert listed.export.possible
    size = listed.size_px or 224 if listed.only_size else 96 if name == "InceptionV3" else 64
    backbone = load_backbone(name, "none", cut_uncovered=False, image_size=size)
    torch.manual_seed(0)
    head = (
        JointHead(backbone.features, backbone.stages, 3, Head(), Segmentation(), backbone.decoder)
        if backbone.decoder
        else build_head(backbone.features, 3, Head())
    )
    pixels = torch.rand(8, 3, size, size, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(v)[:, None, None] for v in (backbone.mean, backbone.std))
    network = settled(TrainedNetwork(backbone, head, flips=True), (pixels - mean) / std)
    recipe = tiny_recipe({"preprocess": {"size": size, "scaling": "weights"}})
    pixels = pixels[:3]
    whole = together([(network, recipe)])
    found = run_onnx(whole, pixels)
    with torch.inference_mode():
        wanted = network((pixels - mean) / std).softmax(1)
        outputs = dict(zip(whole.outputs, whole(pixels), strict=True))
    assert float(wanted.min()) > 1e-6, "saturated probabilities agree whatever the graph computes"
    record_property("largest difference", float(np.abs(np.exp(found["logits"]) - wanted.numpy()).max()))
    np.testing.assert_allclose(np.exp(found["logits"]), wanted.numpy(), atol=1e-3)
    for output in set(outputs) - {"logits"}:
        top = float(outputs[output].abs().max())
        np.testing.assert_allclose(found[output], outputs[output].numpy(), atol=1e-3 * max(top, 1e-6))


def test_real_scans_agree(real_data: Path, real_weights: Path) -> None:
    backbone = load_backbone("MobileNetV2", str(real_weights))
    torch.manual_seed(0)
    network = TrainedNetwork(backbone, build_head(backbone.features, 3, Head()), flips=True).eval()
    files = sorted((real_data / "busi" / "benign").glob("benign (1*[0-9]).png"))[:6]
    recipe = tiny_recipe({"preprocess": {"size": 224, "scaling": "weights"}})
    from sonobreast.data.preprocess import prepare

    images = np.stack([prepare(decode(f), recipe.preprocess) for f in files])
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    found = run_onnx(together([(network, recipe)]), pixels)
    mean, std = (torch.tensor(v)[:, None, None] for v in (backbone.mean, backbone.std))
    with torch.inference_mode():
        wanted = network((pixels - mean) / std).softmax(1)
    np.testing.assert_allclose(np.exp(found["logits"]), wanted.numpy(), atol=1e-4)
