"""How the elements of a tensor are coded: a codec, named by a byte, read once for the tensor and then used for each of its slabs."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import numpy as np

from modelpress.packed import cells, contexts, entropy, huffman, maps
from modelpress.packed.cells import Cells, Even, Uneven
from modelpress.packed.contexts import Layout
from modelpress.packed.huffman import Symbols
from modelpress.packed.maps import Elements
from modelpress.packed.reading import PackedError, Reader

SLAB = 1 << 20
"""Elements that are coded at a time, at most; what bounds the memory of a decoder."""
MAX_GAP_BITS = 8
_CHUNK = 1 << 15
"""Symbols that are looked up at a time, so that they stay in the processor's cache."""
TRANSPOSED, COLUMNS, NEIGHBOURS, SPLIT, EVEN, UNEVEN = 1, 2, 4, 8, 16, 32
"""Flags of an entropy code."""


class Codec(IntEnum):
    """What a byte before coded elements says."""

    RAW = 0
    DEFLATE = 1
    PLANES = 2
    CONSTANT = 3
    HUFFMAN = 4
    RELATIVE = 5
    ENTROPY = 6


class Decoder(Protocol):
    """Decodes slabs of elements of one width."""

    @property
    def width(self) -> int:
        """Bits of an element."""

    def decode(self, reader: Reader, count: int) -> Elements:
        """The next `count` elements.

        Raises:
            PackedError: they are not there, or are not coded as they should be.
        """


def read(reader: Reader, columns: int, *, inner: bool = False) -> Decoder:
    """Reads how elements are coded; `columns` is that of the tensor, `inner` says that these are planes of elements.

    Raises:
        PackedError: this version knows no such codec, or its tables are wrong.
    """
    codec = Codec(reader.choice("codec", len(Codec)))
    if codec is Codec.RAW:
        return Raw()
    if codec is Codec.DEFLATE:
        return Deflate()
    if codec is Codec.PLANES:
        if inner:
            raise PackedError("planes within planes")
        return Planes.read(reader, columns)
    return Map.read(reader, codec, columns)


def slabs(count: int, columns: int) -> list[int]:
    """Elements of each slab of a tensor: whole rows where it has columns.

    Raises:
        PackedError: the tensor is no whole number of rows.
    """
    if columns and count % columns:
        raise PackedError(f"{count:,} elements are no rows of {columns:,}")
    size = SLAB // columns * columns if columns else SLAB
    return [min(size, count - start) for start in range(0, count, size)]


@dataclass(frozen=True)
class Raw:
    """Bytes as they are."""

    width: int = 8

    def decode(self, reader: Reader, count: int) -> Elements:
        return np.frombuffer(reader.take(count, "raw bytes"), np.uint8)


@dataclass(frozen=True)
class Deflate:
    """Bytes as a raw DEFLATE stream (RFC 1951) for each slab."""

    width: int = 8

    def decode(self, reader: Reader, count: int) -> Elements:
        return np.frombuffer(
            inflate(reader.blob("a DEFLATE stream", 2 * count + 64), count), np.uint8
        )


def inflate(stream: bytes, count: int) -> bytes:
    """The `count` bytes of a raw DEFLATE stream, never more.

    Raises:
        PackedError: it is none, or has fewer or more.
    """
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        found = inflater.decompress(stream, count + 1)
    except zlib.error as e:
        raise PackedError(f"a DEFLATE stream is damaged: {e}") from e
    if len(found) != count or not inflater.eof or inflater.unused_data:
        raise PackedError(f"a DEFLATE stream does not have {count:,} bytes")
    return found


