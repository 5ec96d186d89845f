"""Cross-layer equalisation: channels of consecutive layers get like ranges (Nagel et al. 2019, arXiv 1906.04721, 4.1).

W1, b1 -> Relu -> W2    becomes    W1 / s, b1 / s -> Relu -> W2 * s,    s_i = sqrt(r1_i / r2_i)

r1_i is the largest magnitude of output channel i of the first layer, r2_i that of input channel i of the second; both become
sqrt(r1_i r2_i), and the float network computes the same. Pairs overlap, so that this is repeated until nothing moves. A depthwise
convolution is the second of one pair and the first of another. Differs in: a Clip keeps its bounds, where the paper makes it a Relu;
biases are not absorbed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from workers.engine.context import Context
from workers.engine.graph import Graph
from workers.engine.passes.quantize import _layerwise, _plan, _prepare
from workers.engine.passes.quantize._builder import Builder
from workers.engine.passes.quantize._targets import Target

Scales = npt.NDArray[np.float64]
Shapes = Mapping[str, tuple[int, ...]]

_POSITIVE = frozenset({"Dropout", "Identity", "LeakyRelu", "PRelu", "Relu"})
"""f(s x) = s f(x) for s > 0, element by element."""
_POOLS = frozenset({"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"})
_FLATTENS = frozenset({"Flatten", "Reshape", "Squeeze"})
_ROUNDS = 50
_SETTLED = 1e-3
_MOST = 2.0**12
"""A channel that is next to nothing is not blown up further."""


@dataclass(frozen=True)
class Pair:
    """Two layers with nothing between them that scaled channels would not pass unchanged."""

    first: Target
    second: Target
    bias: ir.Value | None
    """What is added to the first layer's channels."""
    spread: int
    """How many inputs of the second layer are one channel of the first, side by side."""


def equalize(
    graph: Graph,
    targets: Sequence[Target],
    shapes: Shapes,
    ctx: Context,
    deeds: Mapping[str, list[str]],
) -> list[Pair]:
    """Changes weights and biases of all pairs among the targets. Answers the pairs."""
    pairs, reasons = _pairs(graph, targets, shapes)
    if not pairs:
        told = "; ".join(f"{name}: {reason}" for name, reason in list(reasons.items())[:5])
        ctx.note(f"equalize: no two layers could be balanced ({told})")
        return []
    if reasons:
        told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        ctx.note(f"equalize: balanced {len(pairs)} pairs of layers; not behind {told}")
    before = [_imbalance(graph, pair) for pair in pairs]
    for _ in range(_ROUNDS):
        if max([_balance(graph, pair) for pair in pairs]) < _SETTLED:
            break
    for pair, was in zip(pairs, before, strict=True):
        now = _imbalance(graph, pair)
        deeds[pair.first.weight].append(
            f"equalised with {pair.second.weight}: ranges of channels x {now:.1f} apart, were x {was:.1f}"
        )
    return pairs


def _pairs(
    graph: Graph, targets: Sequence[Target], shapes: Shapes
) -> tuple[list[Pair], dict[str, str]]:
    """The pairs, and why other layers are the first of none."""
    by_node = {target.node: target for target in targets}
    pairs, reasons = [], {}
    for target in targets:
        found = _follow(graph, target, by_node, shapes)
        if isinstance(found, Pair):
            pairs.append(_with_own_bias(graph, found))
        else:
            reasons[target.weight] = found
    return pairs, reasons


def _follow(
    graph: Graph, first: Target, by_node: Mapping[ir.Node, Target], shapes: Shapes
) -> Pair | str:
    """The pair that begins with a layer, or what is in the way."""
    if first.kind == "ConvTranspose" and _layerwise.groups(first) > 1:
        return "it is a transposed convolution of several groups"
    value, bias, spread = first.node.outputs[0], first.bias, 0
    while (node := _plan.only_use(value)) is not None:
        if node in by_node and node.inputs[0] is value:
            return _pair(graph, first, by_node[node], bias, spread)
        if node.op_type == "Add" and node is _adder(first):
            bias = _prepare.bias_operand(first.node, node)
        elif node.op_type in _FLATTENS and _flattens(value, node, shapes):
            spread = math.prod(shapes[value.name or ""][2:])
        elif node.op_type not in _POSITIVE and not (node.op_type in _POOLS and not spread):
            return f"{node.op_type} behind it, which scaled channels would not pass unchanged"
        value = node.outputs[0]
    return "its result is read by several nodes or by none"


def _adder(first: Target) -> ir.Node | None:
    add = _plan.only_use(first.node.outputs[0]) if first.kind == "MatMul" else None
    return add if _prepare.bias_operand(first.node, add) is not None else None


