"""Weights that a graph keeps as small codes, which standard operators turn into numbers when it runs.

    codes [out, in] uint4 or uint8 ---------------------------------> Cast -> numbers
    bytes [n, 1] uint8 -> Div(powers) -> Mod(base) -> Reshape -> Slice -> Cast -> numbers

A byte holds as many digits of a base as fit: 8 of base 2, 5 of base 3, the most significant first. Numbers are then looked up in a table
(Gather) or shifted and scaled (Sub, Mul). ONNX Runtime does all of this once, when it opens the file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from workers.engine.graph import edit
from workers.engine.graph.graph import Graph

Codes = npt.NDArray[np.uint8]

DIGITS_BELOW = 7
"""Of this base on, a byte holds no more digits than two of 4 bits."""
_INT4_BASE = 16
_UNSIGNED = frozenset({ir.DataType.UINT8, ir.DataType.UINT4})


@dataclass(frozen=True)
class Stored:
    """The codes of a weight as a file has them."""

    symbols: Codes
    """One for each weight, flat."""
    bits: float
    """Of one code in the file; digits that share a byte have a fraction of it."""
    zero: int | None
    """The code that stands for zero; null where there is none, or it differs from place to place."""

    @property
    def nonzeros(self) -> int:
        """Weights that are not zero."""
        return self.symbols.size - int(np.count_nonzero(self.symbols == self.zero))


def digits_in_byte(base: int) -> int:
    """How many digits of a base a byte holds."""
    return next(count for count in range(8, 0, -1) if base**count <= 256)


def pack(codes: Codes, base: int) -> Codes:
    """Digits [n] as bytes [ceil(n / digits_in_byte), 1]; the last is filled up with zeros."""
    count = digits_in_byte(base)
    padded = np.zeros(-(-codes.size // count) * count, np.uint8)
    padded[: codes.size] = codes.reshape(-1)
    packed: Codes = (padded.reshape(-1, count) @ _powers(base)).astype(np.uint8)
    return packed.reshape(-1, 1)


def unpack(packed: Codes, base: int, count: int) -> Codes:
    """The first `count` digits of bytes, as the graph's operators compute them."""
    digits: Codes = packed.reshape(-1, 1) // _powers(base) % np.uint8(base)
    return digits.reshape(-1)[:count]


def numbers(
    graph: Graph, before: ir.Node, name: str, codes: Codes, base: int, to: ir.DataType
) -> ir.Value:
    """Stores codes below `base` in as few bits as standard operators read, and casts them before a node.

    Args:
        graph: Gets the nodes and the constants.
        before: The first node that needs the numbers.
        name: How constants and nodes are called.
        codes: Of any shape; the numbers have the same.
        base: How many codes there are.
        to: Element type of the numbers.
    """
    if base < DIGITS_BELOW:
        stored = _digits(graph, before, name, codes, base)
    elif base <= _INT4_BASE:
        stored = graph.add_weight(f"{name}_codes", codes.astype(ir.DataType.UINT4.numpy()))
    else:
        stored = graph.add_weight(f"{name}_codes", codes)
    cast = edit.insert_before(
        graph, before, "Cast", [stored], attributes={"to": int(to)}, name=f"{name}_number"
    )
    return cast.outputs[0]


def _digits(graph: Graph, before: ir.Node, name: str, codes: Codes, base: int) -> ir.Value:
    packed = pack(codes.reshape(-1), base)
    stored = graph.add_weight(f"{name}_codes", packed)
    powers = _shared(graph, f"digits_{base}", _powers(base))
    modulus = _shared(graph, f"base_{base}", np.array(base, np.uint8))
    value = edit.insert_before(graph, before, "Div", [stored, powers]).outputs[0]
    value = edit.insert_before(graph, before, "Mod", [value, modulus]).outputs[0]
    if packed.size * digits_in_byte(base) != codes.size:
        value = _reshaped(graph, before, value, (-1,))
        bounds = [_integers(graph, *ends) for ends in ((0,), (codes.size,))]
        value = edit.insert_before(graph, before, "Slice", [value, *bounds]).outputs[0]
    return _reshaped(graph, before, value, codes.shape)


def _reshaped(graph: Graph, before: ir.Node, value: ir.Value, shape: tuple[int, ...]) -> ir.Value:
    wanted = _integers(graph, *shape)
    return edit.insert_before(graph, before, "Reshape", [value, wanted]).outputs[0]


def _integers(graph: Graph, *values: int) -> ir.Value:
    name = "_".join(["ints", *(str(v).replace("-", "m") for v in values)])
    return _shared(graph, name, np.array(values, np.int64))


