"""Encoders, one for each codec of modelpress.packed.codecs: what stands before the slabs of a tensor, and each slab."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from modelpress.packed import codecs, maps
from modelpress.packed.cells import WIDTH_BITS, Cells, Even, Uneven
from modelpress.packed.codecs import EVEN, UNEVEN, Codec
from modelpress.packed.contexts import Layout
from modelpress.packed.huffman import Code
from modelpress.packed.maps import Elements
from workers.engine.formats.packing import cells, huffman, layouts, relative
from workers.engine.formats.packing.numbers import blob, number, packed, packed_tails

Method = Literal["huffman", "entropy"]


@dataclass(frozen=True)
class Coded:
    """What became of a tensor."""

    name: str
    codec: str
    """In words: 'relative index of 5 bits, Huffman'."""
    elements: int
    content_bytes: int
    packed_bytes: int
    codebook_bytes: int
    """Of these, the values that symbols stand for."""
    table_bytes: int
    """Of these, code lengths and what else a decoder must know before the codes."""


class Plan(Protocol):
    """How the elements of a tensor are to be coded."""

    @property
    def width(self) -> int:
        """Bits of an element."""

    @property
    def codebook(self) -> bytes:
        """The values that symbols stand for; part of the head."""

    def head(self) -> bytes:
        """What a decoder reads first."""

    def slab(self, elements: Elements) -> bytes:
        """The code of a slab."""

    def words(self) -> str:
        """The codec, for people."""


@dataclass(frozen=True)
class Raw:
    """Bytes as they are."""

    width: int = 8
    codebook: bytes = b""

    def head(self) -> bytes:
        return bytes([Codec.RAW])

    def slab(self, elements: Elements) -> bytes:
        return elements.tobytes()

    def words(self) -> str:
        return "raw"


@dataclass(frozen=True)
class Deflate:
    """A DEFLATE stream for each slab."""

    width: int = 8
    codebook: bytes = b""

    def head(self) -> bytes:
        return bytes([Codec.DEFLATE])

    def slab(self, elements: Elements) -> bytes:
        return blob(deflate(elements.tobytes()))

    def words(self) -> str:
        return "DEFLATE"


def deflate(content: bytes) -> bytes:
    """A raw DEFLATE stream."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 9)
    return packer.compress(content) + packer.flush()


@dataclass(frozen=True)
class Table:
    """The distinct values of a tensor, in an order that means something: by number, not by bits."""

    width: int
    values: Elements
    counts_up: bool
    """Whether each value is the one before plus one, so that only the first is stored."""
    order: NDArray[np.int64]
    """Of the values by bits: where each is in `values`."""

    def symbols(self, elements: Elements) -> NDArray[np.int32]:
        """The symbol of each element."""
        if self.width <= 16:
            symbol_of = np.zeros(1 << self.width, np.int32)
            symbol_of[self.values] = np.arange(len(self.values))
            return symbol_of[elements]
        if self.counts_up:
            above: NDArray[np.int32] = (elements - self.values[0]).astype(np.int32)
            return above
        ranks = np.searchsorted(self.values[self.order], elements)
        found: NDArray[np.int32] = self.order[ranks].astype(np.int32)
        return found

    def stored(self) -> bytes:
        """As modelpress.packed.maps.read_table reads it, in the form of the fewest bytes."""
        count = number(len(self.values))
        if self.counts_up:
            return count + bytes([maps.RANGE]) + self.values[:1].tobytes()
        forms = [self._in_planes()]
        if self.width in (16, 32):
            forms.append(bytes([maps.RISING]) + _rising(self.values, self.width))
            keys = maps.keys_of(self.values, self.width)
            forms.append(bytes([maps.RISING_FLOATS]) + _rising(keys, self.width))
        return count + min(forms, key=len)

    def _in_planes(self) -> bytes:
        planes = maps.planes_of(self.values)
        present = [i for i in range(planes.shape[1]) if planes[:, i].any()]
        mask = sum(1 << i for i in present)
        stored = b"".join(planes[:, i].tobytes() for i in present)
        return bytes([maps.EXPLICIT, mask]) + stored


def _rising(values: Elements, width: int) -> bytes:
    """The first value, of each step between two the bits below its highest, and these bits. Steps count modulo 2^width."""
    steps = values[1:] - values[:-1]
    lengths = np.frexp(steps.astype(np.float64))[1] - 1
    return (
        values[:1].tobytes()
        + packed(lengths, width.bit_length() - 1)
        + packed_tails(steps, lengths)
    )


class Coder(Protocol):
    """How symbols are coded."""

    codec: Codec

    def head(self) -> bytes:
        """What stands behind the table of values."""

    def slab(self, symbols: NDArray[np.int32]) -> bytes:
        """The code of a slab."""

    def words(self) -> str:
        """For people."""


