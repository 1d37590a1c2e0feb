"""The quick convolutions give the plain network's features and gradients, and leave the network as it was."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import Tensor, nn

from sonobreast.models.forward import has_bfloat16
from sonobreast.models.quick import Plan, plan_quick, quick


def network(name: str) -> nn.Module:
    """A network with random norms, so that losing one would be seen."""
    torch.manual_seed(0)
    made: nn.Module = timm.create_model(name, num_classes=0).eval()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.8, 1.2)
            for tensor in (module.bias.data, module.running_mean):
                tensor.uniform_(-0.1, 0.1)
    return made.to(memory_format=torch.channels_last)


def gradients(made: nn.Module, plan: Plan | None, dtype: torch.dtype, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    made = copy.deepcopy(made)
    if plan is None:
        out = made(images)
    else:
        with quick(made, plan, dtype):
            out = made(images)
    target = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    (out.float() * target).mean().backward()
    return out.detach().float(), [p.grad for p in made.parameters() if p.grad is not None]


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)


# One of each kind: norm with its activation inside, apart from it, before the convolution, with ReLU6, with SiLU.
@pytest.mark.parametrize(
    ("name", "folded"), [("test_resnet", 10), ("mobilenetv2_035", 52), ("resnetv2_18", 8), ("test_efficientnet", 13)]
)
@pytest.mark.parametrize("training", [False, True])
def test_float32_is_the_plain_network(name: str, folded: int, training: bool, images: Tensor) -> None:
    made = network(name)
    plan = plan_quick(made, images[:1])
    assert len(plan.folded) >= folded
    if training:
        for module in made.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train()
    (plain, wanted), (found, given) = (gradients(made, p, torch.float32, images) for p in (None, plan))
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5)
    assert len(given) == len(wanted) == len(list(made.parameters()))
    for a, b in zip(given, wanted, strict=True):
        assert float((a - b).norm()) <= 1e-3 * float(b.norm()) + 1e-7


@pytest.mark.skipif(not has_bfloat16(), reason="this processor has no bfloat16")
@pytest.mark.parametrize("name", ["test_resnet", "mobilenetv2_035", "resnetv2_18"])
def test_bfloat16_is_near(name: str, images: Tensor) -> None:
    """Rounding to 8 bits in every layer, and ReLUs that it switches: as near as PyTorch's own autocast comes."""
    made = network(name)
    plain, exact = gradients(made, None, torch.float32, images)
    found, quickly = gradients(made, plan_quick(made, images[:1]), torch.bfloat16, images)
    with torch.autocast("cpu", torch.bfloat16):
        _, cast = gradients(made, None, torch.float32, images)
    assert float((found - plain).norm()) < 0.05 * float(plain.norm())
    assert all(g.dtype == torch.float32 for g in quickly)
    a, b, c = (torch.cat([g.flatten() for g in gs]) for gs in (quickly, cast, exact))
    likeness = torch.nn.functional.cosine_similarity(torch.stack([a, b]), c[None])
    assert float(likeness[0]) > float(likeness[1]) - 0.05


@pytest.mark.skipif(not has_bfloat16(), reason="this processor has no bfloat16")
@pytest.mark.parametrize(
    ("layer", "size"),
    [
        (nn.Conv2d(8, 8, 3, 2, 1, groups=8), 12),
        (nn.Conv2d(8, 8, 5, 2, 2, groups=8), 12),
        (nn.Conv2d(8, 8, 3, 2, 1, groups=8), 11),  # odd: by oneDNN
        (nn.Conv2d(8, 16, 1), 6),
        (nn.Conv2d(8, 16, 1, stride=2, bias=False), 6),
        (nn.Conv2d(8, 16, 1, padding=1), 6),
        (nn.Conv2d(8, 16, 3, padding=2, dilation=2), 7),
    ],
    ids=str,
)
def test_every_kind_of_convolution_in_bfloat16(layer: nn.Conv2d, size: int) -> None:
    """Against float32 on inputs that bfloat16 holds exactly."""
    for p in layer.parameters():
        p.data = p.data.bfloat16().float()
    found = []
    for plan in (Plan({}, ()), Plan({}, ("0",))):
        images = torch.rand(2, 8, size, size, generator=torch.Generator().manual_seed(0)).bfloat16().float()
        images.requires_grad_()
        holder = nn.Sequential(layer)
        layer.zero_grad()
        with quick(holder, plan, torch.bfloat16 if plan.convolutions else torch.float32):
            out = holder(images)
        target = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).bfloat16().float()
        (out.float() * target).sum().backward()
        found.append([out.detach().float(), images.grad, *(p.grad for p in layer.parameters())])
    for a, b in zip(*found, strict=True):
        assert a is not None
        assert b is not None
        assert float((a - b).norm()) < 0.02 * float(a.norm())


def test_the_network_is_as_it_was(images: Tensor) -> None:
    made = network("test_resnet")
    before = {k: v.clone() for k, v in made.state_dict().items()}
    plan = plan_quick(made, images[:1])
    plain = made(images)

    def fails() -> None:
        with quick(made, plan, torch.float32):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fails()
    assert not any("forward" in vars(m) for m in made.modules())
    assert torch.equal(made(images), plain)
    assert all(torch.equal(before[k], v) for k, v in made.state_dict().items())


class Shared(nn.Module):
    """A convolution whose output goes past its norm, too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        out: Tensor = (self.norm(maps) + maps).mean((2, 3))
        return out


def test_nothing_is_folded_where_the_output_is_used_twice(images: Tensor) -> None:
    made = Shared().eval()
    plan = plan_quick(made, images[:1])
    assert plan.folded == {}
    with quick(made, plan, torch.float32):
        assert torch.equal(made(images), Shared.forward(made, images))


def test_networks_without_convolutions(images: Tensor) -> None:
    made = timm.create_model("test_vit", num_classes=0, img_size=64).eval()
    plan = plan_quick(made, images[:1])
    assert plan.folded == {}
    with torch.no_grad(), quick(made, plan, torch.bfloat16):
        assert float((made(images).float() - made(images).float()).abs().max()) == 0.0