@dataclass(frozen=True)
class Planes:
    """Wide elements by the bytes they are made of, lowest first, each plane with a codec of its own."""

    width: int
    rotated: bool
    """Floats: the bits moved up by one, the sign below: the highest plane is the exponent."""
    planes: tuple[Decoder, ...]

    @classmethod
    def read(cls, reader: Reader, columns: int) -> Planes:
        """Reads the codecs. Raises as `read`."""
        width = 8 * reader.choice("bytes of an element", 9)
        if width not in (16, 32, 64):
            raise PackedError(f"elements of {width} bits have no planes")
        rotated = bool(reader.choice("rotation", 2))
        planes = tuple(read(reader, columns, inner=True) for _ in range(width // 8))
        if any(plane.width != 8 for plane in planes):
            raise PackedError("a plane is not of bytes")
        return cls(width, rotated, planes)

    def decode(self, reader: Reader, count: int) -> Elements:
        held = np.empty((count, len(self.planes)), np.uint8)
        for index, plane in enumerate(self.planes):
            held[:, index] = plane.decode(reader, count)
        elements = held.reshape(-1).view(maps.dtype(self.width))
        return maps.rotate(elements, self.width, self.width - 1) if self.rotated else elements


class Coder(Protocol):
    """Decodes slabs of symbols."""

    def decode(self, reader: Reader, count: int) -> Symbols:
        """The next `count` symbols. Raises as `Decoder.decode`."""


@dataclass(frozen=True)
class Map:
    """Elements of few values: a table of these, and symbols."""

    width: int
    table: Elements
    coder: Coder

    @classmethod
    def read(cls, reader: Reader, codec: Codec, columns: int) -> Map:
        """Reads the table, and how the symbols are coded. Raises as `read`."""
        width = reader.byte("bits of an element")
        if width not in maps.WIDTHS:
            raise PackedError(f"elements of {width} bits")
        if width < 8 and columns % (8 // width):
            raise PackedError("a row ends within a byte")
        table = maps.read_table(reader, width)
        return cls(width, table, _coder(reader, codec, len(table), columns))

    def decode(self, reader: Reader, count: int) -> Elements:
        symbols = self.coder.decode(reader, count)
        found: Elements = np.empty(count, self.table.dtype)
        for first in range(0, count, _CHUNK):
            part = slice(first, first + _CHUNK)
            np.take(self.table, symbols[part], out=found[part], mode="clip")
        return found


def _coder(reader: Reader, codec: Codec, alphabet: int, columns: int) -> Coder:
    if codec is Codec.CONSTANT:
        if alphabet != 1:
            raise PackedError("a constant has more than one symbol")
        return Constant()
    if codec is Codec.HUFFMAN:
        return Dense(huffman.Decoder(huffman.read(reader, alphabet)))
    if codec is Codec.RELATIVE:
        return Relative.read(reader, alphabet)
    return Entropy.read(reader, alphabet, columns)


class Constant:
    """One symbol, which takes no room."""

    def decode(self, reader: Reader, count: int) -> Symbols:
        return np.zeros(count, np.int32)


@dataclass(frozen=True)
class Dense:
    """A Huffman code for each symbol."""

    code: huffman.Decoder

    def decode(self, reader: Reader, count: int) -> Symbols:
        return self.code.decode(reader.blob("a Huffman stream", _most(count)), count)


@dataclass(frozen=True)
class Relative:
    """Deep Compression's relative index: the entries that are not zero and the gaps between them, each with a Huffman code.

    A gap too long for its bits ends in an entry that is zero, as in the paper.
    """

    zero: int
    gaps: huffman.Decoder
    entries: huffman.Decoder

    @classmethod
    def read(cls, reader: Reader, alphabet: int) -> Relative:
        """Reads bits of a gap, the zero and both codes. Raises as `huffman.read`."""
        bits = reader.choice("bits of a gap", MAX_GAP_BITS + 1)
        zero = reader.number("zero", alphabet - 1)
        gaps = huffman.read(reader, 1 << bits)
        return cls(zero, huffman.Decoder(gaps), huffman.Decoder(huffman.read(reader, alphabet)))

    def decode(self, reader: Reader, count: int) -> Symbols:
        entries = reader.number("entries of a relative index", count)
        gaps = self.gaps.decode(reader.blob("gaps", _most(entries)), entries)
        values = self.entries.decode(reader.blob("entries", _most(entries)), entries)
        where = huffman.positions(gaps)
        if entries and where[-1] >= count:
            raise PackedError("a relative index leaves its slab")
        found = np.full(count, self.zero, np.int32)
        found[where] = values
        return found


@dataclass(frozen=True)
class Entropy:
    """Entropy coded symbols. Large alphabets are cut into cells."""

    cells: Cells
    layout: Layout
    """Of the cells."""

    @classmethod
    def read(cls, reader: Reader, alphabet: int, columns: int) -> Entropy:
        """Reads a byte of flags, the cells, and the centre, where there are such.

        Raises:
            PackedError: rows are made use of, but the tensor has no columns or too many symbols, or there is but one symbol.
        """
        flags = reader.choice("contexts of an entropy code", 64)
        uses_rows = bool(flags & (TRANSPOSED | COLUMNS | NEIGHBOURS))
        if alphabet < 2 or (uses_rows and not columns):
            raise PackedError("an entropy code has one symbol, or contexts but no columns")
        cut = _cells(reader, flags, alphabet)
        if uses_rows and cut.count > contexts.MOST_SYMBOLS:
            raise PackedError(
                f"contexts of {cut.count:,} symbols, at most {contexts.MOST_SYMBOLS:,} have such"
            )
        layout = Layout()
        if flags & ~(EVEN | UNEVEN):
            layout = Layout(
                columns=columns,
                transposed=bool(flags & TRANSPOSED),
                use_columns=bool(flags & COLUMNS),
                use_neighbours=bool(flags & NEIGHBOURS),
                split=bool(flags & SPLIT),
                centre=reader.number("centre", cut.count - 1),
            )
        return cls(cut, layout)

    def decode(self, reader: Reader, count: int) -> Symbols:
        code = reader.blob("an entropy code", 4 * count + 16)
        found = entropy.decode(code, count, self.cells.count, self.layout)
        return self.cells.decode(reader, found)


def _cells(reader: Reader, flags: int, alphabet: int) -> Cells:
    """Reads how an alphabet is cut. Raises as `cells.read_uneven`."""
    if flags & EVEN and flags & UNEVEN:
        raise PackedError("cells are even and are not")
    if flags & UNEVEN:
        return cells.read_uneven(reader, alphabet)
    low = 0
    if flags & EVEN:
        low = reader.choice("low bits of a symbol", cells.MAX_LOW + 1)
        if not low:
            raise PackedError("no low bits of a symbol")
    return Even(alphabet, low)


def flags_of(layout: Layout, cut: Cells) -> int:
    """The byte that `Entropy.read` reads first."""
    flags = {
        TRANSPOSED: layout.transposed,
        COLUMNS: layout.use_columns,
        NEIGHBOURS: layout.use_neighbours,
        SPLIT: layout.split,
        EVEN: isinstance(cut, Even) and cut.low > 0,
        UNEVEN: isinstance(cut, Uneven),
    }
    return sum(flag for flag, is_set in flags.items() if is_set)


def _most(count: int) -> int:
    """Bytes of the longest Huffman stream of `count` symbols, with the bits of its lanes."""
    return (count * huffman.LONGEST + 7) // 8 + 4 * huffman.lanes_of(count) + 4


def join(elements: Elements, width: int) -> bytes:
    """The bytes of elements.

    Raises:
        PackedError: the last ends within a byte.
    """
    if width < 8 and len(elements) % (8 // width):
        raise PackedError("elements end within a byte")
    return maps.join(elements, width)
