"""Which constants are the parameters of a network: the floats that training changes, and the integers that stand for such."""

from __future__ import annotations

import onnx_ir as ir

from workers.engine.graph import codes, roles
from workers.engine.graph.graph import Graph

_INTEGERS = {
    "ConvInteger": (1, 3),
    "DequantizeLinear": (0, 2),
    "MatMulInteger": (1, 3),
    "QLinearConv": (3, 5),
    "QLinearMatMul": (3, 5),
}
"""Where operators take integer weights: operands of the weight and of its zero point."""


def integer_use(value: ir.Value) -> tuple[ir.Node, int] | None:
    """The node that takes a value as an integer weight, and which of its operands is the zero point."""
    for node, slot in value.uses():
        weight, zero_point = _INTEGERS.get(node.op_type, (-1, -1))
        if slot == weight:
            return node, zero_point
    return None


def count(graph: Graph) -> int:
    """Elements of all weights; running statistics and other constants are none."""
    return sum(_elements(graph, value) for value in graph.initializers.values())


def _elements(graph: Graph, value: ir.Value) -> int:
    if value.const_value is None:
        return 0
    if roles.role(value) is roles.Role.WEIGHT or integer_use(value) is not None:
        return value.const_value.size
    coded = codes.read(graph, value)
    return 0 if coded is None else coded.symbols.size
