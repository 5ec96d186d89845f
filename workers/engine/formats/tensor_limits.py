"""The limits of one tensor in an ONNX file: what it claims against the bytes it has."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from workers.engine.errors import BadModel, Unsupported
from workers.engine.formats import wire
from workers.engine.graph import tensors

MAX_RANK = 8
MAX_SIZE = 2**31
MAX_ELEMENTS = 2**31
MAX_EXTERNAL_BYTES = 2**35

_EXTERNAL = 1

_TYPED: dict[int, int] = {4: 4, 5: 0, 7: 0, 10: 8, 11: 0}
"""Fields of typed elements: float, int32, int64, double, uint64; bytes of each element, 0 for varints."""


def check(reader: wire.Reader, view: memoryview, path: Path) -> str:
    """Hold a tensor to the limits and answer its name; `path` is the model's file.

    Raises:
        BadModel: it claims more than it has, or than is allowed.
        Unsupported: its elements are of a type we do not know.
    """
    tensor = reader.read(view)
    name = tensor.text(8)
    owner = f"tensor '{name[:64]}'"
    if len(name) > 256 or not name.isprintable():
        raise BadModel(f"{owner[:64]!a} has a name that is too long or has control characters")
    data_type = _data_type(tensor.number(2), owner)
    dims = tensor.integers(1)
    check_size(dims, owner)
    if tensor.blobs.get(3):
        raise Unsupported(f"{owner} is in segments")
    elements = math.prod(dims)
    if tensor.number(14) == _EXTERNAL:
        _check_external(reader, tensor, _bytes(elements, data_type), owner, path)
    else:
        _check_inline(tensor, elements, data_type, owner)
    return name


def check_size(dims: Sequence[int], owner: str) -> None:
    """Hold a shape to the limits.

    Raises:
        BadModel: an axis is negative or too large, or there are too many axes or elements.
    """
    if len(dims) > MAX_RANK:
        raise BadModel(f"{owner} has {len(dims):,} axes; the limit is {MAX_RANK}")
    for size in dims:
        if not 0 <= size <= MAX_SIZE:
            raise BadModel(f"{owner} has an axis of size {size:,}; 0 to {MAX_SIZE:,} are allowed")
    elements = math.prod(dims)
    if elements > MAX_ELEMENTS:
        raise BadModel(f"{owner} claims {elements:,} elements; the limit is {MAX_ELEMENTS:,}")


def _data_type(number: int, owner: str) -> ir.DataType:
    try:
        data_type = ir.DataType(number)
    except ValueError:
        raise BadModel(f"{owner} has the unknown element type {number}") from None
    try:
        tensors.dtype_of(data_type)
    except Unsupported as error:
        raise Unsupported(f"{owner}: {error.message}", layer=owner) from None
    return data_type


def _bytes(elements: int, data_type: ir.DataType) -> int:
    return math.ceil(elements * data_type.itemsize)


def _check_inline(tensor: wire.Message, elements: int, data_type: ir.DataType, owner: str) -> None:
    raw = tensor.many(9)
    typed = {key: tensor.count(key, size) for key, size in _TYPED.items()}
    if raw:
        wanted = _bytes(elements, data_type)
        if len(raw) > 1 or len(raw[0]) != wanted or any(typed.values()):
            raise BadModel(
                f"{owner} claims {wanted:,} bytes for its shape and has {len(raw[0]):,}",
                layer=owner,
            )
        return
    held = sum(typed.values())
    wanted = _typed_count(elements, data_type)
    if held != wanted:
        raise BadModel(f"{owner} claims {wanted:,} elements and has {held:,}", layer=owner)


def _typed_count(elements: int, data_type: ir.DataType) -> int:
    """Small integers are packed several to a number; complex numbers are two each."""
    if data_type in (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128):
        return 2 * elements
    return math.ceil(elements * data_type.itemsize) if data_type.itemsize < 1 else elements


def _check_external(
    reader: wire.Reader, tensor: wire.Message, wanted: int, owner: str, path: Path
) -> None:
    entries = dict(_entry(reader, view) for view in tensor.many(13))
    location = entries.get("location", "")
    if not location or location != os.path.basename(location) or location in (".", ".."):
        raise BadModel(
            f"{owner} keeps its data at {location[:64]!a}; only a plain file name next to the model is allowed",
            hint="save the model with its weights inside",
        )
    held = _external_size(path.parent / location, owner, location)
    offset, length = _whole(entries, "offset", 0, owner), _whole(entries, "length", wanted, owner)
    if length != wanted or offset + length > held or held > MAX_EXTERNAL_BYTES:
        raise BadModel(
            f"{owner} claims {wanted:,} bytes for its shape: {length:,} from byte {offset:,} of a file "
            f"of {held:,}",
            layer=owner,
        )


def _external_size(file: Path, owner: str, location: str) -> int:
    try:
        found = os.lstat(file)
    except (OSError, ValueError):
        raise BadModel(
            f"{owner} keeps its data in '{location[:64]}', which is not next to the model",
            hint="send a zip of the model and that file, or save the model with its weights inside",
        ) from None
    if not stat.S_ISREG(found.st_mode):
        raise BadModel(f"{owner} keeps its data in '{location[:64]}', which is no regular file")
    return found.st_size


def _entry(reader: wire.Reader, view: memoryview) -> tuple[str, str]:
    entry = reader.read(view)
    return entry.text(1), entry.text(2)


def _whole(entries: dict[str, str], key: str, default: int, owner: str) -> int:
    text = entries.get(key, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise BadModel(
            f"{owner} has the external-data {key} {text[:32]!a}, which is no whole number"
        )
    return int(text)
