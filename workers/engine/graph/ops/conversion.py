"""Conversions of element type, down to the types of 8, 4 and 2 bits."""

from __future__ import annotations

import onnx_ir as ir
import torch

from workers.engine.errors import Unsupported
from workers.engine.graph import tensors
from workers.engine.graph.ops._operator import Call, operator

Tensor = torch.Tensor

_EIGHT_BIT_FLOATS = frozenset(
    {
        ir.DataType.FLOAT8E4M3FN,
        ir.DataType.FLOAT8E4M3FNUZ,
        ir.DataType.FLOAT8E5M2,
        ir.DataType.FLOAT8E5M2FNUZ,
    }
)

_BEYOND_E4M3FN = 464.0
"""Halfway from the largest number to the next, which e4m3fn lacks."""


def to_type(
    x: Tensor, target: ir.DataType, *, saturate: bool = True, round_mode: str = "up"
) -> Tensor:
    """Convert as ONNX does: floats truncate towards zero, integers wrap, floats of 8 bits and fewer saturate.

    Raises:
        Unsupported: torch has no such type, or `round_mode` is none of ONNX's.
    """
    dtype = tensors.dtype_of(target)
    if target is ir.DataType.FLOAT4E2M1:
        return _to_float4(x).to(dtype)
    if target is ir.DataType.FLOAT8E8M0:
        return _to_powers_of_two(x, saturate, round_mode)
    if target in tensors.NARROW:
        return wrap(x.to(torch.int64), target)
    if target in _EIGHT_BIT_FLOATS:
        return _to_float8(x.float(), dtype, saturate)
    if x.dtype.is_floating_point and dtype in (torch.uint8, torch.int8, torch.int16):
        return x.to(torch.int64).to(dtype)
    return x.to(dtype)


def wrap(x: Tensor, target: ir.DataType) -> Tensor:
    """The lowest bits of integers, as a type of 4 or 2 bits."""
    low, high = tensors.range_of(target)
    return ((x - low).remainder(high - low + 1) + low).to(tensors.dtype_of(target))


def _to_float4(x: Tensor) -> Tensor:
    """To the nearest of 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives, ties to even."""
    known = torch.nan_to_num(x.float(), nan=0.0, posinf=6.0, neginf=-6.0).clamp(-6, 6)
    size = known.abs()
    step = torch.where(size <= 2, 0.5, torch.where(size <= 4, 1.0, 2.0))
    return torch.round(known / step) * step


def _to_float8(x: Tensor, dtype: torch.dtype, saturate: bool) -> Tensor:
    if saturate:
        largest = torch.finfo(dtype).max
        return x.clamp(-largest, largest).to(dtype)
    if dtype is torch.float8_e4m3fn:
        x = x.masked_fill(x.abs() > _BEYOND_E4M3FN, torch.nan)
    return x.to(dtype)


def _to_powers_of_two(x: Tensor, saturate: bool, round_mode: str) -> Tensor:
    """To e8m0: the exponent of a float32 alone, whose mantissa rounds it up or is forgotten."""
    bits = x.float().view(torch.int32)
    exponent, mantissa = (bits >> 23) & 0xFF, bits & 0x7FFFFF
    tie = 0x400000
    rounds_up = {
        "up": mantissa > 0,
        "down": torch.zeros_like(mantissa, dtype=torch.bool),
        "nearest": (mantissa > tie) | ((mantissa == tie) & (exponent > 0)),
    }
    if round_mode not in rounds_up:
        raise Unsupported(f"Cast with round_mode '{round_mode}'")
    largest = 0xFE if saturate else 0xFF
    finite = (exponent + rounds_up[round_mode]).clamp(max=largest)
    rounded = torch.where(exponent == 0xFF, exponent, finite)
    return rounded.to(torch.uint8).view(torch.float8_e8m0fnu)


@operator(moves_data=True)
def Cast(x: Tensor, *, to: int, saturate: int = 1, round_mode: str = "up") -> Tensor:
    return to_type(x, ir.DataType(to), saturate=bool(saturate), round_mode=round_mode)


@operator(takes_call=True, moves_data=True, typed=(1,), unread=(1,))
def CastLike(
    call: Call, x: Tensor, like: Tensor, *, saturate: int = 1, round_mode: str = "up"
) -> Tensor:
    target = call.types.get(1) or tensors.type_of(like.dtype)
    return to_type(x, target, saturate=bool(saturate), round_mode=round_mode)


@operator(takes_call=True, typed=(0,))
def BitCast(call: Call, x: Tensor, *, to: int) -> Tensor:
    target = ir.DataType(to)
    if target in tensors.NARROW:
        return wrap(x.to(torch.int64), target)
    return x.view(tensors.dtype_of(to))
