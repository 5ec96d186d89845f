"""A quantized weight, and how a graph keeps it: three forms of the same numbers.

load    codes -> Cast -> Sub(zero) -> Mul(scale) -> Reshape -> w          ONNX Runtime computes it once, when it opens the file
run     codes -> DequantizeLinear(scale, zero) -> w                       at each run; runtimes know it as a compressed weight
        x, codes -> MatMulNBits -> y                                      in the place of a matrix product
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from workers.engine.formats import upgrade
from workers.engine.graph import Graph, codes, edit
from workers.engine.passes._matrix import Matrix

Codes = npt.NDArray[np.uint8]

INT2_OPSET, INT2_IR = 25, 13
"""From these versions on ONNX has integers of 2 bits."""


@dataclass(frozen=True)
class Packed:
    """Codes and scales of one weight: w = (code - zero) * scale * divisor."""

    matrix: Matrix
    bits: int
    symmetric: bool
    group: int
    """Columns that share a scale; the last group may have fewer."""
    codes: Codes
    """[rows, columns], unsigned also where the grid is symmetric."""
    scale: npt.NDArray[np.floating]
    """[rows, groups] float16 or float32."""
    zero: Codes
    """[rows, groups]."""
    divisor: npt.NDArray[np.float16] | None = None
    """[columns]; null where it is 1."""

    @property
    def width(self) -> int:
        """Bits of one code in a file."""
        return file_bits(self.bits)

    @property
    def middle(self) -> int:
        """The code of zero where the grid is symmetric."""
        return 1 << (self.bits - 1)

    @property
    def per_channel(self) -> bool:
        return self.group >= self.matrix.columns

    @property
    def bytes_of(self) -> dict[str, int]:
        """What it takes in a file: codes, scales, zero points and divisors."""
        zeros = 0 if self.symmetric else self.zero.size * max(self.width, 4) / 8
        divisors = 0 if self.divisor is None else self.divisor.nbytes
        return {
            "codes": -(-self.codes.size * self.width // 8),
            "scales": self.scale.nbytes,
            "zero points": int(np.ceil(zeros)),
            "divisors": divisors,
        }

    def decoded(self) -> npt.NDArray[np.float32]:
        """The weight in its own shape, as every form of it computes it."""
        scale = np.repeat(self.scale.astype(np.float32), self.group, axis=1)
        zero = np.repeat(self.zero, self.group, axis=1).astype(np.int16)
        columns = self.matrix.columns
        rows = (self.codes - zero[:, :columns]).astype(np.float32) * scale[:, :columns]
        if self.divisor is not None:
            rows = rows * self.divisor.astype(np.float32)
        return np.asarray(self.matrix.from_rows(rows), np.float32)


def file_bits(bits: int) -> int:
    """Bits that a code takes in an ONNX file: its types have 2, 4 and 8."""
    return next(width for width in (2, 4, 8) if bits <= width)


def load_form(graph: Graph, name: str, packed: Packed) -> ir.Value:
    """Stores a weight as operators that standard constant folding computes; answers the value that is the weight."""
    writer = _Writer(graph, name)
    if packed.per_channel:
        value = writer.numbers(packed.matrix.from_rows(packed.codes), packed)
        value = writer.op("Sub", value, writer.zero(packed, _along(packed)))
        value = writer.op("Mul", value, writer.scale(packed, _along(packed)))
    else:
        value = _grouped(writer, packed)
    if packed.divisor is not None:
        value = writer.op("Mul", value, writer.half("divisor", _divisor(packed)))
    return value


def dequantize_form(graph: Graph, name: str, packed: Packed) -> ir.Value:
    """Stores a weight with a DequantizeLinear behind it; answers the value that is the weight."""
    writer = _Writer(graph, name)
    if packed.width == 2:
        _require_int2(graph)
    if packed.per_channel:
        shape, layout, attributes = (
            (-1,),
            packed.matrix.from_rows(packed.codes),
            {"axis": packed.matrix.axis},
        )
    else:
        shape, layout = packed.scale.shape, packed.codes
        attributes = {"axis": 1, "block_size": packed.group}
    stored = writer.integers("codes", layout, packed)
    operands = [stored, writer.scale(packed, shape)]
    if not packed.symmetric:
        operands.append(writer.integers("zero", packed.zero.reshape(shape), packed))
    value = writer.op("DequantizeLinear", *operands, **attributes)
    if not packed.per_channel:
        value = writer.reshaped(value, packed)
    if packed.divisor is not None:
        value = writer.op("Mul", value, writer.half("divisor", _divisor(packed)))
    return value


def _grouped(writer: _Writer, packed: Packed) -> ir.Value:
    """[rows, groups, group] -> [rows, groups * group] -> [rows, columns] -> the weight."""
    rows, groups = packed.scale.shape
    columns, whole = packed.matrix.columns, groups * packed.group
    padded = np.pad(packed.codes, ((0, 0), (0, whole - columns)))
    value = writer.numbers(padded.reshape(rows, groups, packed.group), packed)
    value = writer.op("Sub", value, writer.zero(packed, (rows, groups, 1)))
    value = writer.op("Mul", value, writer.scale(packed, (rows, groups, 1)))
    if whole > columns:
        value = writer.op("Reshape", value, writer.ints(rows, whole))
        value = writer.op("Slice", value, writer.ints(0), writer.ints(columns), writer.ints(1))
    return writer.reshaped(value, packed)


def _along(packed: Packed) -> tuple[int, ...]:
    """The shape of one number for each output, to broadcast over the weight."""
    return tuple(n if i == packed.matrix.axis else 1 for i, n in enumerate(packed.matrix.shape))


def _divisor(packed: Packed) -> npt.NDArray[np.float16]:
    """The divisors, to broadcast over the weight."""
    assert packed.divisor is not None
    matrix = packed.matrix
    one_row = packed.divisor.reshape(1, *matrix.moved[1:])
    return np.ascontiguousarray(np.moveaxis(one_row, 0, matrix.axis))


def _require_int2(graph: Graph) -> None:
    upgrade.upgrade(graph.model, INT2_OPSET)
    graph.model.ir_version = max(graph.model.ir_version or 0, INT2_IR)


class _Writer:
    """Makes the constants and nodes of one weight, before everything else in the graph."""

    def __init__(self, graph: Graph, name: str) -> None:
        self._graph, self._name = graph, name
        self._first = graph.nodes[0]

    def op(self, op_type: str, *operands: ir.Value, **attributes: int | list[int]) -> ir.Value:
        """A node's result."""
        node = edit.insert_before(
            self._graph,
            self._first,
            op_type,
            operands,
            attributes=attributes,
            name=f"{self._name}_{op_type}",
        )
        return node.outputs[0]

    def numbers(self, array: Codes, packed: Packed) -> ir.Value:
        """Codes as float32."""
        kind = ir.DataType.FLOAT
        return codes.numbers(self._graph, self._first, self._name, array, 2**packed.bits, kind)

    def integers(self, suffix: str, array: Codes, packed: Packed) -> ir.Value:
        """Codes in an integer type of ONNX; signed where the grid is symmetric."""
        kind = _TYPES[packed.width, packed.symmetric]
        shifted = array.astype(np.int16) - (packed.middle if packed.symmetric else 0)
        return self.constant(suffix, shifted.astype(kind.numpy()))

    def scale(self, packed: Packed, shape: tuple[int, ...]) -> ir.Value:
        """Scales as float32."""
        scale = packed.scale.reshape(shape)
        if scale.dtype == np.float32:
            return self.constant("scale", scale)
        return self.half("scale", scale)

    def zero(self, packed: Packed, shape: tuple[int, ...]) -> ir.Value:
        """Zero points as float32: one number where the grid is symmetric."""
        if packed.symmetric:
            return self.constant("zero", np.array(packed.middle, np.float32))
        kind = ir.DataType.UINT8 if packed.width == 8 else ir.DataType.UINT4
        stored = self.constant("zero", packed.zero.reshape(shape).astype(kind.numpy()))
        return self.op("Cast", stored, to=int(ir.DataType.FLOAT))

    def half(self, suffix: str, array: npt.NDArray[np.floating]) -> ir.Value:
        """Numbers stored as float16, read as float32."""
        return self.op("Cast", self.constant(suffix, array), to=int(ir.DataType.FLOAT))

    def reshaped(self, value: ir.Value, packed: Packed) -> ir.Value:
        """[rows, ...] as the weight."""
        matrix = packed.matrix
        value = self.op("Reshape", value, self.ints(*matrix.moved))
        if matrix.axis == 0:
            return value
        order = list(range(1, len(matrix.shape)))
        return self.op("Transpose", value, perm=[*order[: matrix.axis], 0, *order[matrix.axis :]])

    def constant(self, suffix: str, array: npt.NDArray[np.generic]) -> ir.Value:
        return self._graph.add_weight(f"{self._name}_{suffix}", array)

    def ints(self, *values: int) -> ir.Value:
        return self.constant("ints", np.array(values, np.int64))


_TYPES = {
    (2, True): ir.DataType.INT2,
    (2, False): ir.DataType.UINT2,
    (4, True): ir.DataType.INT4,
    (4, False): ir.DataType.UINT4,
    (8, True): ir.DataType.INT8,
    (8, False): ir.DataType.UINT8,
}
