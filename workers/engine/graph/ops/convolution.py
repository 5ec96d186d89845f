"""Convolutions, and the geometry of their windows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional

from workers.engine.errors import Unsupported
from workers.engine.graph.ops._operator import Operand, operator

Tensor = torch.Tensor

_CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_TRANSPOSED = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}


def macs(operands: Sequence[Operand], results: Sequence[Tensor]) -> int:
    """Of a convolution, from its weight."""
    weight = operands[1]
    assert weight is not None
    return results[0].numel() * math.prod(weight.shape[1:])


def quantized_macs(operands: Sequence[Operand], results: Sequence[Tensor]) -> int:
    """Of a QLinearConv, whose weight is the fourth operand."""
    return macs([operands[0], operands[3]], results)


def _transposed_macs(operands: Sequence[Operand], results: Sequence[Tensor]) -> int:
    x, weight = operands[0], operands[1]
    assert x is not None
    assert weight is not None
    return x.numel() * math.prod(weight.shape[1:])


def window_pads(
    size: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    auto_pad: str,
    pads: Sequence[int] | None,
) -> list[int]:
    """Zeros before every axis, then after every axis, in ONNX order."""
    if auto_pad in ("NOTSET", ""):
        return list(pads or [0] * 2 * len(size))
    if auto_pad == "VALID":
        return [0] * 2 * len(size)
    before, after = [], []
    for n, k, s, d in zip(size, kernel, strides, dilations, strict=True):
        total = max(0, (math.ceil(n / s) - 1) * s + (k - 1) * d + 1 - n)
        small, large = total // 2, total - total // 2
        before.append(large if auto_pad == "SAME_LOWER" else small)
        after.append(small if auto_pad == "SAME_LOWER" else large)
    return before + after


def torch_pads(pads: Sequence[int]) -> list[int]:
    """ONNX's order (all begins, all ends) as functional.pad's (last axis first, begin and end)."""
    rank = len(pads) // 2
    return [edge for axis in reversed(range(rank)) for edge in (pads[axis], pads[axis + rank])]


@operator(weights=(1, 2), macs=macs)
def Conv(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    rank = w.dim() - 2
    if rank not in _CONV:
        raise Unsupported(f"Conv over {rank} spatial axes; 1 to 3 are supported")
    strides, dilations = strides or [1] * rank, dilations or [1] * rank
    edges = window_pads(x.shape[2:], w.shape[2:], strides, dilations, auto_pad, pads)
    padding = edges[:rank]
    if padding != edges[rank:]:
        x, padding = functional.pad(x, torch_pads(edges)), [0] * rank
    result: Tensor = _CONV[rank](x, w, b, list(strides), padding, list(dilations), group)
    return result


@operator(weights=(1, 2), macs=_transposed_macs)
def ConvTranspose(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    output_padding: Sequence[int] | None = None,
    output_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """Computed without padding, then cropped: what ONNX calls pads takes rows and columns away."""
    rank = w.dim() - 2
    if rank not in _TRANSPOSED:
        raise Unsupported(f"ConvTranspose over {rank} spatial axes; 1 to 3 are supported")
    strides, dilations = strides or [1] * rank, dilations or [1] * rank
    extra = list(output_padding or [0] * rank)
    full = [
        (n - 1) * s + (k - 1) * d + 1 + e
        for n, k, s, d, e in zip(x.shape[2:], w.shape[2:], strides, dilations, extra, strict=True)
    ]
    edges = _transposed_pads(x.shape[2:], full, strides, auto_pad, pads, output_shape)
    y: Tensor = _TRANSPOSED[rank](x, w, None, list(strides), 0, 0, group, list(dilations))
    y = functional.pad(y, torch_pads([0] * rank + extra))
    y = functional.pad(y, torch_pads([-edge for edge in edges]))
    return y if b is None else y + b.reshape(-1, *[1] * rank)


def _transposed_pads(
    size: Sequence[int],
    full: Sequence[int],
    strides: Sequence[int],
    auto_pad: str,
    pads: Sequence[int] | None,
    output_shape: Sequence[int] | None,
) -> list[int]:
    rank = len(size)
    if output_shape is None and auto_pad not in ("SAME_UPPER", "SAME_LOWER"):
        return list(pads or [0] * 2 * rank)
    wanted = output_shape or [n * s for n, s in zip(size, strides, strict=True)]
    totals = [n - w for n, w in zip(full, list(wanted)[-rank:], strict=True)]
    small = [total // 2 for total in totals]
    large = [total - total // 2 for total in totals]
    return small + large if auto_pad == "SAME_UPPER" else large + small


@operator(macs=macs)
def ConvInteger(
    x: Tensor,
    w: Tensor,
    x_zero_point: Tensor | None = None,
    w_zero_point: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """Exact in float64: sums of int8 products stay far below 2^53."""
    x64, w64 = x.double(), w.double()
    if x_zero_point is not None:
        x64 = x64 - x_zero_point.double()
    if w_zero_point is not None:
        w64 = w64 - w_zero_point.double().reshape(-1, *[1] * (w.dim() - 1))
    y: Tensor = Conv(
        x64, w64, auto_pad=auto_pad, dilations=dilations, group=group, pads=pads, strides=strides
    )
    return y.to(torch.int32)
