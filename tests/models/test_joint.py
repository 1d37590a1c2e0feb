"""The joint network sees what timm's encoder sees, and both tasks reach all of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sonobreast.config import Head, Segmentation
from sonobreast.errors import SonobreastError
from sonobreast.models.joint import AttentionGate, JointHead, mask_loss
from sonobreast.models.listing import list_models
from sonobreast.models.networks import NETWORKS, Entry
from sonobreast.models.zoo import Backbone, load_backbone

SETTINGS = Segmentation(channels=(16, 8, 8), shortcuts=12)


def images(n: int = 2, size: int = 64) -> Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def head(backbone: Backbone, decoder: str = "unet", settings: Segmentation = SETTINGS) -> JointHead:
    torch.manual_seed(1)
    made = JointHead(backbone.features, backbone.stages, 3, Head(hidden=(), dropout=0.0), settings, decoder)  # type: ignore[arg-type]
    return made.eval()


# Norms before the sum, behind it, single channels with a convolution behind the last stage, five scales or four
@pytest.mark.parametrize("name", ["test_resnet", "resnet18", "resnetv2_18", "mobilenetv2_050", "test_efficientnet"])
def test_encoder_features_equal_those_of_timm(name: str) -> None:
    backbone = load_backbone(f"joint:{name}", "none", cut_uncovered=False, image_size=64)
    state = backbone.network.state_dict()
    whole = timm.create_model(name, num_classes=0).eval()
    whole.load_state_dict(state)
    stages = timm.create_model(name, features_only=True).eval()
    own = stages.state_dict()
    # timm flattens names here ("layer1.0.x" stays, "blocks.0" becomes "blocks_0" ...): same order, same shapes
    behind = len(own)
    taken = [v for k, v in state.items() if not k.startswith(("fc", "head.fc", "classifier"))][:behind]
    stages.load_state_dict(dict(zip(own, taken, strict=True)))
    with torch.inference_mode():
        pooled, maps = backbone.maps(images())
        torch.testing.assert_close(pooled, whole(images()), atol=1e-5, rtol=0)
        reference = [m for m, r in zip(stages(images()), stages.feature_info.reduction(), strict=True) if r >= 2]
        assert len(maps) == len(reference) == len(backbone.stages)
        for found, wanted in zip(maps, reference, strict=True):
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_weights_of_the_plain_network_arrive_whole(tiny_weights: Path, tmp_path: Path) -> None:
    backbone = load_backbone("joint:test_resnet", str(tiny_weights), image_size=64)
    assert backbone.coverage.share == 1.0
    given = load_file(tiny_weights / "test_resnet.safetensors")
    state = backbone.network.state_dict()
    assert all(torch.equal(state[k], v.to(state[k].dtype)) for k, v in given.items())
    save_file({**given, "decoder.0.weight": torch.zeros(1)}, tmp_path / "test_resnet.safetensors")
    (tmp_path / "test_resnet.json").write_text((tiny_weights / "test_resnet.json").read_text())
    with pytest.raises(SonobreastError, match=r"decoder\.0\.weight"):
        load_backbone("joint:test_resnet", str(tmp_path), image_size=64)


def test_a_joint_network_is_never_cut(tiny_weights: Path) -> None:
    backbone = load_backbone("joint:test_resnet", str(tiny_weights / "partial"), cut_uncovered=True, image_size=64)
    assert backbone.cut is None
    assert 0 < backbone.coverage.share < 1


@pytest.mark.slow
@pytest.mark.parametrize("entry", [e for e in NETWORKS if not e.classical], ids=lambda e: e.name)
def test_every_listed_network_segments_or_says_why_not(entry: Entry) -> None:
    name = entry.name if entry.joint else f"joint:{entry.name}"
    [listed] = list_models([entry.name], "none")
    if not listed.segment.possible:
        with pytest.raises(SonobreastError, match="cannot segment"):
            load_backbone(name, "none")
        return
    backbone = load_backbone(name, "none")
    made = head(backbone, backbone.decoder or "unet", Segmentation())
    with torch.inference_mode():
        pooled, maps = backbone.maps(images(1, 224))
        assert made.segment(images(1, 224), maps).shape == (1, 1, 224, 224)
        assert made.classify(pooled, maps).shape == (1, 3)
        torch.testing.assert_close(pooled, backbone(images(1, 224)))


@pytest.mark.parametrize("name", ["googlenet_tv", "dscnet_fc", "efficientnet_b0_csa", "efficientvim_m1"])
def test_networks_that_timm_lacks_segment_too(name: str) -> None:
    backbone = load_backbone(f"joint:{name}", "none", image_size=64)
    with torch.inference_mode():
        pooled, maps = backbone.maps(images(1))
        assert head(backbone).segment(images(1), maps).shape == (1, 1, 64, 64)
        torch.testing.assert_close(pooled, backbone(images(1)))


def test_one_scale_is_not_enough_for_a_decoder(tiny_weights: Path) -> None:
    with pytest.raises(SonobreastError, match="scale") as caught:
        load_backbone("joint:test_vit", str(tiny_weights), image_size=160)
    assert "test_vit" in caught.value.what


@pytest.mark.parametrize("decoder", ["unet", "attention"])
@pytest.mark.parametrize("size", [64, 72, 100])
def test_the_mask_has_the_size_of_the_image(tiny_weights: Path, decoder: str, size: int) -> None:
    backbone = load_backbone("joint:test_resnet", str(tiny_weights), image_size=64)
    made = head(backbone, decoder)
    with torch.inference_mode():
        pooled, maps = backbone.maps(images(3, size))
        assert made.segment(images(3, size), maps).shape == (3, 1, size, size)
        assert made.classify(pooled, maps).shape == (3, 3)


def test_every_stage_has_a_short_cut_to_the_class(tiny_weights: Path) -> None:
    backbone = load_backbone("joint:test_resnet", str(tiny_weights), image_size=64)
    made = head(backbone)
    pooled, maps = backbone.maps(images())
    leaves = [m.detach().requires_grad_() for m in maps]
    made.classify(pooled, leaves)[:, 1].sum().backward()
    assert all(m.grad is not None and bool(m.grad.any()) for m in leaves)


@pytest.mark.parametrize("decoder", ["unet", "attention"])
def test_the_mask_sees_every_stage_that_it_should(tiny_weights: Path, decoder: str) -> None:
    backbone = load_backbone("joint:test_resnet", str(tiny_weights), image_size=64)
    settings = Segmentation(channels=(8, 8, 8, 8, 8), shortcuts=4)
    made = head(backbone, decoder, settings)
    maps = [m.detach().requires_grad_() for m in backbone.maps(images())[1]]
    made.segment(images(), maps).sum().backward()
    assert all(m.grad is not None and bool(m.grad.any()) for m in maps)
    assert len(made.gates) == (len(maps) - 1 if decoder == "attention" else 0)


def test_a_gate_only_weakens() -> None:
    torch.manual_seed(0)
    gate = AttentionGate(6, 10)
    skip = torch.rand(2, 6, 8, 8)
    out = gate(skip, torch.rand(2, 10, 4, 4))
    share = out / skip
    assert bool((share > 0).all())
    assert bool((share < 1).all())
    torch.testing.assert_close(share, share[:, :1].expand_as(share))  # one weight a place, the same for all channels


def truth() -> Tensor:
    mask = torch.zeros(3, 1, 8, 8)
    mask[0, 0, 2:5, 2:5] = 1.0
    mask[2, 0, 4:, :] = 1.0
    return mask


def test_a_perfect_mask_costs_nothing_and_a_wrong_one_much() -> None:
    known = torch.ones(3, dtype=torch.bool)
    right = (2 * truth() - 1) * 40.0
    assert float(mask_loss(right, truth(), known, Segmentation())) < 1e-4
    assert float(mask_loss(-right, truth(), known, Segmentation())) > 30.0


def test_masks_that_are_not_known_teach_nothing() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 1, 8, 8, requires_grad=True)
    known = torch.tensor([True, False, True])
    loss = mask_loss(logits, truth(), known, Segmentation())
    loss.backward()
    assert logits.grad is not None
    assert not logits.grad[1].any()
    assert bool(logits.grad[0].any())
    torch.testing.assert_close(loss, mask_loss(logits[known], truth()[known], known[known], Segmentation()))
    nothing = mask_loss(logits, truth(), torch.zeros(3, dtype=torch.bool), Segmentation())
    nothing.backward()
    assert nothing.item() == 0.0


def test_the_loss_is_the_weighted_sum_of_dice_and_cross_entropy() -> None:
    torch.manual_seed(0)
    logits, known = torch.randn(3, 1, 8, 8), torch.ones(3, dtype=torch.bool)
    p = logits.sigmoid()
    dice = 1 - 2 * (p * truth()).sum() / (p.sum() + truth().sum())
    entropy = -(truth() * p.log() + (1 - truth()) * (1 - p).log()).mean()
    found = mask_loss(logits, truth(), known, Segmentation(dice=0.7, cross_entropy=2.0))
    torch.testing.assert_close(found, 0.7 * dice + 2.0 * entropy)
    torch.testing.assert_close(mask_loss(logits, truth(), known, Segmentation(dice=0.0)), entropy)
