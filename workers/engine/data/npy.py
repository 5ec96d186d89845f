"""Reads the header of an .npy array (NEP 1) without ast, pickle or numpy's own loader."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from workers.engine.data import limits
from workers.engine.errors import BadData

HEAD_BYTES = 12 + limits.MAX_HEADER_BYTES
"""As much of a file as `parse` ever looks at."""

DTYPES = frozenset(("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"))

_MAGIC = b"\x93NUMPY"
_PAIR = re.compile(r"\s*'(\w+)'\s*:\s*('[^']*'|True|False|\([0-9,\sL]*\)|\[.*\])\s*(,|$)", re.S)


@dataclass(frozen=True)
class Header:
    """Layout of an array: `shape` elements of `dtype` from byte `offset` on."""

    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    fortran: bool
    offset: int

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def parse(head: bytes, name: str, size_bytes: int) -> Header:
    """Parses the header of array `name`, of whose `size_bytes` bytes `head` holds the first `HEAD_BYTES`.

    Raises:
        BadData: no .npy array, an element type that is not a plain number, or a shape that the bytes don't fill.
    """
    text, offset = _text(head, name)
    fields = _fields(text, name)
    header = Header(
        dtype=_dtype(fields["descr"], name),
        shape=_shape(fields["shape"], name),
        fortran=fields["fortran_order"] == "True",
        offset=offset,
    )
    if offset + header.size_bytes != size_bytes:
        raise _refused(
            name,
            f"shape {list(header.shape)} of {header.dtype} needs {header.size_bytes:,} bytes, "
            f"but {size_bytes - offset:,} are there",
        )
    return header


def _text(head: bytes, name: str) -> tuple[str, int]:
    """The dictionary of the header, and where the elements begin."""
    if not head.startswith(_MAGIC) or len(head) < 12:
        raise _refused(name, f"it is no .npy array: it begins with {head[:8]!r}")
    version = (head[6], head[7])
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise _refused(
            name, f"its format version is {version[0]}.{version[1]}; 1.0 to 3.0 are read"
        )
    width = 2 if version == (1, 0) else 4
    start = 8 + width
    header_bytes = int.from_bytes(head[8:start], "little")
    if header_bytes > limits.MAX_HEADER_BYTES:
        raise _refused(
            name, f"its header has {header_bytes:,} bytes, more than {limits.MAX_HEADER_BYTES:,}"
        )
    if start + header_bytes > len(head):
        raise _refused(name, "its header is cut short")
    raw = head[start : start + header_bytes]
    try:
        return raw.decode("ascii"), start + header_bytes
    except UnicodeDecodeError as e:
        raise _refused(name, f"its header is not ASCII: {raw[:80]!r}") from e


def _fields(text: str, name: str) -> dict[str, str]:
    body = text.strip()
    if not (body.startswith("{") and body.endswith("}")):
        raise _refused(name, f"its header is no dictionary: {body[:80]!r}")
    fields: dict[str, str] = {}
    rest = body[1:-1].rstrip()
    while rest:
        pair = _PAIR.match(rest)
        if pair is None or pair[1] in fields:
            raise _refused(name, f"its header can't be read at {rest[:80]!r}")
        fields[pair[1]], rest = pair[2], rest[pair.end() :].rstrip()
    if set(fields) != {"descr", "fortran_order", "shape"}:
        raise _refused(name, f"its header has the keys {sorted(fields)[:8]}")
    if fields["fortran_order"] not in ("True", "False"):
        raise _refused(name, f"its fortran_order is {fields['fortran_order'][:80]}")
    return fields


def _dtype(text: str, name: str) -> np.dtype[np.generic]:
    code = text.strip("'")
    if code.lstrip("<>|=") not in DTYPES or len(code) > 3:
        what = "Python objects" if "O" in code else f"elements of type {code[:80]}"
        raise _refused(
            name,
            f"it holds {what}; booleans, integers and floats up to 64 bits are read",
            hint="convert it with .astype('float32'), or 'int64' for labels; rows of unequal length must be padded",
        )
    return np.dtype(code)


def _shape(text: str, name: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\(\s*(\d{1,20}L?\s*(,\s*\d{1,20}L?\s*)*,?)?\s*\)", text):
        raise _refused(name, f"its shape can't be read: {text[:80]!r}")
    shape = tuple(int(size) for size in re.findall(r"\d+", text))
    if len(shape) > limits.MAX_RANK:
        raise _refused(name, f"it has {len(shape)} dimensions, more than {limits.MAX_RANK}")
    if not shape or not all(0 < size <= limits.MAX_DIM for size in shape):
        raise _refused(
            name, f"its shape is {list(shape)}; each size must be from 1 to {limits.MAX_DIM:,}"
        )
    return shape


def _refused(name: str, reason: str, *, hint: str = "save it anew with np.savez") -> BadData:
    return BadData(f"array {name!r} is refused: {reason}", layer=name, hint=hint)
