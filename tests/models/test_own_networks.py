"""Networks that timm lacks behave as timm's do, and are what their papers say as far as these say it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from tests.fake import write_weights
from torch import nn

from sonobreast.errors import SonobreastError
from sonobreast.models import zoo
from sonobreast.models.own_networks import NEVER_PRETRAINED, WEIGHTS_OF
from sonobreast.models.zoo import fresh_network, load_backbone, tensors_of_last_stages

NAMES = ("lenet_modified", "dscnet_fc", "googlenet_tv", "efficientnet_b0_csa")


def pictures(size: int = 64, n: int = 2) -> torch.Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def stages(network: Any) -> list[dict[str, Any]]:
    info = network.feature_info
    return info if isinstance(info, list) else list(info.info)


@pytest.mark.parametrize("name", NAMES)
def test_features_and_maps(name: str) -> None:
    network: Any = timm.create_model(name, num_classes=0).eval()
    with torch.inference_mode():
        features = network(pictures())
        last, maps = network.forward_intermediates(pictures())
        early = network.forward_intermediates(
            pictures(), indices=[1], norm=False, stop_early=True, intermediates_only=True
        )
    assert features.shape == (2, network.num_features)
    assert len(maps) == len(stages(network))
    for found, info in zip(maps, stages(network), strict=True):
        assert found.shape[1] == info["num_chs"]
        assert abs(64 / found.shape[2] - info["reduction"]) < 0.15 * info["reduction"] + 3  # LeNet does not pad
    assert len(early) == 1
    torch.testing.assert_close(early[0], maps[1])
    if name != "efficientnet_b0_csa":
        torch.testing.assert_close(network.dense(last.mean((2, 3))), features)


@pytest.mark.parametrize("name", NAMES)
def test_drawn_from_a_seed_without_the_global_state(name: str) -> None:
    before = torch.get_rng_state()
    one, same, other = (fresh_network(name, seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(v, same[k]) for k, v in one.items())
    assert any(not torch.equal(v, other[k]) for k, v in one.items())
    with torch.device("meta"):
        assert set(timm.create_model(name, num_classes=0).state_dict()) == set(one)


@pytest.mark.parametrize("name", NAMES)
def test_stages_cover_the_network_in_order(name: str) -> None:
    network = timm.create_model(name, num_classes=0)
    count = len(stages(network))
    sets = [set(tensors_of_last_stages(network, n)) for n in range(1, count + 1)]
    assert all(a < b for a, b in itertools.pairwise(sets))
    assert sets[-1] == set(network.state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_its_own_and_of_another(name: str, tmp_path: Path) -> None:
    known_as = WEIGHTS_OF.get(name, name)
    state = write_weights(tmp_path, known_as)
    backbone = load_backbone(name, str(tmp_path), cut_uncovered=False, image_size=64)
    own = backbone.network.state_dict()
    assert all(torch.equal(own[k], v) for k, v in state.items())
    write_weights(tmp_path, "test_resnet")
    (tmp_path / "test_resnet.safetensors").replace(tmp_path / f"{known_as}.safetensors")
    with pytest.raises(SonobreastError, match="no place in"):
        load_backbone(name, str(tmp_path), image_size=64)


@pytest.mark.parametrize("name", sorted(NEVER_PRETRAINED))
@pytest.mark.parametrize("weights", ["hub", "none", "folder"])
def test_never_pretrained_networks_begin_without(name: str, weights: str, tmp_path: Path) -> None:
    backbone = load_backbone(name, str(tmp_path) if weights == "folder" else weights, image_size=64)
    assert backbone.coverage.sentence() == "no pre-trained weights"
    assert backbone.coverage.share == 0.0


# LeNet, DSC-Net


def test_modified_lenet_is_lenet_5_at_32_px() -> None:
    network: Any = timm.create_model("lenet_modified", num_classes=3).eval()
    with torch.inference_mode():
        maps = network.forward_intermediates(pictures(32), intermediates_only=True)
    assert [tuple(m.shape[1:]) for m in maps] == [(6, 28, 28), (16, 10, 10), (120, 1, 1)]
    # LeNet-5's weights without biases, which the batch norms bring: (5*5*3)*6, (25*6)*16, (25*16)*120, dense, norms
    expected = 75 * 6 + 150 * 16 + 400 * 120 + (120 + 1) * 84 + 2 * (6 + 16 + 120) + (84 + 1) * 3
    assert sum(p.numel() for p in network.parameters()) == expected
    assert not any(type(m) is nn.ReLU for m in network.modules())


def test_separable_network_is_counted_by_hand() -> None:
    network = timm.create_model("dscnet_fc", num_classes=0)
    widths = (32, 64, 128, 256, 512)
    expected = 27 * 32 + 2 * 32 + (512 + 1) * 256 + (256 + 1) * 128
    for a, b in itertools.pairwise(widths):
        expected += 9 * a + a * b + 2 * (a + b)  # depth-wise, point-wise, two norms
    assert sum(p.numel() for p in network.parameters()) == expected
    spatial = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert all(m.groups == m.in_channels for m in spatial[1:])


# GoogLeNet


def test_googlenet_is_torchvisions() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        reference = torchvision.models.googlenet(
            weights=None, aux_logits=False, transform_input=True, init_weights=True
        ).eval()
        for module in reference.modules():  # its own start lets every signal fade away
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
    network: Any = timm.create_model("googlenet_tv").eval()
    assert not network.load_state_dict(reference.state_dict()).missing_keys
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.inference_mode():
        wanted = reference((pictures() - mean) / std)  # torchvision turns this back into (x - 0.5) / 0.5
        own = network.pretrained_cfg
        found = network((pictures() - own["mean"][0]) / own["std"][0])
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    assert (wanted[0] - wanted[1]).abs().max() > 1e-3
    network.train()
    assert network(pictures()).shape == (2, 1000)


# CSA-Net


def test_csa_net_begins_with_the_weights_of_efficientnet_b0(tmp_path: Path) -> None:
    write_weights(tmp_path, "efficientnet_b0", licence="cc-by-nc-4.0")
    plain = load_backbone("efficientnet_b0", str(tmp_path), image_size=64)
    backbone = load_backbone("CSA-Net", str(tmp_path), cut_uncovered=False, image_size=64)
    assert backbone.cut is None
    assert all(k.startswith("global_pool.attention.") for k in backbone.coverage.missing)
    assert len(backbone.coverage.missing) == 7
    assert 0.9 < backbone.coverage.share < 1.0
    network: Any = backbone.network
    with torch.inference_mode():
        before = network.forward_features(pictures())
        torch.testing.assert_close(before, plain.network.forward_features(pictures()))  # type: ignore[operator]
        weighed = network.global_pool.attention(before)
        gain = weighed / before
        torch.testing.assert_close(backbone(pictures()), weighed.mean((2, 3)), atol=1e-6, rtol=1e-5)
    seen = gain[before.abs() > 1e-3]
    assert 0 < seen.min() < seen.max() < 1  # two gates between 0 and 1
    assert "forbids commercial use" in backbone.coverage.sentence()
    # Frozen, attention that no file gives would be noise: the network ends before it.
    assert load_backbone("CSA-Net", str(tmp_path), image_size=64).coverage.cut_after == "blocks.6"


def test_csa_net_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    original = timm.create_model

    def create(name: str, pretrained: bool = False, **settings: Any) -> Any:
        assert pretrained <= (name == "efficientnet_b0")
        network = original(name, **settings)
        if pretrained:
            with torch.no_grad():
                network.conv_stem.weight.fill_(0.25)
        return network

    monkeypatch.setattr(zoo.timm, "create_model", create)
    backbone = load_backbone("CSA-Net", "hub", cut_uncovered=False, image_size=64)
    assert (backbone.network.conv_stem.weight == 0.25).all()  # type: ignore[union-attr]
    assert len(backbone.coverage.missing) == 7
    assert backbone.coverage.source == "hub"
    assert backbone.timm_name == "efficientnet_b0_csa"
