"""The fused graph computes what the network computes; what it cannot take over is refused, not guessed."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, fx, nn

from sonobreast.models.fused import fuse
from sonobreast.models.memory import keep_freed_memory

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN")


def with_statistics(network: nn.Module) -> nn.Module:
    """Norms that a test would notice: no mean 0, spread 1, factor 1, shift 0."""
    random = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low in ((module.running_mean, -0.2), (module.running_var, 0.5), (module.bias, -0.3)):
                tensor.data.uniform_(low, low + 1.0, generator=random)
            module.weight.data.uniform_(0.5, 1.5, generator=random)
    return network.eval()


def small(name: str) -> nn.Module:
    torch.manual_seed(0)
    return with_statistics(timm.create_model(name, num_classes=0))


def pictures(n: int, seed: int = 0) -> Tensor:
    return torch.rand(n, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


# Sums behind norms (ResNet), norms behind sums (ResNetV2), hardtanh and single channels (MobileNetV2), gates (SiLU)
@pytest.mark.parametrize("name", ["resnet18", "resnetv2_18", "mobilenetv2_050", "test_efficientnet"])
def test_any_number_of_images_gives_the_plain_network_s_features(name: str) -> None:
    network = small(name)
    fused = fuse(network, pictures(2), torch.float32)
    assert fused is not None
    with torch.inference_mode():
        for n in (1, 5):
            plain, found = network(pictures(n, n)), fused(pictures(n, n).to(memory_format=torch.channels_last))
            assert torch.allclose(found, plain, atol=1e-5 * float(plain.abs().max()))


@pytest.mark.parametrize("name", ["resnet18", "resnetv2_18", "mobilenetv2_050"])
def test_nothing_is_left_outside_the_convolutions(name: str) -> None:
    fused = fuse(small(name), pictures(2), torch.float32)
    assert isinstance(fused, fx.GraphModule)
    left = {str(n.target) for n in fused.graph.nodes if n.op == "call_function"}
    assert not {k for k in left if k.startswith(("aten.batch_norm", "aten.relu", "aten.hardtanh", "aten.add"))}


class PooledInFloat32(nn.Module):
    """As a network that is cut before its last norm is pooled (`Backbone.forward`)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, images: Tensor) -> Tensor:
        return torch.relu(self.norm(self.first(images))).float().mean((2, 3))


def test_a_bfloat16_network_that_pools_in_float32_is_fused_and_does_so() -> None:
    network, images = with_statistics(PooledInFloat32()), pictures(2)
    fused = fuse(network, images, torch.bfloat16)
    assert fused is not None
    with torch.inference_mode():
        found = fused(images.bfloat16().to(memory_format=torch.channels_last))
        assert found.dtype == torch.float32
        assert not torch.equal(found, found.bfloat16().float())  # pooled from bfloat16 to bfloat16 it would be
        assert torch.allclose(found, network(images), atol=0.01)


def test_the_network_keeps_its_weights_and_their_precision() -> None:
    network = small("resnet18")
    before = {k: v.clone() for k, v in network.state_dict().items()}
    fuse(network, pictures(2), torch.bfloat16)
    assert all(v.dtype == before[k].dtype and torch.equal(v, before[k]) for k, v in network.state_dict().items())


class Shared(nn.Module):
    """A map that is changed in place while a view of it is held."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)

    def forward(self, images: Tensor) -> Tensor:
        found = self.first(images)
        view = found.flatten(2)
        return torch.relu_(found).mean((2, 3)) + view.mean(2)


def test_a_change_in_place_that_others_see_is_refused() -> None:
    assert fuse(Shared().eval(), pictures(2), torch.float32) is None


class TwoReaders(nn.Module):
    """The value before a norm is read elsewhere, so the norm cannot move into the convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

    def forward(self, images: Tensor) -> Tensor:
        found = self.first(images)
        doubled = torch.add(self.second(found), torch.tanh(self.norm(found)), alpha=2)
        return (doubled + found.mean((2, 3), keepdim=True)).mean((2, 3))


def test_a_value_with_two_readers_is_kept() -> None:
    network = with_statistics(TwoReaders())
    fused = fuse(network, pictures(2), torch.float32)
    assert fused is not None
    with torch.inference_mode():
        assert torch.allclose(fused(pictures(3)), network(pictures(3)), atol=1e-5)


class ReadAfterTheSum(nn.Module):
    """The added map is read again behind the sum: the convolution may not put the sum into it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)

    def forward(self, images: Tensor) -> Tensor:
        kept = self.first(images)
        total = self.second(torch.relu(kept)) + kept
        return (total * kept).mean((2, 3))


def test_a_map_that_is_read_later_is_not_overwritten() -> None:
    network = with_statistics(ReadAfterTheSum())
    fused = fuse(network, pictures(2), torch.float32)
    assert fused is not None
    given = pictures(3)
    with torch.inference_mode():
        assert torch.allclose(fused(given), network(given), atol=1e-5)
        assert torch.equal(given, pictures(3))


def test_a_network_without_convolutions_is_left_alone() -> None:
    assert fuse(nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 2)).eval(), pictures(2), torch.float32) is None


def test_keeping_memory_changes_no_value_and_may_be_asked_twice() -> None:
    assert keep_freed_memory() in (True, False)
    assert keep_freed_memory() == keep_freed_memory()
