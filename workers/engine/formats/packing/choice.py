"""The codec of a tensor: each that could do is tried, the one of the fewest bytes is taken."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from modelpress.packed import codecs, maps
from modelpress.packed.cells import Even
from modelpress.packed.contexts import Layout
from modelpress.packed.maps import Elements
from workers.engine.formats.packing import cells, huffman, layouts, plans, relative
from workers.engine.formats.packing.plans import Method, Plan, Table

FLOATS = frozenset(
    {
        ir.DataType.FLOAT,
        ir.DataType.DOUBLE,
        ir.DataType.FLOAT16,
        ir.DataType.BFLOAT16,
        ir.DataType.COMPLEX64,
        ir.DataType.COMPLEX128,
    }
)
_SIGNED = frozenset(
    {ir.DataType.INT2, ir.DataType.INT4, ir.DataType.INT8}
    | {ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64}
)
_HALVES = (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128)
_MOST_COLUMNS = 2
_CLEARLY_FEW = 256
"""Up to so many distinct values, wide elements are not tried byte by byte."""
_FEW = 0.75
"""More distinct values than this share of the elements are no table."""
_PIECE, _PIECES = 1 << 15, 4
_AT_BEST = 0.85
"""Of the bytes that pieces of a tensor have as DEFLATE, what the whole, with more to look back at, may have."""
_LOOKED_AT = 1 << 17
"""Elements among which distinct values are counted at a time: most weights have too many in the first."""


def plan(
    content: bytes, type_: ir.DataType, dims: tuple[int, ...], method: Method
) -> tuple[Plan, int]:
    """The best plan for the contents of a tensor, and the columns that its section has."""
    options = list(_plans(content, type_, dims, method))
    sizes = [_size(content, option, columns) for option, columns in options]
    least, deflate = min(sizes), plans.Deflate()
    worth_trying = _may_deflate(slabs_of(content, deflate.width, 0), least)
    if worth_trying and _size(content, deflate, 0) < least:
        return deflate, 0
    return options[int(np.argmin(sizes))]


def slabs_of(content: bytes, width: int, columns: int) -> list[Elements]:
    """The elements of each slab."""
    elements = maps.split(content, width)
    ends = np.cumsum(codecs.slabs(len(elements), columns))
    return np.split(elements, ends[:-1]) if len(ends) else []


def _size(content: bytes, option: Plan, columns: int) -> float:
    slabs = slabs_of(content, option.width, columns)
    sample = len(slabs) // 2 if len(slabs) > 1 else None
    size = plans.size(option, slabs, sample) + (1 if columns < 128 else 2)
    return size * _time(option)


def _time(option: Plan) -> float:
    """What a decoder's time counts for, beside the bytes: an alphabet that is not cut is decoded slowly."""
    if isinstance(option, plans.Map) and isinstance(option.coder, plans.Entropy):
        return cells.time(option.coder.cut)
    return 1.0


def _plans(
    content: bytes, type_: ir.DataType, dims: tuple[int, ...], method: Method
) -> Iterator[tuple[Plan, int]]:
    """Plans worth to be tried beside DEFLATE, the simplest first."""
    yield plans.Raw(), 0
    width = width_of(type_)
    all_columns = (0, *_columns(dims, width)) if method == "entropy" else (0,)
    table = table_of(slabs_of(content, width, 0), width, type_)
    if table is not None:
        for columns in all_columns:
            yield from _maps(content, table, columns, method)
    if width >= 16 and (table is None or len(table.values) > _CLEARLY_FEW):
        yield from _planes(content, width, type_, all_columns, method)
    if type_ is ir.DataType.UINT8:  # two codes to a byte, as MatMulNBits has them
        halves = table_of(slabs_of(content, 4, 0), 4, ir.DataType.UINT4)
        assert halves is not None, "four bits have few values"
        yield from _maps(content, halves, 0, method)


def width_of(type_: ir.DataType) -> int:
    """Bits of what is coded as one element: half a complex number."""
    return round(8 * type_.itemsize) // (2 if type_ in _HALVES else 1)


