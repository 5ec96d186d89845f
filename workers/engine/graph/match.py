"""Find the layers of a graph: nodes that multiply activations by a weight of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from workers.engine.graph.graph import Graph

Kind = Literal["Conv", "ConvTranspose", "Gemm", "MatMul"]

KINDS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Layer:
    """A node with a weight."""

    node: ir.Node
    weight: str
    """Name of the initializer."""
    bias: str | None
    """Name of its bias: an operand of the node, or what an Add right after a MatMul adds."""
    out_axis: int
    """Axis of the weight that counts outputs: channels of a quantization scale."""
    in_axis: int
    """Axis of the weight that counts inputs (of one group)."""
    kind: Kind

    @property
    def name(self) -> str:
        """Name of the node."""
        return self.node.name or ""


def layers(graph: Graph) -> list[Layer]:
    """Every node of the main graph that multiplies an activation by a float initializer, in order."""
    found = (_layer(graph, node) for node in graph.nodes)
    return [layer for layer in found if layer is not None]


def by_weight(graph: Graph) -> dict[str, list[Layer]]:
    """All layers by the weight they multiply by, in order."""
    found: dict[str, list[Layer]] = {}
    for layer in layers(graph):
        found.setdefault(layer.weight, []).append(layer)
    return found


def not_layers(graph: Graph) -> dict[str, str]:
    """Weights of two or more axes (longer than 1) that no layer uses, with the reason."""
    of_layers = {layer.weight for layer in layers(graph)}
    return {
        name: _reason(graph.initializers[name])
        for name, array in graph.parameters().items()
        if sum(size > 1 for size in array.shape) >= 2 and name not in of_layers
    }


def _layer(graph: Graph, node: ir.Node) -> Layer | None:
    kind = next((kind for kind in KINDS if kind == node.op_type and node.domain == ""), None)
    if kind is None:
        return None
    weight = node.inputs[1]
    if weight is None or weight.name is None or not graph.is_parameter(weight.name):
        return None
    rank = len(weight.shape or ())
    if kind == "MatMul" and rank != 2:
        return None
    out_axis, in_axis = _axes(kind, node)
    return Layer(node, weight.name, _bias(node, kind), out_axis, in_axis, kind)  # type: ignore[arg-type]


def _axes(kind: str, node: ir.Node) -> tuple[int, int]:
    turned = "transB" in node.attributes and node.attributes["transB"].as_int()
    if kind == "Conv" or turned:
        return 0, 1
    return 1, 0


def _bias(node: ir.Node, kind: str) -> str | None:
    if kind != "MatMul":
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        return bias.name if bias is not None and bias.is_initializer() else None
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or uses[0].node.op_type != "Add":
        return None
    other = uses[0].node.inputs[1 - uses[0].idx]
    if other is None or not other.is_initializer() or len(other.shape or ()) != 1:
        return None
    return other.name


def _reason(value: ir.Value) -> str:
    users = sorted({use.node.op_type for use in value.uses()})
    kinds = ", ".join(users)
    if "Gather" in users:
        return f"read by {kinds}: a table that is looked up, not multiplied"
    if set(users) & {"MatMul", "Gemm"}:
        return f"read by {kinds}, but not as the second operand of two axes"
    return f"read by {kinds}, not by {', '.join(KINDS)}"