@dataclass(frozen=True)
class Map:
    """A table of values and coded symbols."""

    table: Table
    coder: Coder

    @property
    def width(self) -> int:
        return self.table.width

    @property
    def codebook(self) -> bytes:
        return self.table.stored()

    def head(self) -> bytes:
        return bytes([self.coder.codec, self.width]) + self.codebook + self.coder.head()

    def slab(self, elements: Elements) -> bytes:
        return self.coder.slab(self.table.symbols(elements))

    def words(self) -> str:
        return f"{len(self.table.values):,} values, {self.coder.words()}"


class Constant:
    """One symbol."""

    codec = Codec.CONSTANT

    def head(self) -> bytes:
        return b""

    def slab(self, symbols: NDArray[np.int32]) -> bytes:
        return b""

    def words(self) -> str:
        return "always the same"


@dataclass(frozen=True)
class Dense:
    """A Huffman code for each symbol."""

    code: Code
    codec = Codec.HUFFMAN

    def head(self) -> bytes:
        return huffman.table(self.code)

    def slab(self, symbols: NDArray[np.int32]) -> bytes:
        return blob(huffman.encode(self.code, symbols))

    def words(self) -> str:
        return "Huffman"


@dataclass(frozen=True)
class Relative:
    """Deep Compression's relative index."""

    index: relative.Index
    codec = Codec.RELATIVE

    def head(self) -> bytes:
        found = self.index
        tables = huffman.table(found.gaps) + huffman.table(found.entries)
        return bytes([found.bits]) + number(found.zero) + tables

    def slab(self, symbols: NDArray[np.int32]) -> bytes:
        gaps, entries = relative.split(symbols, self.index.zero, self.index.bits)
        coded = huffman.encode(self.index.gaps, gaps), huffman.encode(self.index.entries, entries)
        return number(len(gaps)) + b"".join(map(blob, coded))

    def words(self) -> str:
        return f"relative index of {self.index.bits} bits, Huffman"


@dataclass(frozen=True)
class Entropy:
    """Entropy coded symbols."""

    cut: Cells
    layout: Layout
    """Of the cells."""
    codec = Codec.ENTROPY

    def head(self) -> bytes:
        flags = codecs.flags_of(self.layout, self.cut)
        centre = number(self.layout.centre) if flags & ~(EVEN | UNEVEN) else b""
        return bytes([flags]) + _cut(self.cut) + centre

    def slab(self, symbols: NDArray[np.int32]) -> bytes:
        code = layouts.encode(cells.of(symbols, self.cut), self.cut.count, self.layout)
        return blob(code) + cells.low_bits(symbols, self.cut)

    def words(self) -> str:
        uses = {
            "columns": self.layout.use_columns,
            "neighbours": self.layout.use_neighbours,
        }
        used = " and ".join(name for name, is_used in uses.items() if is_used)
        return "entropy" + (f" with {used} as context" if used else "") + _cut_words(self.cut)


def _cut(cut: Cells) -> bytes:
    """As modelpress.packed.codecs reads it."""
    if isinstance(cut, Uneven):
        return number(cut.count) + packed(np.array(cut.widths), WIDTH_BITS)
    return bytes([cut.low]) if isinstance(cut, Even) and cut.low else b""


def _cut_words(cut: Cells) -> str:
    if isinstance(cut, Uneven):
        return f", in {cut.count} cells of {min(cut.widths)} to {max(cut.widths)} bits"
    return f", {cut.low} low bits as they are" if isinstance(cut, Even) and cut.low else ""


@dataclass(frozen=True)
class Planes:
    """Wide elements, byte by byte."""

    width: int
    rotated: bool
    planes: tuple[Plan, ...]

    @property
    def codebook(self) -> bytes:
        return b"".join(plane.codebook for plane in self.planes)

    def head(self) -> bytes:
        inner = b"".join(plane.head() for plane in self.planes)
        return bytes([Codec.PLANES, self.width // 8, self.rotated]) + inner

    def slab(self, elements: Elements) -> bytes:
        held = planes_of(elements, self.width, rotated=self.rotated)
        return b"".join(
            plan.slab(np.ascontiguousarray(held[:, i])) for i, plan in enumerate(self.planes)
        )

    def words(self) -> str:
        coded = [plane.words() for plane in self.planes if not isinstance(plane, Raw)]
        name = "exponent" if self.rotated else "high"
        return f"{name} bytes {', '.join(coded) or 'raw'}; {len(self.planes) - len(coded)} raw"


def planes_of(elements: Elements, width: int, *, rotated: bool) -> NDArray[np.uint8]:
    """The bytes of each element, of floats with the exponent on top: [n, bytes]."""
    return maps.planes_of(maps.rotate(elements, width, 1) if rotated else elements)


def size(plan: Plan, slabs: Sequence[Elements], sample: int | None = None) -> float:
    """Bytes of a tensor so coded; with `sample`, as that slab's bytes make one expect."""
    if sample is None:
        return len(plan.head()) + sum(len(plan.slab(slab)) for slab in slabs)
    share = sum(map(len, slabs)) / max(len(slabs[sample]), 1)
    return len(plan.head()) + share * len(plan.slab(slabs[sample]))
