"""Where a network looked: maps of relevance for one image and one class, with captum.

Every map is of one image alone, at the network's input size, at least 0, and the same at every call: noise has a fixed
seed. Where a recipe flips at test time the maps of the image and of its mirror image are averaged, as its answers are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from captum.attr import LayerAttribution, LayerGradCam, NoiseTunnel, Occlusion, Saliency
from numpy.typing import NDArray
from torch import Tensor, nn

from sonobreast.models.classical import EstimatorHead, Handcrafted
from sonobreast.training.fit import TrainedNetwork

Map = NDArray[np.float32]
METHODS = ("gradcam", "smoothgrad", "occlusion", "mask")
TITLES = {
    "gradcam": "Grad-CAM",
    "smoothgrad": "SmoothGrad",
    "occlusion": "occlusion",
    "mask": "the network's own mask",
}
SLOW = ("occlusion",)
_SAMPLES, _NOISE = 16, 0.1  # of SmoothGrad; the noise in parts of the range of the input, within the paper's 10 to 20 %
_WINDOW, _STRIDE = 1 / 7, 1 / 14  # of the occluded square, in parts of the side: 32 and 16 of 224 px
_AT_ONCE = 16


@dataclass(frozen=True)
class Explained:
    """A network, and what of it can be explained by which method.

    Attributes
    ----------
    network : TrainedNetwork
    plain : TrainedNetwork
        The same modules without test-time flips.
    layer : nn.Module or None
        Whose output is the last feature map.
    why_not : dict of str to str
        Methods that are not applicable, with the reason.
    """

    network: TrainedNetwork
    plain: TrainedNetwork
    layer: nn.Module | None
    why_not: dict[str, str]


def explained(network: TrainedNetwork, size: int) -> Explained:
    """Find out which methods a network allows.

    Parameters
    ----------
    network : TrainedNetwork
    size : int
        Side of its input in pixels.
    """
    plain = TrainedNetwork(network.backbone, network.head).eval()
    why: dict[str, str] = {}
    layer = None
    if isinstance(network.backbone.network, Handcrafted):
        why = dict.fromkeys(METHODS, "the classifier sees features of the image as a whole: there is no feature map")
        why["occlusion"] = "its features describe the whole image, and a grey square would be a texture of its own"
    elif isinstance(network.head, EstimatorHead):
        trees = "what scikit-learn fitted has no gradient"
        why = {"gradcam": trees, "smoothgrad": trees}
    else:
        layer, reason = _last_map(network, plain, size)
        why = {"gradcam": reason} if layer is None else {}
    if network.backbone.decoder is None:
        why["mask"] = "the network does not segment"
    return Explained(network, plain, layer, why)


def _last_map(network: TrainedNetwork, plain: TrainedNetwork, size: int) -> tuple[nn.Module | None, str]:
    """The module whose output is the last map that timm names, or why there is none."""
    backbone = network.backbone
    info: Any = getattr(backbone.network, "feature_info", None) or []
    rows = list(info if isinstance(info, list) else info.info)
    if not rows:
        return None, "timm names no feature maps of this network"
    row = rows[-1 if backbone.cut is None else backbone.cut]
    try:
        layer: nn.Module = backbone.network.get_submodule(str(row["module"]))
    except AttributeError:
        return None, "its last feature map is no module's output"
    shapes: list[tuple[int, ...]] = []
    handle = layer.register_forward_hook(
        lambda _, __, out: shapes.append(tuple(out.shape) if isinstance(out, Tensor) else ())
    )
    try:
        with torch.inference_mode():
            plain(torch.zeros(1, 3, size, size))
    finally:
        handle.remove()
    if len(shapes) != 1 or len(shapes[0]) != 4 or shapes[0][1] != int(row["num_chs"]) or min(shapes[0][2:]) < 2:
        return None, "its last features have no rows and columns of channels"
    return layer, ""


def relevance(of: Explained, method: str, image: Tensor, target: int, *, seed: int = 0) -> Map:
    """The map of one image by one method.

    Parameters
    ----------
    of : Explained
    method : str
        One of `METHODS` that is applicable.
    image : Tensor, float32, (1, 3, S, S)
        Scaled.
    target : int
        Index of the class.
    seed : int
        Of SmoothGrad's noise.

    Returns
    -------
    ndarray, float32, (S, S)
        At least 0; all 0 where nothing speaks for the class.

    References
    ----------
    Selvaraju 2017, ICCV (Grad-CAM: channels of the last map, weighed by the mean gradient of the class's logit, then
    ReLU); Smilkov 2017, arXiv:1706.03825 (SmoothGrad: the gradient's mean over noisy copies; here its magnitude, summed
    over the colours); Zeiler and Fergus 2014, ECCV (occlusion: by how much the logarithm of the class's probability
    falls when a square is replaced by the image's mean grey).
    """
    if method == "mask":
        with torch.inference_mode():
            mask = of.network.segment(image)
        assert mask is not None  # `explained` says where there is none
        return mask[0, 0].sigmoid().numpy()
    if method == "occlusion":
        return _occlusion(of.network, image, target)

    def one(given: Tensor) -> Map:
        return _gradcam(of, given, target) if method == "gradcam" else _smoothgrad(of.plain, given, target, seed)

    found = one(image)
    if of.network.flips:
        found = (found + one(image.flip(3))[:, ::-1]) / 2.0
    return np.ascontiguousarray(found, np.float32)


def _gradcam(of: Explained, image: Tensor, target: int) -> Map:
    with torch.enable_grad():
        small = LayerGradCam(of.plain, of.layer).attribute(
            image.clone().requires_grad_(), target=target, relu_attributions=True
        )
    large = LayerAttribution.interpolate(small.detach().float(), tuple(image.shape[2:]), interpolate_mode="bilinear")
    return np.asarray(large[0, 0].clamp(min=0.0).numpy())


def _smoothgrad(plain: TrainedNetwork, image: Tensor, target: int, seed: int) -> Map:
    spread = _NOISE * float(image.max() - image.min())
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found = NoiseTunnel(Saliency(plain)).attribute(
            image.clone().requires_grad_(),
            nt_type="smoothgrad",
            nt_samples=_SAMPLES,
            nt_samples_batch_size=8,
            stdevs=max(spread, 1e-6),  # a blank image has no range
            target=target,
            abs=False,
        )
    return np.asarray(found[0].detach().abs().sum(0).float().numpy())


def _occlusion(network: TrainedNetwork, image: Tensor, target: int) -> Map:
    size = image.shape[2]
    window, stride = max(2, round(_WINDOW * size)), max(1, round(_STRIDE * size))
    with torch.inference_mode():
        found = Occlusion(lambda x: network(x).log_softmax(1)).attribute(
            image,
            sliding_window_shapes=(3, window, window),
            strides=(3, stride, stride),
            baselines=image.mean(dim=(2, 3), keepdim=True).expand_as(image),
            target=target,
            perturbations_per_eval=_AT_ONCE,
        )
    return np.asarray(found[0, 0].clamp(min=0.0).float().numpy())
