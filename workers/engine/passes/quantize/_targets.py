"""The layers of a graph that int8 may change, and why the others stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from modelpress.spec.step import Step
from workers.engine.context import Context
from workers.engine.graph import Graph, match
from workers.engine.passes.quantize import _plan


@dataclass(frozen=True)
class Target:
    """A node with a constant float32 weight."""

    node: ir.Node
    weight: str
    axis: int
    """Axis of the weight's output channels."""
    bias: ir.Value | None
    kind: str

    @property
    def input(self) -> ir.Value:
        """What it multiplies by its weight."""
        value = self.node.inputs[0]
        assert value is not None
        return value


def find(graph: Graph, step: Step, ctx: Context) -> list[Target]:
    """Every layer that can be quantized; the others are reported as skipped, each with its reason."""
    targets = []
    for layer in match.layers(graph):
        target = of(layer)
        reason = _why_not(graph, target, step)
        if reason:
            ctx.skipped(layer.weight, reason)
        else:
            targets.append(target)
    return targets


def of(layer: match.Layer) -> Target:
    """A layer as int8 looks at it."""
    return Target(layer.node, layer.weight, layer.out_axis, _bias(layer.node), layer.kind)


def products(nodes: Sequence[ir.Node], step: Step) -> list[ir.Node]:
    """MatMul nodes of two activations, as in attention."""
    varying = _varying(nodes)
    return [
        node
        for node in nodes
        if node.op_type == "MatMul"
        and all(v in varying for v in node.inputs)
        and not step.excludes(node.name or "")
    ]


def _varying(nodes: Sequence[ir.Node]) -> set[ir.Value]:
    """Values that depend on the inputs of the graph."""
    varying: set[ir.Value] = set()
    for node in nodes:
        inputs = [v for v in node.inputs if v is not None]
        if any(v in varying or _is_fed(v) for v in inputs):
            varying.update(v for v in (*inputs, *node.outputs) if not _plan.is_constant(v))
    return varying


def _is_fed(value: ir.Value) -> bool:
    return value.is_graph_input() and not _plan.is_constant(value)


def _bias(node: ir.Node) -> ir.Value | None:
    return node.inputs[2] if node.op_type != "MatMul" and len(node.inputs) > 2 else None


def _why_not(graph: Graph, target: Target, step: Step) -> str:
    if step.excludes(target.weight, target.node.name or ""):
        return "excluded by the recipe"
    weight = graph.initializers[target.weight].const_value
    if weight is None or weight.dtype != ir.DataType.FLOAT:
        return f"its weight is {weight.dtype if weight else 'computed'}, only float32 is quantized"
    if target.node.inputs[1] is not graph.initializers[target.weight]:
        return "its weight is computed from a constant, not stored as one"
    if target.bias is not None and not _plan.is_constant(target.bias):
        return "its bias is computed at run time"
    if target.kind == "Gemm" and target.node.attributes.get_int("transA"):
        return "its input is transposed (transA), which integer kernels can't"
    if not np.isfinite(graph.weight(target.weight)).all():
        return "its weight has values that are not finite"
    return ""
