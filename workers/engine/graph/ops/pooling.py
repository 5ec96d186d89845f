"""Windows that take a maximum, a mean or a norm."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional

from workers.engine.errors import Unsupported
from workers.engine.graph.ops import convolution
from workers.engine.graph.ops._operator import Call, operator

Tensor = torch.Tensor

_MAX = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_MEAN = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


def _edges(
    x: Tensor,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    auto_pad: str,
    pads: Sequence[int] | None,
    ceil_mode: int,
) -> tuple[list[int], list[int]]:
    """ONNX pads, and how much further each end reaches so that the last windows are whole.

    With ceil_mode a last window that starts beyond the input and its first padding is dropped.
    """
    size = x.shape[2:]
    edges = convolution.window_pads(size, kernel, strides, dilations, auto_pad, pads)
    rank, further = len(size), []
    for axis, (n, k, s, d) in enumerate(zip(size, kernel, strides, dilations, strict=True)):
        span = n + edges[axis] + edges[axis + rank] - ((k - 1) * d + 1)
        windows = (math.ceil(span / s) if ceil_mode else span // s) + 1
        if ceil_mode and (windows - 1) * s >= n + edges[axis]:
            windows -= 1
        further.append(max(0, (windows - 1) * s - span))
    return edges, further


@operator(takes_call=True)
def MaxPool(
    call: Call,
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    storage_order: int = 0,
    strides: Sequence[int] | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    rank = x.dim() - 2
    if rank not in _MAX:
        raise Unsupported(f"MaxPool over {rank} spatial axes; 1 to 3 are supported")
    strides, dilations = strides or [1] * rank, dilations or [1] * rank
    edges, further = _edges(x, kernel_shape, strides, dilations, auto_pad, pads, ceil_mode)
    edges = edges[:rank] + [a + b for a, b in zip(edges[rank:], further, strict=True)]
    if call.outputs == 2:
        return _max_with_indices(x, kernel_shape, strides, dilations, edges, storage_order)
    padded = (
        functional.pad(x, convolution.torch_pads(edges), value=_lowest(x.dtype))
        if any(edges)
        else x
    )
    if not x.dtype.is_floating_point:
        pooled: Tensor = _MAX[rank](
            padded.float(), list(kernel_shape), list(strides), 0, list(dilations)
        )
        return pooled.to(x.dtype)
    result: Tensor = _MAX[rank](padded, list(kernel_shape), list(strides), 0, list(dilations))
    return result


def _lowest(dtype: torch.dtype) -> float:
    return -math.inf if dtype.is_floating_point else torch.iinfo(dtype).min


def _max_with_indices(
    x: Tensor,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    edges: Sequence[int],
    storage_order: int,
) -> tuple[Tensor, Tensor]:
    """Positions are counted over the whole unpadded input, batch and channels included."""
    rank, pads = x.dim() - 2, convolution.torch_pads(edges)
    place = torch.arange(x.numel(), device=x.device).reshape(x.shape)
    if storage_order:
        inner = torch.arange(math.prod(x.shape[2:]), device=x.device)
        column_major = inner.reshape(tuple(reversed(x.shape[2:]))).permute(*reversed(range(rank)))
        outer = torch.arange(math.prod(x.shape[:2]), device=x.device) * inner.numel()
        place = outer.reshape(*x.shape[:2], *[1] * rank) + column_major
    padded = functional.pad(x.double(), pads, value=-math.inf)
    places = functional.pad(place, pads, value=0)
    pooled, flat = _MAX[rank](
        padded, list(kernel), list(strides), 0, list(dilations), return_indices=True
    )
    index = places.flatten(2).gather(2, flat.flatten(2)).reshape(flat.shape)
    return pooled.to(x.dtype), index


@operator()
def AveragePool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    rank = x.dim() - 2
    if rank not in _MEAN:
        raise Unsupported(f"AveragePool over {rank} spatial axes; 1 to 3 are supported")
    strides, dilations = strides or [1] * rank, dilations or [1] * rank
    edges, further = _edges(x, kernel_shape, strides, dilations, auto_pad, pads, ceil_mode)
    if not any(edges) and not any(further) and set(dilations) == {1}:
        result: Tensor = _MEAN[rank](x, list(kernel_shape), list(strides))
        return result
    counted = torch.ones_like(x[:1, :1])
    pads_counted = convolution.torch_pads(edges)
    x, counted = (
        functional.pad(x, pads_counted),
        functional.pad(counted, pads_counted, value=float(count_include_pad)),
    )
    reach = convolution.torch_pads([0] * rank + further)
    total = _window_sum(functional.pad(x, reach), kernel_shape, strides, dilations)
    return total / _window_sum(functional.pad(counted, reach), kernel_shape, strides, dilations)


def _window_sum(
    x: Tensor, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> Tensor:
    ones = torch.ones((1, 1, *kernel), dtype=x.dtype, device=x.device)
    single = x.reshape(-1, 1, *x.shape[2:])
    summed: Tensor = convolution.Conv(single, ones, strides=strides, dilations=dilations)
    return summed.reshape(*x.shape[:2], *summed.shape[2:])


@operator()
def LpPool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    p: int = 2,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    rank = x.dim() - 2
    strides, dilations = strides or [1] * rank, dilations or [1] * rank
    edges, further = _edges(x, kernel_shape, strides, dilations, auto_pad, pads, ceil_mode)
    edges = edges[:rank] + [a + b for a, b in zip(edges[rank:], further, strict=True)]
    padded = functional.pad(x, convolution.torch_pads(edges))
    return _window_sum(padded.abs().pow(p), kernel_shape, strides, dilations).pow(1 / p)


@operator()
def GlobalAveragePool(x: Tensor) -> Tensor:
    return x.mean(dim=tuple(range(2, x.dim())), keepdim=True)


@operator()
def GlobalMaxPool(x: Tensor) -> Tensor:
    return x.amax(dim=tuple(range(2, x.dim())), keepdim=True)


@operator()
def GlobalLpPool(x: Tensor, *, p: int = 2) -> Tensor:
    total = x.abs().pow(p).sum(dim=tuple(range(2, x.dim())), keepdim=True)
    return total.pow(1 / p)
