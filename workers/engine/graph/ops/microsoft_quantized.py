"""Operators of com.microsoft over quantized tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch.nn import functional

from workers.engine.errors import Unsupported
from workers.engine.graph.ops import linear, quantization
from workers.engine.graph.ops._operator import Call, operator
from workers.engine.graph.ops.microsoft import DOMAIN

Tensor = torch.Tensor


@operator(domain=DOMAIN, macs=linear.product_macs)
def MatMulNBits(
    a: Tensor,
    b: Tensor,
    scales: Tensor,
    zero_points: Tensor | None = None,
    g_idx: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    K: int,
    N: int,
    accuracy_level: int = 0,
    bits: int = 4,
    block_size: int,
    weight_prepacked: int = 0,
) -> Tensor:
    """b: [N, blocks, bytes of a block] uint8, the first element in the lowest bits; a scale for each block of K.

    At accuracy level 4 ONNX Runtime rounds a to 8 bits, with a scale for each block of a row.
    """
    if g_idx is not None or weight_prepacked or 8 % bits:
        raise Unsupported(f"MatMulNBits of {bits} bits with g_idx or prepacked weights")
    blocks = math.ceil(K / block_size)
    integers = _unpacked(b.reshape(N, blocks, -1), bits)[..., :block_size].to(a.dtype)
    zero = _zero_points(zero_points, N, blocks, bits).to(a.dtype)
    w = (integers - zero) * scales.reshape(N, blocks, 1)
    if accuracy_level == _IN_INT8:
        a = _in_int8(a, block_size)
    y = torch.matmul(a, w.reshape(N, -1)[:, :K].t())
    return y if bias is None else y + bias


_IN_INT8 = 4


def _in_int8(a: Tensor, block_size: int) -> Tensor:
    """Values of the last axis rounded to -127 .. 127 times the scale of their block."""
    columns = a.shape[-1]
    blocks = functional.pad(a, (0, -columns % block_size)).reshape(*a.shape[:-1], -1, block_size)
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    safe = torch.where(scale > 0, scale, torch.ones_like(scale))
    rounded: Tensor = (torch.round(blocks / safe) * scale).flatten(-2)[..., :columns]
    return rounded


def _unpacked(packed: Tensor, bits: int) -> Tensor:
    shifts = torch.arange(0, 8, bits, device=packed.device)
    parts: Tensor = (packed.to(torch.int64).unsqueeze(-1) >> shifts) & (2**bits - 1)
    return parts.flatten(-2)


def _zero_points(given: Tensor | None, rows: int, blocks: int, bits: int) -> Tensor:
    """[rows, blocks, 1]; packed like the weights, each row beginning a byte, unless they are floats."""
    if given is None:
        return torch.tensor(2 ** (bits - 1))
    if given.dtype.is_floating_point:
        return given.reshape(rows, blocks, 1)
    return _unpacked(given.reshape(rows, -1), bits)[:, :blocks].unsqueeze(-1)


@operator(domain=DOMAIN, takes_call=True, typed=(2,))
def QuantizeLinear(
    call: Call, x: Tensor, scale: Tensor, zero_point: Tensor | None = None, *, axis: int = 1
) -> Tensor:
    return quantization.QuantizeLinear(call, x, scale, zero_point, axis=axis)


@operator(domain=DOMAIN)
def DequantizeLinear(
    x: Tensor, scale: Tensor, zero_point: Tensor | None = None, *, axis: int = 1
) -> Tensor:
    return quantization.DequantizeLinear(x, scale, zero_point, axis=axis)


def _in_floats(
    function: Callable[..., Tensor],
    operands: Sequence[tuple[Tensor, Tensor, Tensor | None]],
    scale: Tensor,
    zero_point: Tensor | None,
) -> Tensor:
    """What a function gives for (integers, scale, zero point), as integers again."""
    floats = [quantization.DequantizeLinear(*operand) for operand in operands]
    zero = torch.zeros_like(operands[0][0].reshape(-1)[:1]) if zero_point is None else zero_point
    return quantization.QuantizeLinear(Call(scale.device), function(*floats), scale, zero)


@operator(domain=DOMAIN)
def QLinearAdd(
    a: Tensor,
    a_scale: Tensor,
    a_zero_point: Tensor | None,
    b: Tensor,
    b_scale: Tensor,
    b_zero_point: Tensor | None,
    y_scale: Tensor,
    y_zero_point: Tensor | None = None,
) -> Tensor:
    both = [(a, a_scale, a_zero_point), (b, b_scale, b_zero_point)]
    return _in_floats(torch.add, both, y_scale, y_zero_point)


@operator(domain=DOMAIN)
def QLinearMul(
    a: Tensor,
    a_scale: Tensor,
    a_zero_point: Tensor | None,
    b: Tensor,
    b_scale: Tensor,
    b_zero_point: Tensor | None,
    y_scale: Tensor,
    y_zero_point: Tensor | None = None,
) -> Tensor:
    both = [(a, a_scale, a_zero_point), (b, b_scale, b_zero_point)]
    return _in_floats(torch.mul, both, y_scale, y_zero_point)


@operator(domain=DOMAIN)
def QLinearSigmoid(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor | None,
    y_scale: Tensor,
    y_zero_point: Tensor | None = None,
) -> Tensor:
    return _in_floats(torch.sigmoid, [(x, x_scale, x_zero_point)], y_scale, y_zero_point)


@operator(domain=DOMAIN)
def QLinearGlobalAveragePool(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor,
    y_scale: Tensor,
    y_zero_point: Tensor,
    *,
    channels_last: int = 0,
) -> Tensor:
    axes = tuple(range(1, x.dim() - 1) if channels_last else range(2, x.dim()))

    def mean(floats: Tensor) -> Tensor:
        return floats.mean(axes, keepdim=True)

    return _in_floats(mean, [(x, x_scale, x_zero_point)], y_scale, y_zero_point)


@operator(domain=DOMAIN)
def QLinearConcat(y_scale: Tensor, y_zero_point: Tensor, *xs: Tensor, axis: int) -> Tensor:
    """xs: integers, scale and zero point of each part."""
    parts = list(zip(xs[::3], xs[1::3], xs[2::3], strict=True))

    def join(*floats: Tensor) -> Tensor:
        return torch.cat(floats, axis)

    return _in_floats(join, parts, y_scale, y_zero_point)


@operator(domain=DOMAIN)
def MatMulIntegerToFloat(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    a_zero_point: Tensor | None = None,
    b_zero_point: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    y = linear.MatMulInteger(a, b, a_zero_point, b_zero_point) * (a_scale * b_scale)
    return y if bias is None else y + bias


@operator(domain=DOMAIN)
def DynamicQuantizeMatMul(
    a: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero_point: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    integers, scale, zero_point = quantization.DynamicQuantizeLinear(a)
    y: Tensor = MatMulIntegerToFloat(integers, b, scale, b_scale, zero_point, b_zero_point, bias)
    return y
