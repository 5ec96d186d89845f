"""The tensors of a .pt2 file, over the bytes of their records: what shares a record stays one."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch._export.serde import schema
from torch._export.serde.schema import Layout, ScalarType

from workers.engine.errors import BadModel, Unsupported
from workers.engine.formats import tensor_limits
from workers.engine.formats.pt2 import archive, fields
from workers.engine.formats.pt2.archive import Archive

MAX_BYTES = 2**31 - 2**24
"""All tensors together: the converted model is one ONNX file."""

DTYPES: Mapping[ScalarType, torch.dtype] = {
    ScalarType.BYTE: torch.uint8,
    ScalarType.CHAR: torch.int8,
    ScalarType.SHORT: torch.int16,
    ScalarType.INT: torch.int32,
    ScalarType.LONG: torch.int64,
    ScalarType.HALF: torch.float16,
    ScalarType.FLOAT: torch.float32,
    ScalarType.DOUBLE: torch.float64,
    ScalarType.BOOL: torch.bool,
    ScalarType.BFLOAT16: torch.bfloat16,
}
_RECORDS = re.compile(r"(weight|tensor)_\d{1,6}")

_CAST = "convert the model with .float() before torch.export.export"


def read(opened: Archive, folder: str) -> dict[str, torch.Tensor]:
    """The tensors of data/weights or data/constants, by dotted name; parameters are nn.Parameter.

    Raises:
        BadModel: a tensor reaches outside of its record, or all together are too many bytes.
        Unsupported: one is pickled, sparse, or of an element type that can't be converted.
    """
    listed = fields.payload(opened.read_json(archive.CONFIGS[folder]))
    storages: dict[str, torch.Tensor] = {}
    found, total = {}, 0
    for name, meta in listed.items():
        about = _checked(meta, name)
        if meta.path_name not in storages:
            place = opened.find(f"{folder}/{meta.path_name}")
            storages[meta.path_name] = _storage(opened, place)
        tensor = _view(storages[meta.path_name], about, name)
        total += tensor.nbytes
        _check_total(total)
        found[name] = torch.nn.Parameter(tensor, about.requires_grad) if meta.is_param else tensor
    return found


def _checked(meta: schema.PayloadMeta, name: str) -> schema.TensorMeta:
    if meta.use_pickle or meta.tensor_meta is None or not _RECORDS.fullmatch(meta.path_name):
        raise Unsupported(
            f"'{name}' is no plain tensor and kept as a pickle, which could run code",
            layer=name,
            hint="replace tensor subclasses and objects by plain tensors before torch.export.save",
        )
    about = meta.tensor_meta
    if about.layout != Layout.Strided:
        raise Unsupported(f"'{name}' is a sparse tensor ({about.layout.name})", layer=name)
    if about.dtype not in DTYPES:
        raise Unsupported(
            f"'{name}' has the element type {about.dtype.name}", layer=name, hint=_CAST
        )
    return about


def _storage(opened: Archive, place: tuple[int, int]) -> torch.Tensor:
    """The bytes of a record, copied only where they do not lie on a multiple of eight."""
    offset, size = place
    if size == 0:
        return torch.empty(0, dtype=torch.uint8)
    if offset % 8:
        return torch.frombuffer(
            bytearray(opened.content[offset : offset + size]), dtype=torch.uint8
        )
    return torch.frombuffer(opened.content, dtype=torch.uint8, count=size, offset=offset)


def _view(storage: torch.Tensor, about: schema.TensorMeta, name: str) -> torch.Tensor:
    sizes = [_whole(size, name) for size in about.sizes]
    strides = [_whole(stride, name) for stride in about.strides]
    first, dtype = _whole(about.storage_offset, name), DTYPES[about.dtype]
    tensor_limits.check_size(sizes, f"'{name}'")
    if len(strides) != len(sizes):
        raise BadModel(f"'{name}' has {len(sizes)} axes and {len(strides)} strides")
    reach = sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    last = first + reach + 1 if math.prod(sizes) else 0
    if last * dtype.itemsize > storage.nbytes or storage.nbytes % dtype.itemsize:
        raise BadModel(
            f"'{name}' claims {last * dtype.itemsize:,} bytes for its shape and has {storage.nbytes:,}",
            layer=name,
        )
    return torch.as_strided(storage.view(dtype), sizes, strides, first if last else 0)


def _whole(size: schema.SymInt, name: str) -> int:
    if size.type != "as_int" or not 0 <= size.value < fields.MAX_INTEGER:
        raise BadModel(f"'{name}' has a size, stride or offset that is no number of 0 or more")
    return int(size.value)


def _check_total(size_bytes: int) -> None:
    if size_bytes > MAX_BYTES:
        raise BadModel(
            f"the tensors have more than {MAX_BYTES:,} bytes together",
            hint="export the model to ONNX yourself, with its weights in a second file",
        )
