"""Convolutions as a CPU trains them fastest: batch norms folded, activations fused, bfloat16 without its slow kernels.

The network stays what it is, with its own parameters and their gradients; only the arithmetic of some modules is
replaced for a while (`quick`). In float32 logits and gradients are the plain ones up to rounding.

- A batch norm in inference mode is folded into the convolution before it. The folded weights are computed in every
  step from the convolution's and the norm's own, so autograd gives both their gradients.
- ReLU and ReLU6 behind such a norm are computed by the convolution; an in-place ReLU6 would first copy its input.
- oneDNN has no fast bfloat16 kernel for the input gradient of depth-wise convolutions with stride 2 (20 to 60 times
  slower than float32): it is a convolution of the gradient spread over the grid instead.
- The weight gradient of a 1x1 convolution is one product of matrices.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sonobreast.models.forward import has_bfloat16

_ACTIVATIONS: dict[type, str] = {nn.ReLU: "relu", nn.ReLU6: "relu6"}


@dataclass(frozen=True)
class Plan:
    """What `quick` replaces in a network, by the names of its modules.

    Attributes
    ----------
    folded : dict of str to str
        Convolution -> the batch norm that alone uses its output.
    convolutions : tuple of str
        All convolutions that can be computed by `_Convolution`.
    """

    folded: dict[str, str]
    convolutions: tuple[str, ...]


def plan_quick(network: nn.Module, example: Tensor) -> Plan:
    """Find which batch norms follow a convolution directly.

    The pairs are tried on a copy with random norms: if its features change by more than 1e-3 of their size, nothing is
    folded. The network is not changed.

    Parameters
    ----------
    example : Tensor, float32, (B, 3, H, W)
    """
    trial = copy.deepcopy(network).eval()
    names = {module: name for name, module in trial.named_modules()}
    convolutions = tuple(
        name
        for name, m in trial.named_modules()
        if type(m) is nn.Conv2d and m.padding_mode == "zeros" and not isinstance(m.padding, str)
    )
    taken = set(convolutions)
    outputs: dict[int, tuple[str, Tensor]] = {}
    folded: dict[str, str] = {}
    called: list[str] = []

    def after_convolution(module: nn.Module, _: Any, output: Tensor) -> None:
        called.append(names[module])
        outputs[id(output)] = (names[module], output)

    def before_norm(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        called.append(names[module])
        if (found := outputs.get(id(given[0]))) is not None and found[0] in taken:
            folded[found[0]] = names[module]

    hooks = [m.register_forward_hook(after_convolution) for m in trial.modules() if isinstance(m, nn.Conv2d)]
    hooks += [m.register_forward_pre_hook(before_norm) for m in trial.modules() if _can_fold(m)]
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in trial.state_dict().items():
            owner, _, part = name.rpartition(".")
            if part != "num_batches_tracked" and _can_fold(trial.get_submodule(owner)):
                low = -0.5 if part in ("bias", "running_mean") else 0.5
                tensor.copy_(torch.rand(tensor.shape, generator=random) + low)
        reference = trial(example)
        for hook in hooks:
            hook.remove()
        once = {c: n for c, n in folded.items() if called.count(c) == called.count(n) == 1}
        plan = Plan(once, convolutions)
        with quick(trial, plan, torch.float32):
            apart = float((trial(example) - reference).abs().max())
    near = apart <= 1e-3 * max(1e-3, float(reference.abs().max()))
    return plan if near else Plan({}, convolutions)


def _can_fold(module: nn.Module) -> bool:
    if not isinstance(module, nn.BatchNorm2d) or not module.affine or not module.track_running_stats:
        return False
    kind = type(module)
    return kind is nn.BatchNorm2d or (kind.__name__ == "BatchNormAct2d" and isinstance(module.drop, nn.Identity))


@contextmanager
def quick(network: nn.Module, plan: Plan, dtype: torch.dtype) -> Iterator[None]:
    """Compute a network quickly for a while; what `Plan` does not name in bfloat16 is left to autocast.

    A batch norm in training mode is computed as it is.

    Parameters
    ----------
    network : nn.Module
        That of the plan, or a copy, on the CPU or another device. Input and output stay as they are; in bfloat16 the
        output may be bfloat16.
    dtype : torch.dtype
        float32 or bfloat16.
    """
    modules = dict(network.named_modules())
    changed: list[nn.Module] = []
    device = next(network.parameters()).device.type
    onednn = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    own = device == "cpu" and onednn and (dtype == torch.float32 or has_bfloat16())
    try:
        for name in plan.convolutions:
            norm = modules[plan.folded[name]] if name in plan.folded else None
            convolution = modules[name]
            assert isinstance(convolution, nn.Conv2d)
            if norm is None and not (own and dtype == torch.bfloat16):
                continue
            changed.append(convolution)
            convolution.forward = _convolve(convolution, norm, dtype if own else None)  # type: ignore[method-assign]
            if norm is not None:
                changed.append(norm)
                norm.forward = _pass(norm, fused=own)
        with torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16):
            yield
    finally:
        for module in changed:
            del module.forward  # the class' own is seen again


def _convolve(convolution: nn.Conv2d, norm: Any, dtype: torch.dtype | None) -> Any:
    """The forward function of a convolution; ``dtype`` None leaves the arithmetic to PyTorch."""
    stride, padding, dilation, groups = (
        convolution.stride,
        convolution.padding,
        convolution.dilation,
        convolution.groups,
    )
    activation = _activation(norm)

    def forward(images: Tensor) -> Tensor:
        weight, bias = convolution.weight, convolution.bias
        act = ""
        if norm is not None and not norm.training:
            gain = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
            moved = norm.running_mean if bias is None else norm.running_mean - bias
            weight, bias, act = weight * gain.view(-1, 1, 1, 1), norm.bias - moved * gain, activation
        if dtype is None:
            return functional.conv2d(images, weight, bias, stride, padding, dilation, groups)
        found: Tensor = _Convolution.apply(images, weight, bias, (stride, padding, dilation, groups), act, dtype)
        return found

    return forward


def _activation(norm: Any) -> str:
    return _ACTIVATIONS.get(type(getattr(norm, "act", None)), "")


def _pass(norm: Any, *, fused: bool) -> Any:
    """The forward function of a folded norm: what is left of it is an activation, if that."""

    def forward(images: Tensor) -> Tensor:
        if norm.training:
            out: Tensor = type(norm).forward(norm, images)
            return out
        if not hasattr(norm, "act") or (fused and _activation(norm)):
            return images
        acted: Tensor = norm.act(images)
        return acted

    return forward


class _Convolution(torch.autograd.Function):
    """Convolution, bias and activation in one dtype, with float32 parameters and float32 gradients of them."""

    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        shape: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int],
        activation: str,
        dtype: torch.dtype,
    ) -> Tensor:
        stride, padding, dilation, groups = shape
        ctx.given = images.dtype
        images = images.to(dtype=dtype, memory_format=torch.channels_last)
        weight = weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
        if activation:
            name, limits = ("relu", []) if activation == "relu" else ("hardtanh", [0.0, 6.0])
            out: Tensor = torch.ops.mkldnn._convolution_pointwise(
                images, weight, bias, padding, stride, dilation, groups, name, limits, ""
            )
        else:
            out = functional.conv2d(images, weight, bias, stride, padding, dilation, groups)
        ctx.save_for_backward(images, weight, out if activation else None)
        ctx.shape, ctx.activation, ctx.has_bias = shape, activation, bias is not None
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        images, weight, out = ctx.saved_tensors
        shape = ctx.shape
        stride, padding, dilation, groups = shape
        of_images, of_weight, of_bias = ctx.needs_input_grad[:3]
        gradient = gradients[0].to(dtype=images.dtype, memory_format=torch.channels_last)
        if ctx.activation == "relu":
            gradient = torch.ops.aten.threshold_backward(gradient, out, 0.0)
        elif ctx.activation:
            gradient = torch.ops.aten.hardtanh_backward(gradient, out, 0.0, 6.0)
        low = images.dtype == torch.bfloat16
        point = low and weight.shape[2:] == (1, 1) and groups == 1 and stride == (1, 1) and padding == (0, 0)
        g_images = g_weight = g_bias = None
        if of_bias and (point or of_weight or of_images):
            g_bias = gradient.sum((0, 2, 3)).float()
        if of_weight and point:
            flat = gradient.permute(0, 2, 3, 1).reshape(-1, gradient.shape[1])  # (B H W, out), a view
            rows = images.permute(0, 2, 3, 1).reshape(-1, images.shape[1])  # (B H W, in)
            g_weight, of_weight = (flat.t() @ rows).view(weight.shape), False
        if of_images and low and _is_strided_depthwise(images, weight, shape):
            spread = torch.zeros_like(images)
            spread[:, :, ::2, ::2] = gradient
            g_images = functional.conv2d(spread, weight.flip(2, 3), None, 1, padding, 1, groups)
            of_images = False
        if of_images or of_weight:
            a, b, _ = torch.ops.aten.convolution_backward(
                gradient, images, weight, None, stride, padding, dilation, False, (0, 0), groups,
                (of_images, of_weight, False),
            )  # fmt: skip
            g_images, g_weight = a if of_images else g_images, b if of_weight else g_weight
        return (
            None if g_images is None else g_images.to(ctx.given),
            None if g_weight is None else g_weight.float(),
            g_bias,
            None,
            None,
            None,
        )


def _is_strided_depthwise(images: Tensor, weight: Tensor, shape: tuple[Any, ...]) -> bool:
    """Whether the input's gradient is a convolution of the gradient spread over every second pixel."""
    stride, padding, dilation, groups = shape
    return bool(
        groups == images.shape[1] == weight.shape[0]
        and groups > 1
        and stride == (2, 2)
        and dilation == (1, 1)
        and weight.shape[2] == weight.shape[3] == 2 * padding[0] + 1
        and padding[0] == padding[1]
        and images.shape[2] % 2 == images.shape[3] % 2 == 0
    )
