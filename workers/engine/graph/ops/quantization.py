"""Quantized tensors: conversion from and to integers."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
import torch

from workers.engine.graph import tensors
from workers.engine.graph.ops import conversion, convolution, linear
from workers.engine.graph.ops._operator import Call, operator

Tensor = torch.Tensor


def spread(x: Tensor, parameter: Tensor, axis: int, block_size: int) -> Tensor:
    """A scale or zero point per tensor, per channel of an axis or per block, shaped to broadcast on x."""
    if parameter.numel() == 1 and parameter.dim() <= 1:
        return parameter.reshape(())
    if parameter.dim() == 1:
        shape = [1] * x.dim()
        shape[axis] = parameter.numel()
        return parameter.reshape(shape)
    repeated = torch.repeat_interleave(parameter, block_size, axis)
    return repeated.narrow(axis, 0, x.shape[axis])


@operator(takes_call=True, typed=(2,))
def QuantizeLinear(
    call: Call,
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
    saturate: int = 1,
) -> Tensor:
    """Rounds half to even and saturates; no gradient passes."""
    target = _quantized_type(call, zero_point, output_dtype)
    scaled = x / spread(x, scale, axis, block_size)
    if target.is_floating_point():
        return conversion.to_type(scaled, target, saturate=bool(saturate))
    rounded = torch.round(scaled).to(torch.float64 if x.dtype is torch.float64 else torch.float32)
    if zero_point is not None:
        rounded = rounded + spread(x, zero_point, axis, block_size)
    low, high = tensors.range_of(target)
    return rounded.clamp(low, high).to(torch.int64).to(tensors.dtype_of(target))


def _quantized_type(call: Call, zero_point: Tensor | None, output_dtype: int) -> ir.DataType:
    if output_dtype:
        return ir.DataType(output_dtype)
    if zero_point is None:
        return ir.DataType.UINT8
    return call.types.get(2) or tensors.type_of(zero_point.dtype)


@operator()
def DequantizeLinear(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> Tensor:
    target = tensors.dtype_of(output_dtype) if output_dtype else scale.dtype
    wide = x.to(torch.float32)
    if zero_point is not None:
        wide = wide - spread(x, zero_point, axis, block_size).to(torch.float32)
    return (wide * spread(x, scale, axis, block_size).to(torch.float32)).to(target)


@operator()
def QLinearMatMul(
    a: Tensor,
    a_scale: Tensor,
    a_zero_point: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero_point: Tensor,
    y_scale: Tensor,
    y_zero_point: Tensor,
) -> Tensor:
    y = linear.MatMulInteger(a, b, a_zero_point, b_zero_point)
    scale = a_scale.float() * b_scale.float() / y_scale.float()
    return _requantized(y, scale, y_zero_point)


@operator(macs=convolution.quantized_macs)
def QLinearConv(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor,
    w: Tensor,
    w_scale: Tensor,
    w_zero_point: Tensor,
    y_scale: Tensor,
    y_zero_point: Tensor,
    b: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    y = convolution.ConvInteger(
        x,
        w,
        x_zero_point,
        w_zero_point,
        auto_pad=auto_pad,
        dilations=dilations,
        group=group,
        pads=pads,
        strides=strides,
    )
    ones = [1] * (w.dim() - 2)
    y = y if b is None else y + b.reshape(-1, *ones)
    scale = x_scale * w_scale.reshape(-1, *ones) / y_scale
    return _requantized(y, scale, y_zero_point)


def _requantized(y: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    limits = torch.iinfo(zero_point.dtype)
    rounded = torch.round(y.double() * scale) + zero_point.double()
    return rounded.clamp(limits.min, limits.max).to(torch.int64).to(zero_point.dtype)


@operator()
def DynamicQuantizeLinear(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """To uint8 over the range of x, widened so that it holds zero."""
    zero = torch.zeros((), dtype=x.dtype, device=x.device)
    low, high = torch.minimum(x.amin(), zero), torch.maximum(x.amax(), zero)
    scale = (high - low) / 255
    safe = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero_point = torch.round((0 - low) / safe).clamp(0, 255)
    quantized = (torch.round(x / safe) + zero_point).clamp(0, 255)
    return quantized.to(torch.uint8), scale, zero_point.to(torch.uint8)
