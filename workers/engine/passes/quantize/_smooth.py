"""SmoothQuant: outliers among activations move into the weights that read them (Xiao et al. 2022, arXiv 2211.10438, eq. 4).

x -> LayerNormalization(g, b) -> MatMul(W)    becomes    x -> LayerNormalization(g / s, b / s) -> MatMul(s W)
s_j = max|X_j| ^ a / max|W_j| ^ (1 - a)

The float network computes the same. All readers of a normalization are scaled together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from workers.engine.context import Context
from workers.engine.data import Dataset
from workers.engine.graph import Graph
from workers.engine.passes.quantize import _layerwise, _plan, _prepare, _sweep
from workers.engine.passes.quantize._builder import Builder
from workers.engine.passes.quantize._targets import Target

_NORMS = frozenset({"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"})
_SMALLEST = 1e-5

Slot = tuple[ir.Node, int]


@dataclass(frozen=True)
class Group:
    """Matrix products that read one normalized value."""

    value: ir.Value
    readers: tuple[Target, ...]
    affine: tuple[Slot, ...]
    """Operands, all constants of one number for each channel, whose scaling scales the value."""


class Largest:
    """The largest magnitude of each channel, which the last axis counts."""

    def __init__(self) -> None:
        self.channels: npt.NDArray[np.float64] = np.zeros(())

    def add(self, values: _sweep.Values) -> None:
        rows = np.abs(values.reshape(-1, values.shape[-1]))
        self.channels = np.maximum(self.channels, rows.max(axis=0, initial=0).astype(np.float64))


def smooth(
    graph: Graph,
    targets: Sequence[Target],
    exponent: float,
    samples: Dataset,
    ctx: Context,
    deeds: Mapping[str, list[str]],
) -> list[Group]:
    """Changes normalizations and the weights behind them. Answers the groups it changed."""
    groups, reasons = _groups(graph, targets)
    if reasons:
        told = "; ".join(f"{name}: {reason}" for name, reason in list(reasons.items())[:8])
        ctx.note(f"smooth: {len(reasons)} layers are as they were ({told})")
    if not groups:
        ctx.note("smooth changed nothing: no matrix product reads a normalization by itself")
        return []
    seen = [Largest() for _ in groups]
    names = [group.value.name or "" for group in groups]
    _sweep.run(graph, list(zip(names, seen, strict=True)), samples, ctx, "looking for outliers")
    builder = Builder(graph)
    for group, found in zip(groups, seen, strict=True):
        s = _factors(graph, group, found.channels, exponent)
        _scale(builder, group, s)
        told = (
            f"{_spread(found.channels / s):.1f} times the median, was {_spread(found.channels):.1f}"
        )
        for target in group.readers:
            deeds[target.weight].append(f"smoothed: the largest channel it reads is {told}")
    return groups


def _groups(graph: Graph, targets: Sequence[Target]) -> tuple[list[Group], dict[str, str]]:
    readers: dict[ir.Value, list[Target]] = defaultdict(list)
    reasons = {}
    for target in targets:
        if _layerwise.is_matrix(target):
            readers[target.input].append(target)
    groups = []
    for value, found in readers.items():
        affine = _affine_operands(value)
        reason = _why_not(graph, value, found, affine)
        if reason:
            reasons.update({target.weight: reason for target in found})
        else:
            groups.append(Group(value, tuple(found), affine))
    return groups, reasons


def _why_not(
    graph: Graph, value: ir.Value, readers: Sequence[Target], affine: Sequence[Slot]
) -> str:
    if not affine:
        return "it does not read a normalization with a gain for each channel"
    nodes = {target.node for target in readers}
    if value.is_graph_output() or any(n not in nodes or i for n, i in value.uses()):
        return "the normalization is read by others too, which would see it scaled"
    if any(len(graph.initializers[target.weight].uses()) > 1 for target in readers):
        return "its weight is shared"
    return ""


def _affine_operands(value: ir.Value) -> tuple[Slot, ...]:
    """Gain and shift of the normalization that makes the value, also where it is written as Mul and Add; empty where none does."""
    node = value.producer()
    if node is None:
        return ()
    if node.op_type in _NORMS:
        slots = [(node, i) for i in range(1, len(node.inputs)) if node.inputs[i] is not None]
        return tuple(slots) if all(_is_vector(n.inputs[i]) for n, i in slots) else ()
    shift = _vector_operand(node) if node.op_type == "Add" else None
    mul = node
    if shift is not None:
        before = node.inputs[1 - shift]
        made_by = before.producer() if before is not None else None
        if before is None or made_by is None or _plan.only_use(before) is not node:
            return ()
        mul = made_by
    gain = _vector_operand(mul) if mul.op_type == "Mul" else None
    if gain is None:
        return ()
    return ((mul, gain),) if shift is None else ((mul, gain), (node, shift))


def _vector_operand(node: ir.Node) -> int | None:
    return next((i for i, v in enumerate(node.inputs) if _is_vector(v)), None)


def _is_vector(value: ir.Value | None) -> bool:
    if value is None or not _plan.is_constant(value):
        return False
    shape = _prepare.array(value).shape
    return bool(shape) and shape[-1] > 1 and shape[-1] == int(np.prod(shape))


def _factors(
    graph: Graph, group: Group, largest: npt.NDArray[np.float64], exponent: float
) -> npt.NDArray[np.float64]:
    """s: [channels]; 1 for a channel that is always zero or that no weight reads."""
    weights = [
        np.abs(graph.weight(target.weight)).max(axis=target.axis) for target in group.readers
    ]
    read = np.max(weights, axis=0).astype(np.float64)
    usable = (largest > _SMALLEST) & (read > _SMALLEST)
    inputs, outputs = largest.clip(min=_SMALLEST), read.clip(min=_SMALLEST)
    return np.where(usable, inputs**exponent / outputs ** (1 - exponent), 1.0)


def _scale(builder: Builder, group: Group, s: npt.NDArray[np.float64]) -> None:
    for node, index in group.affine:
        value = node.inputs[index]
        assert value is not None
        scaled = (np.asarray(_prepare.array(value)) / s).astype(np.float32)
        node.replace_input_with(index, builder.constant(f"{value.name}_smoothed", scaled))
    graph = builder.graph
    for target in group.readers:
        weight = graph.weight(target.weight)
        along = s[:, None] if target.axis == 1 else s[None, :]
        graph.set_weight(target.weight, (weight * along).astype(np.float32))


def _spread(channels: npt.NDArray[np.float64]) -> float:
    return float(channels.max() / max(float(np.median(channels)), 1e-30))
