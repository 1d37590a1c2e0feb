"""A network's graph with batch norms folded and activations and sums done inside the convolutions (oneDNN).

What bounds a frozen network on a processor that multiplies bfloat16 in hardware is memory: a ReLU that passes over a
feature map takes as long as the convolution before it. Here most maps are written once. The operators are those that
PyTorch's own compiler puts into its graphs (`torch/_inductor/fx_passes/mkldnn_fusion.py`); no C++ compiler is needed
for them, and they take any number of images.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

_aten = torch.ops.aten
_POINTWISE = torch.ops.mkldnn._convolution_pointwise
_SUM = _POINTWISE.binary
_SUM_IN_PLACE = torch.ops.mkldnn._convolution_pointwise_.binary
_IMAGES = 32
"""Number of images for which oneDNN lays out the weights; other numbers give the same features."""
# In-place operator -> the same one with an output of its own.
_OUT_OF_PLACE = {
    _aten.relu_.default: _aten.relu.default,
    _aten.hardtanh_.default: _aten.hardtanh.default,
    _aten.silu_.default: _aten.silu.default,
    _aten.hardswish_.default: _aten.hardswish.default,
    _aten.hardsigmoid_.default: _aten.hardsigmoid.default,
    _aten.add_.Tensor: _aten.add.Tensor,
}
# Operators whose output is memory of its own: a change in place is seen through that output alone.
_FRESH = {_aten.conv2d.default, _aten.batch_norm.default, _aten.add.Tensor, _aten.linear.default, _aten.mul.Tensor}
# Activations that oneDNN applies inside a convolution, by its names.
_INSIDE = {_aten.relu.default: "relu", _aten.hardtanh.default: "hardtanh", _aten.silu.default: "swish"}


@dataclass
class _Convolution:
    """A convolution with what is done inside it; ``node`` is the node of the graph whose value it gives."""

    node: fx.Node
    images: fx.Node
    weight: Tensor
    bias: Tensor | None
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int
    activation: str = "none"
    limits: list[float] = field(default_factory=list)
    added: fx.Node | None = None
    replaced: list[fx.Node] = field(default_factory=list)


def fuse(network: nn.Module, example: Tensor, dtype: torch.dtype) -> Callable[[Tensor], Tensor] | None:
    """The network with fused convolutions, or None where nothing can be fused.

    Parameters
    ----------
    network : nn.Module
        In inference mode, float32; it is not changed.
    example : Tensor, float32, (B, 3, H, W)
        B at least 2. Other numbers of images may follow, other sizes not.
    dtype : torch.dtype
        float32 or bfloat16. Norms are folded in float32 before the weights are rounded.

    Returns
    -------
    callable or None
        Takes (B, 3, H, W) of ``dtype``, channels last.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    sizes = ({0: torch.export.Dim("batch")},)
    module = torch.export.export(copy.deepcopy(network), (example,), dynamic_shapes=sizes, strict=False).module(
        check_guards=False
    )
    if not isinstance(module, fx.GraphModule) or not _without_changes_in_place(module.graph):
        return None
    graph, state = module.graph, {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for node in list(graph.nodes):
        if node.target is _aten.dropout.default:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.target is _aten._assert_tensor_metadata.default:
            graph.erase_node(node)  # says that a map is float32 before it is made so: here it may be bfloat16
    taken: set[fx.Node] = set()
    found = [_absorb(_convolution(n, state), state, taken) for n in graph.nodes if n.target is _aten.conv2d.default]
    if not found:
        return None
    norms = [n for n in graph.nodes if n.target is _aten.batch_norm.default and n not in taken]
    found += [_absorb(c, state, taken) for n in norms if (c := _norm_as_convolution(n, state)) is not None]
    module.to(dtype)
    for number, convolution in enumerate(found):
        _emit(module, f"fused_{number}", convolution, dtype, found[number + 1 :])
    _sum_in_place(graph)
    graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    graph.lint()
    module.recompile()
    return module


def _without_changes_in_place(graph: fx.Graph) -> bool:
    """Give every in-place operator an output of its own; False where that could change what the graph does."""
    for node in graph.nodes:
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        if node.target in _OUT_OF_PLACE:
            changed = node.args[0]
            if list(changed.users) != [node] or changed.target not in _FRESH:
                return False
            node.target = _OUT_OF_PLACE[node.target]
        elif node.target._schema.is_mutable and node.target is not _aten.batch_norm.default:
            return False
    return True


def _convolution(node: fx.Node, state: Mapping[str, Tensor]) -> _Convolution:
    defaults: list[Any] = [None, None, None, [1, 1], [0, 0], [1, 1], 1]
    given = [*node.args, *defaults[len(node.args) :]]
    images, weight, bias, *numbers, groups = given
    stride, padding, dilation = ([v, v] if isinstance(v, int) else [*v, *v][:2] for v in numbers)
    own_bias = None if bias is None else _value(bias, state)
    return _Convolution(node, images, _value(weight, state), own_bias, stride, padding, dilation, groups)


def _norm_as_convolution(node: fx.Node, state: Mapping[str, Tensor]) -> _Convolution | None:
    """A norm behind a sum, and the activation behind it, in one pass: a convolution of 1 x 1 for each channel."""
    following = next(iter(node.users)) if len(node.users) == 1 else None
    if following is None or following.target not in _INSIDE or node.meta["val"].ndim != 4:
        return None
    scale, shift = _scale_and_shift(node, state)
    one, none = [1, 1], [0, 0]
    return _Convolution(node, node.args[0], scale[:, None, None, None], shift, one, none, one, len(scale))  # type: ignore[arg-type]


def _absorb(convolution: _Convolution, state: Mapping[str, Tensor], taken: set[fx.Node]) -> _Convolution:
    """Take what follows into the convolution for as long as nothing else needs the value between."""
    while len(convolution.node.users) == 1:
        node = next(iter(convolution.node.users))
        plain = convolution.activation == "none"
        if node in taken:
            break
        if node.target is _aten.batch_norm.default and plain and convolution.added is None:
            scale, shift = _scale_and_shift(node, state)
            convolution.weight = convolution.weight * scale[:, None, None, None]
            convolution.bias = shift if convolution.bias is None else convolution.bias * scale + shift
        elif node.target in _INSIDE and plain:
            convolution.activation = _INSIDE[node.target]
            if convolution.activation == "hardtanh":
                convolution.limits = [float(v) for v in (*node.args[1:], *(-1.0, 1.0)[len(node.args) - 1 :])]  # type: ignore[arg-type]
        elif node.target is _aten.add.Tensor and plain and convolution.added is None and not node.kwargs:
            other = next((a for a in node.args if a is not convolution.node), None)
            if not isinstance(other, fx.Node) or other.meta["val"].shape != node.meta["val"].shape:
                break
            convolution.added = other
        else:
            break
        convolution.replaced.append(convolution.node)
        convolution.node = node
        taken.add(node)
    return convolution


def _scale_and_shift(node: fx.Node, state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """A batch norm in inference mode as factor and summand of each channel, both float32 (C,)."""
    given: list[Any] = list(node.args)
    _, weight, bias, mean, variance, _, _, epsilon, *_ = given
    middle, spread = _value(mean, state), torch.sqrt(_value(variance, state) + epsilon)
    scale = (torch.ones_like(middle) if weight is None else _value(weight, state)) / spread
    return scale, (torch.zeros_like(middle) if bias is None else _value(bias, state)) - middle * scale


def _value(node: Any, state: Mapping[str, Tensor]) -> Tensor:
    """The tensor behind a parameter's node; KeyError where it is computed, which `frozen_forward` takes as a no."""
    return state[str(node.target)].detach().clone()


def _emit(
    module: fx.GraphModule, name: str, c: _Convolution, dtype: torch.dtype, others: Sequence[_Convolution]
) -> None:
    graph = module.graph
    height, width = c.images.meta["val"].shape[2:]
    size = [_IMAGES, c.weight.shape[1] * c.groups, int(height), int(width)]
    weight = c.weight.to(dtype)
    module.register_buffer(
        f"{name}_weight",
        torch.ops.mkldnn._reorder_convolution_weight(weight, c.padding, c.stride, c.dilation, c.groups, size),
    )
    if c.bias is not None:
        module.register_buffer(f"{name}_bias", c.bias.to(dtype))
    with graph.inserting_before(c.node):
        weight_node = graph.get_attr(f"{name}_weight")
        bias_node = None if c.bias is None else graph.get_attr(f"{name}_bias")
        how = (weight_node, bias_node, c.padding, c.stride, c.dilation, c.groups)
        if c.added is None:
            new = graph.call_function(_POINTWISE.default, (c.images, *how, c.activation, c.limits, ""))
        else:
            unary = None if c.activation == "none" else c.activation
            new = graph.call_function(
                _SUM,
                (c.images, c.added, *how, "add", 1.0, unary, c.limits, None),
            )
    new.meta = c.node.meta
    c.node.replace_all_uses_with(new)
    for node in reversed([*c.replaced, c.node]):  # by hand: a norm counts as one that changes its statistics
        graph.erase_node(node)
    for other in others:
        other.images = new if other.images is c.node else other.images
        other.added = new if other.added is c.node else other.added


def _sum_in_place(graph: fx.Graph) -> None:
    """Let a convolution add its result to a map that nobody reads afterwards: a third of the memory traffic less."""
    position = {node: i for i, node in enumerate(graph.nodes)}
    own = {_POINTWISE.default, _SUM, _SUM_IN_PLACE, _aten.max_pool2d.default}
    for node in graph.nodes:
        if node.target is not _SUM:
            continue
        images, other, *rest = node.args
        if other.target in own and other is not images and max(position[u] for u in other.users) == position[node]:
            node.target, node.args = _SUM_IN_PLACE, (other, images, *rest)
