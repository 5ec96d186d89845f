"""What the bytes of a model are for: weights, codebooks, biases, norms; everything else is header."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import StrEnum

import onnx_ir as ir

from modelpress.spec.report import SizeParts
from workers.engine.graph import Graph, codes, parameters, roles

_NORMS = frozenset(
    {
        "BatchNormalization",
        "GroupNormalization",
        "InstanceNormalization",
        "LayerNormalization",
        "LayerNormalizationBias",
        "RMSNormalization",
        "SimplifiedLayerNormalization",
        "SkipLayerNormalization",
        "SkipSimplifiedLayerNormalization",
    }
)
_SCALES = {
    "ConvInteger": range(2, 4),
    "DequantizeLinear": range(1, 3),
    "MatMulInteger": range(2, 4),
    "MatMulNBits": range(2, 5),
    "QLinearConv": (1, 2, 4, 5, 6, 7),
    "QLinearMatMul": (1, 2, 4, 5, 6, 7),
    "QuantizeLinear": range(1, 3),
}
"""Where operators take scales and zero points: what codes stand for follows from these."""
_CODED = {"MatMulNBits": 1}
"""Where they take codes that are no ONNX integers of their own."""
_SHIFTS = frozenset({"Mul", "Sub"})
"""What makes numbers of codes, where standard operators do it."""
_CARRIERS = frozenset({"Cast", "Expand", "Reshape", "Transpose"})
"""What scales and zero points pass on their way there."""


class Part(StrEnum):
    """A part of a model's bytes, as reports name it."""

    WEIGHTS = "weights_bytes"
    CODEBOOKS = "codebooks_bytes"
    TABLES = "tables_bytes"
    BIASES = "biases_bytes"
    NORMS = "norms_bytes"
    HEADERS = "headers_bytes"


def measure(graph: Graph, file_bytes: int) -> SizeParts:
    """The parts of an ONNX file of so many bytes; it has no tables of a coder."""
    found = dict.fromkeys(Part, 0)
    for name, part in of(graph).items():
        tensor = graph.initializers[name].const_value
        found[part] += tensor.nbytes if tensor is not None else 0
    inside = sum(found.values()) - found[Part.HEADERS]
    found[Part.HEADERS] = max(file_bytes - inside, 0)
    return SizeParts(**{part.value: size_bytes for part, size_bytes in found.items()})


def of(graph: Graph) -> Mapping[str, Part]:
    """The part that each initializer belongs to, by name."""
    return {name: _part(graph, value) for name, value in graph.initializers.items()}


def _part(graph: Graph, value: ir.Value) -> Part:
    uses = [(node, slot) for node, slot in value.uses()]
    if any(node.op_type in _NORMS for node, _ in uses) or roles.role(value) is roles.Role.STATISTIC:
        return Part.NORMS
    if codes.read(graph, value) is not None:
        return Part.BIASES if _is_row(value, uses) else Part.WEIGHTS
    if _is_table(uses) or _scales(graph, value):
        return Part.CODEBOOKS
    if any(_CODED.get(node.op_type) == slot for node, slot in uses):
        return Part.WEIGHTS
    if parameters.integer_use(value) is not None:
        return Part.BIASES if value.dtype is ir.DataType.INT32 else Part.WEIGHTS
    if roles.role(value) is roles.Role.WEIGHT:
        return Part.BIASES if _rank(value) < 2 else Part.WEIGHTS
    return Part.HEADERS


def _rank(value: ir.Value) -> int:
    """Axes with more than one element."""
    tensor = value.const_value
    return sum(size > 1 for size in tensor.shape.numpy()) if tensor is not None else 0


def _is_row(value: ir.Value, uses: Collection[tuple[ir.Node, int]]) -> bool:
    """Whether codes in their weight's own shape have one axis, as those of a bias."""
    return _rank(value) < 2 and all(node.op_type == "Cast" for node, _ in uses)


def _is_table(uses: Collection[tuple[ir.Node, int]]) -> bool:
    """Whether constant indices choose among the values: those of a weight that is stored as a table and codes."""
    return any(
        node.op_type == "Gather" and slot == 0 and _is_constant(node.inputs[1])
        for node, slot in uses
    )


def _scales(graph: Graph, value: ir.Value) -> bool:
    """Whether codes are shifted or multiplied by it, by an operator of integers or by standard ones."""
    for node, slot in value.uses():
        if slot in _SCALES.get(node.op_type, ()):
            return True
        if node.op_type in _CARRIERS and slot == 0 and _scales(graph, node.outputs[0]):
            return True
        if node.op_type in _SHIFTS and _holds_codes(graph, node.inputs[1 - slot]):
            return True
    return False


def _holds_codes(graph: Graph, value: ir.Value | None) -> bool:
    """Whether a value is made of constants alone, codes among them."""
    if not _is_constant(value):
        return False
    todo = [value]
    while todo:
        found = todo.pop()
        maker = None if found is None else found.producer()
        todo += maker.inputs if maker is not None else ()
        if found is not None and found.is_initializer() and codes.read(graph, found) is not None:
            return True
    return False


def _is_constant(value: ir.Value | None, depth: int = 12) -> bool:
    """Whether a value follows from initializers alone."""
    if value is None or value.is_initializer():
        return True
    node = value.producer()
    return node is not None and depth > 0 and all(_is_constant(i, depth - 1) for i in node.inputs)
