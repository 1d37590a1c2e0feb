"""Weights arrive whole or not at all; what covers a network in part is cut where it says."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from tests.fake import before, write_weights

from sonobreast.errors import SonobreastError
from sonobreast.models.zoo import load_backbone, restore_backbone, tensors_of_last_stages, timm_name

NAMES = ("test_resnet", "test_efficientnet", "test_vit")
SIZE = {"test_resnet": 64, "test_efficientnet": 64, "test_vit": 160}


def pictures(name: str, n: int = 3) -> torch.Tensor:
    return torch.rand(n, 3, SIZE[name], SIZE[name], generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("name", "meant"), [("ResNet50V3", "ResNet50V2"), ("MobilNet", "Mob")])
def test_unknown_network_names_the_nearest(name: str, meant: str) -> None:
    with pytest.raises(SonobreastError, match="did you mean") as caught:
        load_backbone(name, "none")
    assert meant.lower() in caught.value.what.lower().split("did you mean")[1]


@pytest.mark.parametrize("name", NAMES)
def test_whole_weights(name: str, tiny_weights: Path) -> None:
    backbone = load_backbone(name, str(tiny_weights), image_size=SIZE[name])
    file = load_file(tiny_weights / f"{name}.safetensors")
    state = backbone.network.state_dict()
    assert all(torch.equal(state[k], v) for k, v in file.items())
    assert (backbone.cut, backbone.coverage.share, backbone.coverage.missing) == (None, 1.0, ())
    assert (backbone.coverage.source, backbone.coverage.licence) == ("folder", "made for a test")
    assert backbone.mean == (0.485, 0.456, 0.406)
    assert not backbone.training
    reference = timm.create_model(name, num_classes=0).eval()
    reference.load_state_dict(file)
    with torch.inference_mode():
        torch.testing.assert_close(backbone(pictures(name)), reference(pictures(name)), atol=1e-6, rtol=1e-6)
    assert backbone(pictures(name)).shape == (3, backbone.features)


@pytest.mark.parametrize("name", NAMES)
def test_partial_weights_are_cut_after_the_last_covered_stage(name: str, tiny_weights: Path) -> None:
    folder = tiny_weights / "partial"
    backbone = load_backbone(name, str(folder), image_size=SIZE[name])
    file = load_file(folder / f"{name}.safetensors")
    stages = {"test_resnet": "layer3", "test_efficientnet": "blocks.3", "test_vit": "blocks.4"}
    assert backbone.coverage.cut_after == stages[name]
    # The reference: the uncovered tensors are made useless, so that one that is used would be seen.
    reference = timm.create_model(name, num_classes=0).eval()
    state = {
        k: torch.full_like(v, float("nan")) if v.is_floating_point() else v for k, v in reference.state_dict().items()
    }
    reference.load_state_dict({**state, **file})
    with torch.inference_mode():
        maps = reference.forward_intermediates(pictures(name), norm=False, intermediates_only=True)
        found = backbone(pictures(name))
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found, maps[backbone.cut].mean((2, 3)), atol=1e-6, rtol=1e-6)
    whole = timm.create_model(name, num_classes=0)
    total = sum(p.numel() for p in whole.parameters())
    given = sum(p.numel() for k, p in whole.named_parameters() if k in file)
    assert backbone.coverage.share == pytest.approx(given / total)
    assert set(backbone.coverage.missing) == {
        k for k in whole.state_dict() if k not in file and not k.endswith("num_batches_tracked")
    }
    assert f"{given / total:.0%}" in backbone.coverage.sentence()
    assert stages[name] in backbone.coverage.sentence()
    assert set(backbone.used_tensors()) <= set(file)


def test_partial_weights_without_a_cut(tiny_weights: Path) -> None:
    backbone = load_backbone("test_resnet", str(tiny_weights / "partial"), cut_uncovered=False, image_size=64)
    assert backbone.cut is None
    assert all(k.startswith("layer4.") for k in backbone.coverage.missing)
    assert 0 < backbone.coverage.share < 1


def test_one_lost_tensor_moves_the_cut(tmp_path: Path) -> None:
    write_weights(tmp_path, "test_resnet", keep=before("layer2.0.conv1.weight"))
    assert load_backbone("test_resnet", str(tmp_path), image_size=64).coverage.cut_after == "layer1"


def test_lost_batch_norm_statistics_are_missed(tmp_path: Path) -> None:
    write_weights(tmp_path, "test_resnet", keep=before("layer4.0.bn1.running_mean"))
    backbone = load_backbone("test_resnet", str(tmp_path), image_size=64)
    assert backbone.coverage.missing == ("layer4.0.bn1.running_mean",)
    assert backbone.coverage.cut_after == "layer3"


def test_counters_of_batch_norm_may_be_left_out(tmp_path: Path) -> None:
    write_weights(tmp_path, "test_resnet", keep=lambda k: not k.endswith("num_batches_tracked"))
    assert load_backbone("test_resnet", str(tmp_path), image_size=64).coverage.missing == ()


def test_nothing_to_cut_after(tmp_path: Path) -> None:
    write_weights(tmp_path, "test_resnet", keep=before("conv1"))
    with pytest.raises(SonobreastError, match="no stage to cut after") as caught:
        load_backbone("test_resnet", str(tmp_path), image_size=64)
    assert "uncovered" in caught.value.remedy


def test_half_precision_is_taken(tmp_path: Path) -> None:
    state = write_weights(tmp_path, "test_resnet")
    save_file({k: v.half() if v.ndim == 4 else v for k, v in state.items()}, tmp_path / "test_resnet.safetensors")
    backbone = load_backbone("test_resnet", str(tmp_path), image_size=64)
    assert all(p.dtype == torch.float32 for p in backbone.network.parameters())
    assert backbone.coverage.share == 1.0


# Weights that do not fit


def spoil(folder: Path, **changes: Any) -> Path:
    state = write_weights(folder, "test_resnet")
    for key, change in changes.items():
        state[key.replace("__", ".")] = change
    save_file(state, folder / "test_resnet.safetensors")
    return folder


def refused(folder: Path, said: str) -> SonobreastError:
    with pytest.raises(SonobreastError, match=said) as caught:
        load_backbone("test_resnet", str(folder), image_size=64)
    assert caught.value.file is not None
    assert Path(caught.value.file).is_relative_to(folder)
    assert caught.value.remedy
    return caught.value


def test_unused_tensors_are_an_error_and_are_listed(tmp_path: Path) -> None:
    error = refused(spoil(tmp_path, encoder__x=torch.zeros(1), encoder__y=torch.zeros(1)), "2 tensors")
    assert "encoder.x" in error.what
    assert "encoder.y" in error.what


def test_all_tensors_renamed(tmp_path: Path) -> None:
    state = write_weights(tmp_path, "test_resnet")
    save_file({f"model.{k}": v for k, v in state.items()}, tmp_path / "test_resnet.safetensors")
    refused(tmp_path, f"{len(state)} tensors .* no place")


def test_another_shape(tmp_path: Path) -> None:
    assert "conv1.0.weight" in refused(spoil(tmp_path, conv1__0__weight=torch.zeros(1, 1, 1, 1)), "another shape").what


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_no_numbers(tmp_path: Path, value: float) -> None:
    state = write_weights(tmp_path, "test_resnet")
    key = "conv1.0.weight"
    weight = state[key].clone()
    weight.view(-1)[3] = value
    refused(spoil(tmp_path, **{key: weight}), f"no numbers, first {key}")


def test_empty_file_of_weights(tmp_path: Path) -> None:
    write_weights(tmp_path, "test_resnet", keep=lambda key: False)
    refused(tmp_path, "is empty")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_file(tmp_path: Path, share: float) -> None:
    write_weights(tmp_path, "test_resnet")
    file = tmp_path / "test_resnet.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    refused(tmp_path, "cannot be read")


def test_pickle_is_not_opened(tmp_path: Path) -> None:
    state = write_weights(tmp_path, "test_resnet")
    torch.save(state, tmp_path / "test_resnet.safetensors")
    refused(tmp_path, "cannot be read")


def test_missing_card(tmp_path: Path) -> None:
    write_weights(tmp_path, "test_resnet")
    (tmp_path / "test_resnet.json").unlink()
    assert "mean" in refused(tmp_path, "no card").remedy


@pytest.mark.parametrize(
    "change",
    [
        {"model": "test_vit"},
        {"mean": [0.5, 0.5]},
        {"mean": "none"},
        {"mean": [float("nan"), 0.5, 0.5]},
        {"std": None},
        {"std": [0.2, 0.2, 0.0]},
        {"std": [0.2, 0.2, -0.2]},
        {"std": [0.2, 0.2, float("inf")]},
    ],
)
def test_card_that_does_not_fit(tmp_path: Path, change: dict[str, Any]) -> None:
    write_weights(tmp_path, "test_resnet", **change)
    refused(tmp_path, "card")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '{"model": "test_resnet"}'])
def test_damaged_card(tmp_path: Path, text: str) -> None:
    write_weights(tmp_path, "test_resnet")
    (tmp_path / "test_resnet.json").write_text(text)
    refused(tmp_path, "card")


def test_folder_without_these_weights(tmp_path: Path) -> None:
    write_weights(tmp_path, "test_vit")
    assert "test_vit" in refused(tmp_path, "no weights for test_resnet").what
    with pytest.raises(SonobreastError, match="no such folder"):
        load_backbone("test_resnet", str(tmp_path / "nowhere"))


def test_weights_of_another_network_under_this_name(tmp_path: Path) -> None:
    write_weights(tmp_path, "test_vit")
    write_weights(tmp_path, "test_resnet")
    shutil.copy(tmp_path / "test_vit.safetensors", tmp_path / "test_resnet.safetensors")
    refused(tmp_path, "no place in test_resnet")


def test_image_size_the_network_cannot_take(tiny_weights: Path) -> None:
    with pytest.raises(SonobreastError, match="cannot take images of 50 px") as caught:
        load_backbone("test_vit", str(tiny_weights), image_size=50)
    assert "160" in caught.value.remedy


def test_hub_off_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(SonobreastError, match="did not arrive") as caught:
        load_backbone("test_resnet", "hub")
    assert "--weights" in caught.value.remedy


def test_no_weights() -> None:
    backbone = load_backbone("test_resnet", "none", image_size=64)
    assert backbone.coverage.share == 0.0
    assert backbone.coverage.sentence() == "no pre-trained weights"
    assert backbone.cut is None


# Saving, stages


@pytest.mark.parametrize("part", ["", "partial"])
def test_restore(tiny_weights: Path, tmp_path: Path, part: str) -> None:
    one = load_backbone("test_resnet", str(tiny_weights / part), image_size=64)
    two = load_backbone("test_resnet", str(tiny_weights / part), image_size=64)
    with torch.no_grad():
        for p in two.network.parameters():
            p.add_(1.0)
    assert two.sha256() != one.sha256()
    restore_backbone(two, one.used_tensors(), tmp_path)
    assert two.sha256() == one.sha256()
    torch.testing.assert_close(two(pictures("test_resnet")), one(pictures("test_resnet")))
    fewer = dict(list(one.used_tensors().items())[1:])
    with pytest.raises(SonobreastError, match="1 too few"):
        restore_backbone(two, fewer, tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_last_stages_grow(name: str) -> None:
    network = timm.create_model(name, num_classes=0)
    info: Any = network.feature_info
    count = len(info if isinstance(info, list) else info.info)
    sets = [set(tensors_of_last_stages(network, n)) for n in range(1, count + 1)]
    assert all(a < b for a, b in itertools.pairwise(sets))
    assert sets[-1] == set(network.state_dict())
    for n in (0, count + 1):
        with pytest.raises(SonobreastError, match=f"{count} stages"):
            tensors_of_last_stages(network, n)


# Real weights


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "percent", "cut", "missing"),
    [
        ("ResNet50V2", "36%", "stages.2", 50),
        ("MobileNetV2", "100%", None, 0),
        ("DenseNet169", "100%", None, 0),
        ("ResNet-18", "25%", "layer3", None),
        ("ResNet-50", "36%", "layer3", 50),
    ],
)
def test_real_weights(real_weights: Path, name: str, percent: str, cut: str | None, missing: int | None) -> None:
    backbone = load_backbone(name, str(real_weights))
    card = json.loads((real_weights / f"{timm_name(name)}.json").read_text())
    assert f"{backbone.coverage.share:.0%}" == percent
    assert backbone.coverage.cut_after == cut
    if missing is not None:
        assert len(backbone.coverage.missing) == missing
    assert backbone.mean == tuple(card["mean"])
    with torch.inference_mode():
        features = backbone(torch.rand(1, 3, 224, 224))
    assert features.shape == (1, backbone.features)
    assert torch.isfinite(features).all()
