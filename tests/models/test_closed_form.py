"""Grad-CAM in closed form equals captum's, which differentiates."""

from __future__ import annotations

import pytest
import torch
from captum.attr import LayerGradCam
from torch import Tensor, nn

from sonobreast.config import Head, Segmentation
from sonobreast.models.closed_form import grad_cam, is_last_stage, why_no_map
from sonobreast.models.heads import build_head
from sonobreast.models.joint import JointHead
from sonobreast.models.zoo import Backbone, load_backbone

SIZE = 64


class Alone(nn.Module):
    """Backbone and head as one network whose last map is a layer that captum finds."""

    def __init__(self, backbone: Backbone, head: nn.Module, joins: bool) -> None:
        super().__init__()
        self.backbone, self.head, self.joins = backbone, head, joins
        self.last, self.other = nn.Identity(), nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        pooled, maps, last = self.backbone.seen(images)
        marked = self.last(last)
        network = self.backbone.network
        pooled = marked.mean((2, 3)) if self.backbone.cut is not None else network.forward_head(marked)  # type: ignore[operator]
        if isinstance(self.head, JointHead):
            return self.head.classify(pooled, [*maps[:-1], marked] if self.joins else maps)
        logits: Tensor = self.head(pooled)
        return logits


def images(n: int = 3) -> Tensor:
    return torch.rand(n, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(4))


def randomised(head: nn.Module) -> nn.Module:
    """No norm and no statistic may be the identity: a forgotten factor would not show."""
    torch.manual_seed(7)
    for module in head.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
        if hasattr(module, "std") and isinstance(module.std, Tensor):
            module.std.uniform_(0.5, 2.0)
            module.mean.normal_()
    return head.eval()


def plain(name: str, hidden: tuple[int, ...], *, standardise: bool = False) -> tuple[Backbone, nn.Module]:
    backbone = load_backbone(name, "none", image_size=SIZE)
    torch.manual_seed(1)
    return backbone, randomised(
        build_head(backbone.features, 3, Head(hidden=hidden, dropout=0.3), standardise=standardise)
    )


def joint(name: str, hidden: tuple[int, ...] = ()) -> tuple[Backbone, nn.Module]:
    backbone = load_backbone(f"joint:{name}", "none", image_size=SIZE)
    settings = Segmentation(channels=(8, 8, 8), shortcuts=12)
    torch.manual_seed(1)
    made = JointHead(backbone.features, backbone.stages, 3, Head(hidden=hidden, dropout=0.1), settings, "unet")
    return backbone, randomised(made)


CASES = {
    "linear": lambda: plain("test_efficientnet", ()),
    "dense": lambda: plain("test_resnet", (16, 8)),
    "standardised": lambda: plain("test_resnet", (16,), standardise=True),
    "dense layers of its own": lambda: plain("dscnet_fc", (5,)),
    "leaky ReLU": lambda: plain("lenet_modified", ()),
    "joint, last stage pooled twice": lambda: joint("test_resnet"),
    "joint, a convolution behind the last stage": lambda: joint("test_efficientnet", (6,)),
    "joint, dense layers of its own": lambda: joint("dscnet_fc"),
}


@pytest.mark.parametrize("case", CASES)
def test_it_equals_captum(case: str) -> None:
    backbone, head = CASES[case]()
    assert why_no_map(backbone, head, SIZE) == ""
    joins = is_last_stage(backbone, SIZE)
    assert joins == (case in ("joint, last stage pooled twice", "joint, dense layers of its own"))
    with torch.no_grad():
        pooled, maps, last = backbone.seen(images())
        found = grad_cam(backbone, head, pooled, maps, last, joins=joins)
    whole = Alone(backbone, head, joins).eval()
    captum = LayerGradCam(whole, whole.last)
    largest = 0.0
    for c in range(3):
        wanted = captum.attribute(images(), target=c, relu_attributions=True).detach()
        largest = max(largest, float(wanted.max()))
        torch.testing.assert_close(found[:, c : c + 1], wanted, atol=1e-5 * float(wanted.max()), rtol=1e-5)
    assert largest > 0.0


def test_attention_before_the_pooling_belongs_to_the_map() -> None:
    backbone, head = plain("efficientnet_b0_csa", ())
    assert why_no_map(backbone, head, SIZE) == ""
    with torch.no_grad():
        pooled, maps, last = backbone.seen(images())
        found = grad_cam(backbone, head, pooled, maps, last, joins=False)
        assert not torch.equal(backbone.network.global_pool.attention(last), last)  # type: ignore[operator,union-attr]
    captum = LayerGradCam(nn.Sequential(backbone, head), backbone.network.global_pool.attention)  # type: ignore[union-attr]
    wanted = captum.attribute(images(), target=1, relu_attributions=True).detach()
    torch.testing.assert_close(found[:, 1:2], wanted, atol=1e-5, rtol=1e-5)


def test_a_cut_network_has_a_map(tiny_weights: object) -> None:
    backbone = load_backbone("test_resnet", f"{tiny_weights}/partial", image_size=SIZE)
    assert backbone.cut is not None
    head = randomised(build_head(backbone.features, 3, Head(hidden=(), dropout=0.0), standardise=True))
    assert why_no_map(backbone, head, SIZE) == ""
    with torch.no_grad():
        pooled, maps, last = backbone.seen(images())
        torch.testing.assert_close(pooled, backbone(images()))
        found = grad_cam(backbone, head, pooled, maps, last, joins=False)
    whole = Alone(backbone, head, joins=False).eval()
    wanted = LayerGradCam(whole, whole.last).attribute(images(), target=2, relu_attributions=True).detach()
    torch.testing.assert_close(found[:, 2:], wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "why"), [("test_vit", "not made of one last feature map"), ("mobilenetv3_small_050", "more than a mean")]
)
def test_networks_without_a_map_say_why(name: str, why: str) -> None:
    size = 160 if name == "test_vit" else 64
    backbone = load_backbone(name, "none", image_size=size)
    assert why in why_no_map(backbone, build_head(backbone.features, 3, Head()), size)


def test_a_head_of_unknown_layers_has_no_map() -> None:
    backbone, _ = plain("test_resnet", ())
    assert "Sequential" in why_no_map(backbone, nn.Sequential(nn.Linear(backbone.features, 3), nn.GELU()), SIZE)
