"""A .safetensors file: names and tensors, and nothing that could run. Every number in its header is checked before use.

8 bytes: length of the header, little-endian | header: JSON | the tensors' bytes

The header gives each tensor its dtype, its shape and where its bytes lie; as the format wants it, they fill the
rest of the file without gap or overlap.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from workers.engine.errors import BadModel, Unsupported
from workers.engine.formats import tensor_limits

MAX_HEADER_BYTES = 2**24
MAX_TENSORS = 20_000
MAX_NAME = 256
MAX_BYTES = 2**31 - 2**24
"""All tensors together: the converted model is one ONNX file."""

DTYPES: Mapping[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
_METADATA = "__metadata__"
_LENGTH_BYTES = 8
_AGAIN = "save it again: safetensors.torch.save_file(network.state_dict(), path)"


class _Entry(NamedTuple):
    """One tensor as the header describes it; `begin` and `end` count from the end of the header."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def read(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file by name, in the order of their bytes, which stay in the file until they are used.

    Raises:
        BadModel: the file is damaged, or breaks a limit.
        Unsupported: a tensor has an element type that torch can't convert.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = _header_bytes(file.read(_LENGTH_BYTES), size)
        entries = _entries(file.read(header_bytes))
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    start = _LENGTH_BYTES + header_bytes
    _check_places(entries, size - start)
    return {entry.name: _tensor(content, start, entry) for entry in entries}


def _header_bytes(prefix: bytes, file_bytes: int) -> int:
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER_BYTES:
        raise BadModel(
            f"the safetensors header claims {length:,} bytes; the limit is {MAX_HEADER_BYTES:,}",
            hint=_AGAIN,
        )
    if _LENGTH_BYTES + length > file_bytes:
        raise BadModel(
            f"the safetensors header claims {length:,} bytes of a file of {file_bytes:,}; it is cut",
            hint=_AGAIN,
        )
    return length


def _entries(header: bytes) -> list[_Entry]:
    """The header's tensors, in the order of their bytes."""
    try:
        described = json.loads(header.decode(), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise BadModel(f"the safetensors header is no JSON: {error}", hint=_AGAIN) from error
    if not isinstance(described, dict):
        raise BadModel("the safetensors header is no JSON object", hint=_AGAIN)
    described.pop(_METADATA, None)
    if not 0 < len(described) <= MAX_TENSORS:
        raise BadModel(
            f"the safetensors file has {len(described):,} tensors; 1 to {MAX_TENSORS:,} are allowed"
        )
    entries = [_entry(name, about) for name, about in described.items()]
    return sorted(entries, key=lambda entry: (entry.begin, entry.end))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs as a dict; what is named twice could be read as one or as the other."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise BadModel(f"the safetensors header has two entries named {name[:64]!a}")
        found[name] = value
    return found


def _entry(name: str, about: object) -> _Entry:
    owner = f"tensor '{name[:64]}'"
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise BadModel(
            f"{owner[:64]!a} has a name that is empty, too long or has control characters"
        )
    if not isinstance(about, dict) or set(about) != {"dtype", "shape", "data_offsets"}:
        raise BadModel(f"{owner} is not described by dtype, shape and data_offsets", layer=name)
    shape = _wholes(about["shape"], owner)
    places = _wholes(about["data_offsets"], owner)
    dtype = _dtype(about["dtype"], owner)
    tensor_limits.check_size(shape, owner)
    wanted = math.prod(shape) * dtype.itemsize
    if len(places) != 2 or places[1] - places[0] != wanted:
        raise BadModel(
            f"{owner} claims {wanted:,} bytes for its shape and has the places {list(places[:4])}",
            layer=name,
        )
    return _Entry(name, dtype, shape, *places)


def _wholes(value: object, owner: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(each) is int and each >= 0 for each in value):
        raise BadModel(f"{owner} has a shape or a place that is no list of numbers of 0 or more")
    return tuple(value)


def _dtype(value: object, owner: str) -> torch.dtype:
    if not isinstance(value, str) or value not in DTYPES:
        raise Unsupported(
            f"{owner} has the element type {str(value)[:32]!a}; known are {', '.join(DTYPES)}",
            layer=owner,
            hint="save the weights of network.float()",
        )
    return DTYPES[value]


def _check_places(entries: list[_Entry], data_bytes: int) -> None:
    """Each tensor begins where the one before ends, and the last one ends with the file."""
    if data_bytes > MAX_BYTES:
        raise BadModel(
            f"the tensors have {data_bytes:,} bytes together; the limit is {MAX_BYTES:,}",
            hint="export the model to ONNX yourself, with its weights in a second file",
        )
    at = 0
    for entry in entries:
        if entry.begin != at:
            raise BadModel(
                f"tensor '{entry.name[:64]}' begins at byte {entry.begin:,}; what comes before it ends at {at:,}",
                layer=entry.name,
                hint=_AGAIN,
            )
        at = entry.end
    if at != data_bytes:
        raise BadModel(
            f"the tensors claim {at:,} bytes and the file has {data_bytes:,} for them", hint=_AGAIN
        )


def _tensor(content: mmap.mmap, start: int, entry: _Entry) -> torch.Tensor:
    """A tensor over the file's bytes, copied only where they do not lie on a multiple of its elements."""
    count, offset = math.prod(entry.shape), start + entry.begin
    if count == 0:
        return torch.empty(entry.shape, dtype=entry.dtype)
    if offset % entry.dtype.itemsize == 0:
        flat = torch.frombuffer(content, dtype=entry.dtype, count=count, offset=offset)
    else:
        copied = bytearray(content[offset : start + entry.end])
        flat = torch.frombuffer(copied, dtype=entry.dtype)
    return flat.reshape(entry.shape)
