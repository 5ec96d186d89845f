"""Which bytes of an ONNX file are the contents of its tensors. Reads files that we wrote ourselves: nothing here is defended."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from workers.engine.errors import Unsupported

SMALLEST = 64
"""Bytes of contents that are worth a section of their own; smaller ones stay in the skeleton."""

_GRAPH, _INITIALIZER = 7, 5
_DIMS, _TYPE, _NAME, _RAW, _LOCATION = 1, 2, 8, 9, 14
_BYTES, _FIXED = 2, {1: 8, 5: 4}


@dataclass(frozen=True)
class Cut:
    """Contents of a tensor: a range of bytes of the file."""

    name: str
    type: ir.DataType
    dims: tuple[int, ...]
    start: int
    end: int


def find(model: bytes) -> list[Cut]:
    """The initializers of the main graph with contents of at least SMALLEST bytes, in the file's order.

    Raises:
        Unsupported: the file keeps tensors in another file.
    """
    found: list[Cut] = []
    for number, kind, start, end in _fields(model, 0, len(model)):
        if (number, kind) == (_GRAPH, _BYTES):
            for inner, kind_, a, b in _fields(model, start, end):
                if (inner, kind_) == (_INITIALIZER, _BYTES):
                    found += _tensor(model, a, b)
    return found


def _tensor(model: bytes, start: int, end: int) -> Iterator[Cut]:
    dims: list[int] = []
    type_, name, raw = 0, "", (0, 0)
    for number, kind, a, b in _fields(model, start, end):
        if number == _DIMS:
            dims += _numbers(model, a, b)
        elif number == _TYPE:
            type_ = _varint(model, a)[0]
        elif number == _NAME:
            name = model[a:b].decode()
        elif number == _RAW:
            raw = a, b
        elif number == _LOCATION and _varint(model, a)[0]:
            raise Unsupported(
                f"tensor '{name}' is in a second file, but a packed model is one file of less than 2 GiB"
            )
        assert kind != 3, "groups are not written"
    if raw[1] - raw[0] >= SMALLEST:
        yield Cut(name, ir.DataType(type_), tuple(dims), *raw)


def _fields(model: bytes, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Number and wire type of each field of a message, and where its value is."""
    while at < end:
        tag, at = _varint(model, at)
        kind = tag & 7
        size = _FIXED.get(kind, 0)
        if kind == _BYTES:
            size, at = _varint(model, at)
        elif kind == 0:
            size = _varint(model, at)[1] - at
        yield tag >> 3, kind, at, at + size
        at += size


def _numbers(model: bytes, at: int, end: int) -> Iterator[int]:
    while at < end:
        value, at = _varint(model, at)
        yield value


def _varint(model: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = model[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
