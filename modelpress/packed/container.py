"""The container: what a packed model consists of, and how the model's own bytes come out of it again.

    magic and version | CRC-32 | SHA-256 of the model | sizes | directory of tensors | skeleton | one section for each tensor

The skeleton is the ONNX file without the contents of its large tensors: what stands before and behind each is in it, down to the bytes
that say how long the contents are. With the contents back in their places it is that file again, byte for byte; a decoder need not
know protobuf.
"""

from __future__ import annotations

import errno
import hashlib
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from modelpress.packed import codecs
from modelpress.packed.reading import PackedError, Reader

MAGIC = b"\x93MPK"
VERSION = 2
PREFIX_BYTES = len(MAGIC) + 1 + 4
"""What the CRC-32 does not cover: magic, version and the CRC-32 itself."""
MAX_BYTES = 2**31 - 1
"""Of the model: protobuf's own limit."""
MAX_SKELETON_BYTES = 1 << 26
MAX_TENSORS = 1 << 16
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Section:
    """Where the contents of a tensor go, and how large they are."""

    skeleton_bytes: int
    """Of the skeleton, between the tensor before and this one."""
    content_bytes: int
    packed_bytes: int


@dataclass(frozen=True)
class Header:
    """Everything before the skeleton."""

    sha256: bytes
    model_bytes: int
    skeleton_bytes: int
    deflated_bytes: int
    """Of the skeleton, as it is stored."""
    sections: tuple[Section, ...]


@dataclass(frozen=True)
class Unpacked:
    """What came out."""

    size_bytes: int
    sha256: str


def unpack(
    packed: str | os.PathLike[str], onnx: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES
) -> Unpacked:
    """Writes the model that a packed file holds, byte for byte. The result appears whole or not at all.

    Raises:
        PackedError: the file is damaged or no packed model, its model has more than `max_bytes`, or would take the file's own place.
        OSError: a file can't be read or written.
    """
    target = Path(onnx)
    _check_place(Path(packed), target)
    unfinished = target.with_name(f".{target.name}.unfinished")
    with open(packed, "rb") as file:
        reader = check(file)
        header = read_header(reader, max_bytes=max_bytes)
        try:
            with unfinished.open("wb") as out:
                found = _write(contents(reader, header), out)
            if found != header.sha256:
                raise PackedError("what came out has another SHA-256 than the file says")
            os.replace(unfinished, target)
        finally:
            unfinished.unlink(missing_ok=True)
    return Unpacked(header.model_bytes, found.hex())


def _check_place(packed: Path, target: Path) -> None:
    """Raises PackedError where the model would be written over the packed file, OSError where there is no folder for it."""
    if not target.parent.is_dir():
        raise FileNotFoundError(
            errno.ENOENT, "the folder does not exist, make it first", str(target.parent)
        )
    if target.exists() and packed.samefile(target):
        raise PackedError("the model would be written over it: name another file for the model")


def check(file: BinaryIO) -> Reader:
    """A reader of what follows the CRC-32, which was found right.

    Raises:
        PackedError: the file is no packed model, is of a later version, or was changed or cut.
    """
    size_bytes = file.seek(0, os.SEEK_END)
    file.seek(0)
    prefix = file.read(PREFIX_BYTES)
    if prefix[: len(MAGIC)] != MAGIC:
        raise PackedError("the file is no packed model: it begins with other bytes")
    if len(prefix) < PREFIX_BYTES:
        raise PackedError("truncated within the header")
    if prefix[len(MAGIC)] != VERSION:
        raise PackedError(
            f"the file is of version {prefix[len(MAGIC)]} of the format, this decoder reads version {VERSION}"
        )
    found = 0
    while chunk := file.read(_CHUNK_BYTES):
        found = zlib.crc32(chunk, found)
    if found != int.from_bytes(prefix[-4:], "little"):
        raise PackedError("the checksum is wrong: the file was changed or cut on its way")
    file.seek(PREFIX_BYTES)
    return Reader(file, size_bytes - PREFIX_BYTES)


def read_header(reader: Reader, *, max_bytes: int = MAX_BYTES) -> Header:
    """Reads the sizes and the directory.

    Raises:
        PackedError: the model has more than `max_bytes`, or the sizes do not add up.
    """
    sha256 = reader.take(32, "SHA-256")
    model_bytes = reader.number("bytes of the model", max_bytes)
    skeleton_bytes = reader.number("bytes of the skeleton", min(MAX_SKELETON_BYTES, model_bytes))
    deflated_bytes = reader.number("bytes of the deflated skeleton", 2 * skeleton_bytes + 64)
    tensors = reader.number("number of tensors", MAX_TENSORS)
    sections = tuple(_section(reader, skeleton_bytes, model_bytes) for _ in range(tensors))
    inside = sum(section.content_bytes for section in sections)
    between = sum(section.skeleton_bytes for section in sections)
    coded = deflated_bytes + sum(section.packed_bytes for section in sections)
    if inside + skeleton_bytes != model_bytes or between > skeleton_bytes or coded != reader.left:
        raise PackedError("the sizes in the header do not add up")
    return Header(sha256, model_bytes, skeleton_bytes, deflated_bytes, sections)


def _section(reader: Reader, skeleton_bytes: int, model_bytes: int) -> Section:
    return Section(
        reader.number("place of a tensor", skeleton_bytes),
        reader.number("bytes of a tensor", model_bytes),
        reader.number("packed bytes of a tensor", reader.left),
    )


def contents(reader: Reader, header: Header) -> Iterator[bytes]:
    """The bytes of the model, in pieces.

    Raises:
        PackedError: something is not coded as it should be.
    """
    stream = reader.take(header.deflated_bytes, "skeleton")
    skeleton = codecs.inflate(stream, header.skeleton_bytes)
    at = 0
    for section in header.sections:
        yield skeleton[at : at + section.skeleton_bytes]
        at += section.skeleton_bytes
        with reader.part(section.packed_bytes, "a tensor") as inner:
            yield from tensor(inner, section.content_bytes)
    yield skeleton[at:]


def tensor(reader: Reader, content_bytes: int) -> Iterator[bytes]:
    """The contents of a tensor, slab by slab. Raises as `contents`."""
    columns = reader.number("columns", codecs.SLAB)
    decoder = codecs.read(reader, columns)
    if content_bytes * 8 % decoder.width:
        raise PackedError("a tensor ends within an element")
    for count in codecs.slabs(content_bytes * 8 // decoder.width, columns):
        yield codecs.join(decoder.decode(reader, count), decoder.width)


def _write(pieces: Iterator[bytes], out: BinaryIO) -> bytes:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
        out.write(piece)
    return digest.digest()
