"""Networks that timm lacks, under names of timm's registry, so that whatever takes a timm network takes them.

They are registered when this module is imported: `sonobreast.models.zoo` does.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torchvision
from timm.layers.cbam import CbamModule
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from timm.models.efficientnet import efficientnet_b0
from torch import Tensor, nn

_HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}

NEVER_PRETRAINED = frozenset({"lenet_modified", "dscnet_fc"})
"""Networks of papers that train them from scratch; no weights exist."""

WEIGHTS_OF: Mapping[str, str] = {"efficientnet_b0_csa": "efficientnet_b0"}
"""Network -> the network of timm whose weights it begins with, under the same tensor names."""


def _card(first: str, **more: Any) -> dict[str, Any]:
    given = {"num_classes": 0, "pool_size": None, "crop_pct": 1.0, "interpolation": "bilinear", "classifier": "fc"}
    return {**given, "input_size": (3, 224, 224), "first_conv": first, **more}


default_cfgs = generate_default_cfgs(
    {
        "lenet_modified.untrained": _card("c1.0", **_HALF),
        "dscnet_fc.untrained": _card("stem.0", **_HALF),
        # torchvision turns ImageNet's normalisation back before its first layer; the same as normalising with 0.5.
        "googlenet_tv.in1k": _card(
            "conv1.conv",
            license="bsd-3-clause",
            url="https://download.pytorch.org/models/googlenet-1378be20.pth",
            **{**_HALF, "num_classes": 1000},
        ),
    }
)


class Chain(nn.Module):
    """What timm expects of a network, for children that are called one after the other.

    Attributes
    ----------
    chain : tuple of str
        Children from the input to the last feature map, in order.
    feature_info : list of dict
        ``module``, ``num_chs`` and ``reduction`` (stride) of each feature map.
    dense : nn.Module
        From pooled maps (B, C) to features (B, num_features).
    """

    chain: tuple[str, ...]
    feature_info: list[dict[str, Any]]
    dense: nn.Module
    fc: nn.Module

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to the last feature map (B, C, h, w)."""
        for name in self.chain:
            images = getattr(self, name)(images)
        return images

    def forward_head(self, maps: Tensor, pre_logits: bool = False) -> Tensor:
        """The last feature map (B, C, h, w) to pooled features (B, num_features)."""
        features: Tensor = self.dense(maps.mean((2, 3)))
        return features if pre_logits else self.fc(features)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to pooled features (B, num_features)."""
        return self.forward_head(self.forward_features(images))

    def forward_intermediates(
        self,
        images: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Feature maps of chosen stages, as in timm's networks of the same method."""
        taken, _ = feature_take_indices(len(self.feature_info), indices)
        wanted = [str(self.feature_info[i]["module"]) for i in sorted(taken)]
        maps: list[Tensor] = []
        for name in self.chain:
            images = getattr(self, name)(images)
            if name in wanted:
                maps.append(images)
            if stop_early and len(maps) == len(wanted):
                break
        return maps if intermediates_only else (images, maps)


def _stage(module: str, channels: int, reduction: int) -> dict[str, Any]:
    return {"module": module, "num_chs": channels, "reduction": reduction}


def _classifier(features: int, num_classes: int) -> nn.Module:
    return nn.Linear(features, num_classes) if num_classes else nn.Identity()


class ModifiedLeNet(Chain):
    """LeNet with batch norm and a ReLU that does not die (Balasubramaniam 2023, Diagnostics 13:2746).

    LeCun 1998's last convolution sees 5 x 5 values and gives one; on larger images its map is averaged, so that at
    32 px this is LeNet-5 and any other size fits. That, three input channels, maximum pooling and the slope .01 for
    negative values are ours.
    """

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        self.c1 = nn.Sequential(*_lenet_convolution(3, 6))
        self.s2 = nn.MaxPool2d(2)
        self.c3 = nn.Sequential(*_lenet_convolution(6, 16))
        self.s4 = nn.MaxPool2d(2)
        self.c5 = nn.Sequential(*_lenet_convolution(16, 120))
        self.dense = nn.Sequential(nn.Linear(120, 84), nn.LeakyReLU())
        self.num_classes, self.num_features = num_classes, 84
        self.fc = _classifier(84, num_classes)
        self.chain = ("c1", "s2", "c3", "s4", "c5")
        self.feature_info = [_stage("c1", 6, 1), _stage("c3", 16, 2), _stage("c5", 120, 4)]


