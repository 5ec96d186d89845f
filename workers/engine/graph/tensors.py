"""Tensors of the three worlds: onnx_ir, numpy and torch, without copies where that is possible."""

from __future__ import annotations

import warnings
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
import torch

from workers.engine.errors import Unsupported

TORCH: dict[ir.DataType, torch.dtype] = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.INT8: torch.int8,
    ir.DataType.INT16: torch.int16,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT64: torch.int64,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.UINT16: torch.uint16,
    ir.DataType.UINT32: torch.uint32,
    ir.DataType.UINT64: torch.uint64,
    ir.DataType.BOOL: torch.bool,
    ir.DataType.COMPLEX64: torch.complex64,
    ir.DataType.COMPLEX128: torch.complex128,
    ir.DataType.FLOAT8E4M3FN: torch.float8_e4m3fn,
    ir.DataType.FLOAT8E4M3FNUZ: torch.float8_e4m3fnuz,
    ir.DataType.FLOAT8E5M2: torch.float8_e5m2,
    ir.DataType.FLOAT8E5M2FNUZ: torch.float8_e5m2fnuz,
    ir.DataType.FLOAT8E8M0: torch.float8_e8m0fnu,
}

FLOATS = frozenset(
    {ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
)

_EXTENSIONS = ("bfloat16", "float8", "float4", "int4", "uint4", "int2", "uint2")
"""Beginnings of the names of numpy types that only ml_dtypes knows."""

NARROW: dict[ir.DataType, torch.dtype] = {
    ir.DataType.INT4: torch.int8,
    ir.DataType.UINT4: torch.uint8,
    ir.DataType.INT2: torch.int8,
    ir.DataType.UINT2: torch.uint8,
    ir.DataType.FLOAT4E2M1: torch.float8_e4m3fn,
}
"""Element types that torch cannot compute with, and a wider one that holds each of their values."""


def dtype_of(data_type: int) -> torch.dtype:
    """The torch type for an ONNX element type; a wider one for those of 4 and 2 bits.

    Raises:
        Unsupported: torch has no such type (strings).
    """
    known = ir.DataType(data_type)
    if known in NARROW:
        return NARROW[known]
    if known not in TORCH:
        raise Unsupported(f"element type {known.name} is not supported")
    return TORCH[known]


def type_of(dtype: torch.dtype) -> ir.DataType:
    """The ONNX element type for a torch type."""
    return next(known for known, ours in TORCH.items() if ours is dtype)


def range_of(data_type: ir.DataType) -> tuple[int, int]:
    """The smallest and the largest number of an integer type."""
    signed = data_type.is_signed()
    bits = round(data_type.itemsize * 8)
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def borrow(array: np.ndarray | np.generic) -> torch.Tensor:
    """A tensor over the array's own memory; the caller must not write to it."""
    array = np.asarray(array)
    if array.dtype.name.startswith(_EXTENSIONS):
        return _borrow_extension(array)
    if not array.flags.c_contiguous or not array.dtype.isnative:
        array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def _borrow_extension(array: np.ndarray) -> torch.Tensor:
    data_type = ir.DataType.from_numpy(array.dtype)
    if data_type in NARROW:
        wider = type_of(NARROW[data_type]).numpy()
        return borrow(array.astype(np.float32).astype(wider))
    bits = np.ascontiguousarray(array).view(f"i{array.dtype.itemsize}").reshape(array.shape)
    return borrow(bits).view(TORCH[data_type])


def from_ir(tensor: ir.TensorProtocol) -> torch.Tensor:
    """The tensor's elements, sharing its memory where it is mapped or inside the file's buffer.

    Raises:
        Unsupported: torch has no such element type.
    """
    dtype_of(tensor.dtype)
    return borrow(tensor.numpy())


def to_numpy(tensor: torch.Tensor, data_type: ir.DataType | None = None) -> np.ndarray:
    """The tensor's elements on the host; bfloat16, float8 and all narrower types as ml_dtypes arrays.

    Args:
        tensor: Where the elements are.
        data_type: Their type in the file, which tells a 4-bit integer from an 8-bit one.
    """
    host = tensor.detach().cpu().contiguous()
    if data_type in NARROW:
        return host.float().numpy().astype(data_type.numpy())
    if host.dtype is torch.bfloat16:
        return host.view(torch.int16).numpy().view(ir.DataType.BFLOAT16.numpy())
    if host.element_size() == 1 and host.dtype.is_floating_point:
        return host.view(torch.uint8).numpy().view(type_of(host.dtype).numpy())
    return host.numpy()


_FREE: Any = torch.SymInt
"""To mypy a SymInt is no int; to torch it is one wherever a size is."""


class Elements(Protocol):
    """What can be read as host numbers: a tensor, or numbers that torch.export looks at."""

    def reshape(self, *shape: int) -> Any:
        """The same elements in another shape."""

    def tolist(self) -> Any:
        """The elements, nested as the axes are."""


def ints(elements: Elements) -> list[int]:
    """The elements of a shape-like operand as host integers; free sizes of torch.export stay free."""
    listed = elements.reshape(-1).tolist()
    return [element if isinstance(element, _FREE) else int(element) for element in listed]
