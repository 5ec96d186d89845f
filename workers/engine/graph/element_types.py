"""The element type of a value in the file: torch cannot tell a 4-bit integer from the 8-bit one that holds it."""

from __future__ import annotations

import onnx_ir as ir

from workers.engine.graph.ops import TABLE, key


def of(value: ir.Value | None) -> ir.DataType | None:
    """Declared, or followed back to the node that decides it; None where nothing tells."""
    while value is not None:
        node = value.producer()
        if value.dtype is not None or node is None:
            return value.dtype
        if (decided := _decided(node)) is not None:
            return decided
        value = _source(node)
    return None


def _decided(node: ir.Node) -> ir.DataType | None:
    """The type that an attribute says."""
    said = node.attributes.get("to") or node.attributes.get("output_dtype")
    number = 0 if said is None else said.as_int()
    return ir.DataType(number) if number else None


def _source(node: ir.Node) -> ir.Value | None:
    """The operand that has the type of the result."""
    operator = TABLE.get(key(node.domain, node.op_type))
    if operator is None:
        return None
    like = next(iter(operator.typed), 0 if operator.moves_data else None)
    return None if like is None or like >= len(node.inputs) else node.inputs[like]