def _columns(dims: tuple[int, ...], width: int) -> list[int]:
    """Widths of a matrix that the tensor may be: all that follows the first axis, all that follows the second."""
    suffixes = [int(np.prod(dims[i:])) for i in range(1, len(dims))]
    aligned = max(8 // width, 1)
    fit = [n for n in suffixes if 1 < n <= codecs.SLAB and n % aligned == 0]
    return list(dict.fromkeys(fit))[:_MOST_COLUMNS]


def _maps(content: bytes, table: Table, columns: int, method: Method) -> Iterator[tuple[Plan, int]]:
    """Plans with a table of values."""
    slabs = slabs_of(content, table.width, columns)
    if len(table.values) == 1:
        yield plans.Map(table, plans.Constant()), 0
        return
    symbols = [table.symbols(slab) for slab in slabs]
    for coder in _coders(symbols, len(table.values), columns, method):
        yield plans.Map(table, coder), columns
        if isinstance(coder, plans.Entropy) and coder.cut.count > cells.MANY and not columns:
            yield _by_rank(table, symbols), columns


def _by_rank(table: Table, symbols: Sequence[NDArray[np.int32]]) -> Plan:
    """With the commonest value first: what is next to each other is about as frequent, so that the alphabet can be cut."""
    counts = sum(np.bincount(slab, minlength=len(table.values)) for slab in symbols)
    ranking = np.argsort(-np.asarray(counts), kind="stable")
    ranks = np.argsort(ranking)
    values = table.values[ranking]
    ranked = Table(table.width, values, False, np.argsort(values))
    sample = ranks[symbols[len(symbols) // 2]]
    return plans.Map(ranked, plans.Entropy(cells.best(sample, len(values)), Layout()))


def _coders(
    symbols: Sequence[NDArray[np.int32]], alphabet: int, columns: int, method: Method
) -> Iterator[plans.Coder]:
    if method == "huffman":
        counts = sum(np.bincount(slab, minlength=alphabet) for slab in symbols)
        yield plans.Dense(huffman.fit(np.asarray(counts)))
        yield plans.Relative(relative.fit(symbols, alphabet))
        return
    sample = symbols[len(symbols) // 2]
    cut = cells.best(sample, alphabet)
    layout = layouts.best(cells.of(sample, cut), cut.count, [columns] if columns else [])
    if not columns or layout.uses_contexts:
        yield plans.Entropy(cut, layout)


def _planes(
    content: bytes, width: int, type_: ir.DataType, all_columns: Sequence[int], method: Method
) -> Iterator[tuple[Plan, int]]:
    """The best plan for each byte of wide elements. Columns are of use to the highest alone."""
    rotated, lower = type_ in FLOATS, None
    for columns in all_columns:
        slabs = [
            np.ascontiguousarray(plans.planes_of(slab, width, rotated=rotated).T)
            for slab in slabs_of(content, width, columns)
        ]
        planes = [[slab[index] for slab in slabs] for index in range(width // 8)]
        lower = lower or [_plane(plane, 0, method) for plane in planes[:-1]]
        yield plans.Planes(width, rotated, (*lower, _plane(planes[-1], columns, method))), columns


def _plane(slabs: list[NDArray[np.uint8]], columns: int, method: Method) -> Plan:
    table = table_of(slabs, 8, ir.DataType.UINT8)
    assert table is not None, "bytes have few values"
    if len(table.values) == 1:
        return plans.Map(table, plans.Constant())
    symbols = [table.symbols(slab) for slab in slabs]
    coders = _coders(symbols, len(table.values), columns, method)
    if columns:
        coders = itertools.chain([plans.Entropy(Even(len(table.values)), Layout())], coders)
    tried: list[Plan] = [plans.Raw(), *(plans.Map(table, coder) for coder in coders)]
    size = partial(plans.size, slabs=slabs, sample=len(slabs) // 2 if len(slabs) > 1 else None)
    best = min(tried, key=size)
    deflate = plans.Deflate()
    return min(best, deflate, key=size) if _may_deflate(slabs, size(best)) else best


def _may_deflate(slabs: Sequence[Elements], best: float) -> bool:
    """Whether a tensor of bytes could have fewer than `best` as DEFLATE, which is slow: pieces of it, as long as DEFLATE looks back, tell."""
    slab = slabs[len(slabs) // 2]
    if len(slab) < 4 * _PIECES * _PIECE:
        return True
    starts = np.linspace(0, len(slab) - _PIECE, _PIECES).astype(int)
    pieces = (plans.deflate(slab[start : start + _PIECE].tobytes()) for start in starts)
    share = sum(map(len, pieces)) / (_PIECES * _PIECE)
    return _AT_BEST * share * sum(map(len, slabs)) < best


def table_of(slabs: Sequence[Elements], width: int, type_: ir.DataType) -> Table | None:
    """The distinct values of all slabs by number; None where they are too many for a table."""
    values = _distinct(slabs, width)
    if values is None:
        return None
    ranked = values[np.argsort(_by_number(values, width, type_))]
    span = (int(ranked[-1]) - int(ranked[0])) % 2**width + 1
    if type_ not in FLOATS and span <= min(len(ranked) + len(ranked) // 4 + 8, maps.MAX_SYMBOLS):
        counting = ranked[0] + np.arange(span, dtype=np.uint64).astype(ranked.dtype)
        return Table(width, counting & ranked.dtype.type(2**width - 1), True, np.arange(span))
    return Table(width, ranked, False, np.argsort(ranked))


def _distinct(slabs: Sequence[Elements], width: int) -> Elements | None:
    """The distinct values of all slabs, rising; None as soon as they are too many for a table."""
    if width <= 8:
        seen = sum(np.bincount(slab, minlength=1 << width) for slab in slabs)
        return np.flatnonzero(seen).astype(maps.dtype(width))
    most = min(maps.MAX_SYMBOLS, _FEW * sum(map(len, slabs)))
    values: Elements = np.zeros(0, maps.dtype(width))
    for slab in slabs:
        for start in range(0, len(slab), _LOOKED_AT):
            values = np.union1d(values, slab[start : start + _LOOKED_AT])
            if len(values) > most:
                return None
    return values


def _by_number(values: Elements, width: int, type_: ir.DataType) -> Elements:
    """Keys that sort bits as the numbers they are: negative floats downwards, negative integers first."""
    if type_ in FLOATS:
        return maps.keys_of(values, width)
    top = values.dtype.type(1 << (width - 1))
    return values ^ top if type_ in _SIGNED else values