def _lenet_convolution(given: int, channels: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(given, channels, 5, bias=False), nn.BatchNorm2d(channels), nn.LeakyReLU(inplace=True)


class SeparableNetwork(Chain):
    """Fully connected depth-wise separable CNN: MobileNet's blocks (arXiv:1704.04861), then two dense layers.

    Each block is a 3x3 convolution of every channel by itself and a 1x1 convolution across them, both with batch norm
    and ReLU. Depths and widths are ours.
    """

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(inplace=True)
        )
        widths = (32, 64, 128, 256, 512)
        for i in range(1, len(widths)):
            self.add_module(f"block{i}", _separable(widths[i - 1], widths[i]))
        self.dense = nn.Sequential(
            nn.Linear(512, 256), nn.ReLU(inplace=True), nn.Linear(256, 128), nn.ReLU(inplace=True)
        )
        self.num_classes, self.num_features = num_classes, 128
        self.fc = _classifier(128, num_classes)
        self.chain = ("stem", *(f"block{i}" for i in range(1, len(widths))))
        self.feature_info = [
            _stage(n, c, 2 ** (i + 1)) for i, (n, c) in enumerate(zip(self.chain, widths, strict=True))
        ]


def _separable(given: int, channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(given, given, 3, stride=2, padding=1, groups=given, bias=False),
        nn.BatchNorm2d(given),
        nn.ReLU(inplace=True),
        nn.Conv2d(given, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    )


class GoogLeNet(Chain, torchvision.models.GoogLeNet):  # type: ignore[misc]
    """torchvision's GoogLeNet with its tensor names, without the auxiliary heads and without dropout."""

    chain = (
        "conv1", "maxpool1", "conv2", "conv3", "maxpool2", "inception3a", "inception3b", "maxpool3", "inception4a",
        "inception4b", "inception4c", "inception4d", "inception4e", "maxpool4", "inception5a", "inception5b",
    )  # fmt: skip

    def __init__(self, num_classes: int = 1000) -> None:
        torchvision.models.GoogLeNet.__init__(self, num_classes or 1, aux_logits=False, init_weights=True)
        self.dense = nn.Identity()
        self.num_classes, self.num_features = num_classes, 1024
        if not num_classes:
            self.fc = nn.Identity()
        stages = {"conv1": 64, "conv3": 192, "inception3b": 480, "inception4e": 832, "inception5b": 1024}
        self.feature_info = [_stage(n, c, 2 ** (i + 1)) for i, (n, c) in enumerate(stages.items())]


def _without_auxiliary_heads(state: Mapping[str, Tensor], _: nn.Module) -> dict[str, Tensor]:
    return {k: v for k, v in state.items() if not k.startswith("aux")}


@register_model
def lenet_modified(pretrained: bool = False, **settings: Any) -> nn.Module:
    """See `ModifiedLeNet`."""
    return _build(ModifiedLeNet, "lenet_modified", pretrained, settings)


@register_model
def dscnet_fc(pretrained: bool = False, **settings: Any) -> nn.Module:
    """See `SeparableNetwork`."""
    return _build(SeparableNetwork, "dscnet_fc", pretrained, settings)


@register_model
def googlenet_tv(pretrained: bool = False, **settings: Any) -> nn.Module:
    """See `GoogLeNet`."""
    return _build(GoogLeNet, "googlenet_tv", pretrained, settings)


def _build(kind: type[nn.Module], name: str, pretrained: bool, settings: Mapping[str, Any]) -> nn.Module:
    built: nn.Module = build_model_with_cfg(
        kind,
        name,
        pretrained,
        pretrained_filter_fn=_without_auxiliary_heads,
        # They take colour images and the mean, and nothing else.
        kwargs_filter=("in_chans", "global_pool"),  # type: ignore[arg-type]
        **settings,
    )
    return built


@register_model
def efficientnet_b0_csa(pretrained: bool = False, **settings: Any) -> nn.Module:
    """CSA-Net: EfficientNet-B0 with channel and spatial attention (CBAM) on its last map, before pooling.

    Naeem and Saleem 2024 (J. Imaging 10:256) put channel and spatial attention on a pre-trained EfficientNet-B0; that
    it is CBAM (Woo 2018, arXiv:1807.06521) and stands before the pooling is ours. All other tensors keep
    EfficientNet-B0's names, so that its weights load.
    """
    network: Any = efficientnet_b0(pretrained=pretrained, **settings)
    attention = CbamModule(network.num_features)
    network.global_pool = nn.Sequential(OrderedDict(attention=attention, pool=network.global_pool))
    built: nn.Module = network
    return built