def _shared(graph: Graph, name: str, array: np.ndarray) -> ir.Value:
    """A constant that is there once, whoever needs it."""
    known = graph.initializers.get(name)
    if known is not None and known.const_value is not None:
        stored = known.const_value.numpy()
        if stored.dtype == array.dtype and np.array_equal(stored, array):
            return known
    return graph.add_weight(name, array)


def _powers(base: int) -> Codes:
    count = digits_in_byte(base)
    return np.array([base**place for place in range(count - 1, -1, -1)], np.uint8)


def read(graph: Graph, value: ir.Value) -> Stored | None:
    """The codes that an initializer holds; null where it is something else."""
    if value.dtype not in _UNSIGNED or value.const_value is None:
        return None
    elements = value.const_value.numpy().astype(np.uint8)
    for user, slot in value.uses():
        if user.op_type == "MatMulNBits" and slot == 1:
            return _read_rows(user, elements)
        if user.op_type == "Div" and slot == 0:
            return _read_digits(graph, user, elements)
        if user.op_type == "Cast" and (zero := _zero(graph, user.outputs[0])) is not _NOT_A_CODE:
            return Stored(elements.reshape(-1), float(value.dtype.bitwidth), zero)
    return None


_NOT_A_CODE = -1


def _read_rows(user: ir.Node, packed: Codes) -> Stored:
    """Codes [N, blocks, bytes of a block] of a MatMulNBits, the first in the lowest bits of a byte."""
    bits, columns = user.attributes.get_int("bits", 4), user.attributes["K"].as_int()
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    rows = (packed.reshape(len(packed), -1, 1) >> shifts) & np.uint8(2**bits - 1)
    has_zeros = len(user.inputs) > 3 and user.inputs[3] is not None
    symbols: Codes = rows.reshape(len(packed), -1)[:, :columns].reshape(-1)
    return Stored(symbols, float(bits), None if has_zeros else 2 ** (bits - 1))


def _read_digits(graph: Graph, divided: ir.Node, packed: Codes) -> Stored | None:
    powers, modulus = _constant(graph, divided, 1), _only_user(divided)
    if powers is None or modulus is None or modulus.op_type != "Mod":
        return None
    divisor, node = _constant(graph, modulus, 1), _only_user(modulus)
    base = int(divisor) if divisor is not None and divisor.size == 1 else 0
    if not 2 <= base < DIGITS_BELOW or not np.array_equal(powers.reshape(-1), _powers(base)):
        return None
    count = packed.size * powers.size
    while node is not None and node.op_type in ("Reshape", "Slice"):
        ends = _constant(graph, node, 2) if node.op_type == "Slice" else None
        count, node = count if ends is None else int(ends.reshape(-1)[0]), _only_user(node)
    if node is None or node.op_type != "Cast":
        return None
    zero = _zero(graph, node.outputs[0])
    if zero == _NOT_A_CODE:
        return None
    return Stored(unpack(packed, base, count), 8 / powers.size, zero)


def _zero(graph: Graph, numbers: ir.Value) -> int | None:
    """The number that becomes 0; null where none does, _NOT_A_CODE where numbers are not used as codes."""
    for user, slot in numbers.uses():
        if user.op_type == "Gather" and slot == 1:
            table = _constant(graph, user, 0)
            return _NOT_A_CODE if table is None or table.ndim != 1 else _first(table == 0)
        if user.op_type == "Sub" and slot == 0:
            shift = _constant(graph, user, 1)
            if shift is None:
                return None if _is_cast_constant(user.inputs[1]) else _NOT_A_CODE
            return _NOT_A_CODE if shift.size != 1 else _whole(float(shift.reshape(())))
    return _NOT_A_CODE


def _is_cast_constant(value: ir.Value | None) -> bool:
    """Whether it is zero points of groups: stored narrow, read as numbers."""
    maker = None if value is None else value.producer()
    source = maker.inputs[0] if maker is not None and maker.op_type == "Cast" else None
    return source is not None and source.const_value is not None


def _whole(number: float) -> int | None:
    return int(number) if number == int(number) else None


def _first(found: npt.NDArray[np.bool_]) -> int | None:
    return int(found.argmax()) if found.any() else None


def _only_user(node: ir.Node) -> ir.Node | None:
    users = [user for user, _ in node.outputs[0].uses()]
    return users[0] if len(users) == 1 else None


def _constant(graph: Graph, node: ir.Node, slot: int) -> np.ndarray | None:
    """The elements of an operand that is an initializer."""
    value = node.inputs[slot] if slot < len(node.inputs) else None
    known = value is not None and value.name in graph.initializers
    return graph.weight(value.name or "") if known and value is not None else None


def file_bytes(count: int, base: int) -> int:
    """Bytes of `count` codes below `base` in a file, without the nodes that read them."""
    if base < DIGITS_BELOW:
        return math.ceil(count / digits_in_byte(base))
    return math.ceil(count / 2) if base <= _INT4_BASE else count