def _flattens(value: ir.Value, node: ir.Node, shapes: Shapes) -> bool:
    """[N, C, ...] to [N, C * ...]."""
    before, after = shapes.get(value.name or "", ()), shapes.get(node.outputs[0].name or "", ())
    return len(before) > 2 and tuple(after) == (before[0], math.prod(before[1:]))


def _pair(
    graph: Graph, first: Target, second: Target, bias: ir.Value | None, spread: int
) -> Pair | str:
    names = (first.weight, second.weight)
    if any(len(graph.initializers[name].uses()) > 1 for name in names):
        return "its weight or that of the next layer is shared"
    is_matrix = _layerwise.is_matrix(second)
    if _layerwise.is_matrix(first) != is_matrix and not (is_matrix and spread):
        return f"{second.weight} behind it counts its channels along another axis"
    return Pair(first, second, bias, max(spread, 1))


def _with_own_bias(graph: Graph, pair: Pair) -> Pair:
    """The pair with a bias that nothing else reads, whose elements can be changed."""
    bias = pair.bias
    if bias is None or len(bias.uses()) == 1:
        return pair
    node = pair.first.node if pair.first.kind != "MatMul" else _adder(pair.first)
    assert node is not None
    own = Builder(graph).constant(f"{bias.name}_own", np.array(_prepare.array(bias)))
    node.replace_input_with(list(node.inputs).index(bias), own)
    first = pair.first if pair.first.bias is not bias else _rebiased(pair.first, own)
    return Pair(first, pair.second, own, pair.spread)


def _rebiased(target: Target, bias: ir.Value) -> Target:
    return Target(target.node, target.weight, target.axis, bias, target.kind)


def _balance(graph: Graph, pair: Pair) -> float:
    """Scales the pair's channels; answers the logarithm of the largest factor."""
    first, second = _ranges(graph, pair)
    usable = (first > 0) & (second > 0)
    s = np.sqrt(np.divide(first, second, out=np.ones_like(first), where=usable))
    s = s.clip(1 / _MOST, _MOST)
    name = pair.first.weight
    weight = graph.weight(name)
    along = [-1 if axis == pair.first.axis else 1 for axis in range(weight.ndim)]
    graph.set_weight(name, (weight / s.reshape(along)).astype(np.float32))
    if pair.bias is not None:
        bias = np.asarray(_prepare.array(pair.bias), dtype=np.float64)
        scaled = (bias.reshape(-1) / s).reshape(bias.shape)
        graph.set_weight(pair.bias.name or "", scaled.astype(np.float32))
    _scale_inputs(graph, pair, s)
    return float(np.abs(np.log(s)).max())


def _scale_inputs(graph: Graph, pair: Pair, s: Scales) -> None:
    weight = graph.weight(pair.second.weight)
    view = _by_input(pair.second, weight)
    factors = np.repeat(s, pair.spread).reshape(view.shape[0], 1, view.shape[2], 1)
    graph.set_weight(
        pair.second.weight,
        _from_input(pair.second, view * factors, weight.shape).astype(np.float32),
    )


def _ranges(graph: Graph, pair: Pair) -> tuple[Scales, Scales]:
    """Largest magnitudes of the channels between the layers, in either layer."""
    weight = np.abs(graph.weight(pair.first.weight)).astype(np.float64)
    others = tuple(axis for axis in range(weight.ndim) if axis != pair.first.axis)
    read = np.abs(_by_input(pair.second, graph.weight(pair.second.weight))).astype(np.float64)
    by_channel = read.max(axis=(1, 3)).reshape(-1, pair.spread)
    return weight.max(axis=others), by_channel.max(axis=1)


def _imbalance(graph: Graph, pair: Pair) -> float:
    """How many times larger the first layer's largest channel is than its smallest that is not zero."""
    first, _ = _ranges(graph, pair)
    used = first[first > 0]
    return float(used.max() / used.min()) if used.size else 1.0


def _by_input(target: Target, weight: np.ndarray) -> np.ndarray:
    """The weight as [groups, outputs of a group, inputs of a group, places]."""
    if _layerwise.is_matrix(target):
        return np.moveaxis(weight, target.axis, 0)[None, :, :, None]
    groups = _layerwise.groups(target)
    if target.kind == "ConvTranspose":
        split = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
        return np.swapaxes(split, 1, 2)
    return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)


def _from_input(target: Target, view: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `_by_input`."""
    if _layerwise.is_matrix(target):
        return np.ascontiguousarray(np.moveaxis(view[0, :, :, 0], 0, target.axis))
    if target.kind == "ConvTranspose":
        view = np.swapaxes(view, 1, 2)
    return np.ascontiguousarray(view).reshape(shape)
