"""Reductions over axes, and searches for the largest."""

from __future__ import annotations

from collections.abc import Callable

import torch

from workers.engine.graph import tensors
from workers.engine.graph.ops._operator import operator

Tensor = torch.Tensor


def _axes(x: Tensor, axes: Tensor | None, noop: int) -> list[int]:
    """Which axes go; none at all where the operator asks for nothing."""
    chosen = [] if axes is None else tensors.ints(axes)
    if chosen:
        return [axis % x.dim() for axis in chosen] if x.dim() else []
    return [] if noop else list(range(x.dim()))


def _reduce(
    function: Callable[..., Tensor], x: Tensor, axes: Tensor | None, keepdims: int, noop: int
) -> Tensor:
    chosen = _axes(x, axes, noop)
    if not chosen:
        return x if x.dim() else function(x.reshape(1), [0], keepdim=False)
    return function(x, chosen, keepdim=bool(keepdims))


@operator(host=(1,))
def ReduceSum(
    x: Tensor, axes: Tensor | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    return _reduce(torch.sum, x, axes, keepdims, noop_with_empty_axes).to(x.dtype)


@operator(host=(1,))
def ReduceMean(
    x: Tensor, axes: Tensor | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    return _reduce(torch.mean, x, axes, keepdims, noop_with_empty_axes)


def _largest(x: Tensor, axes: list[int], keepdim: bool) -> Tensor:
    if any(x.shape[axis] == 0 for axis in axes):
        return _of_nothing(x, axes, keepdim, lowest=True)
    return x.amax(axes, keepdim=keepdim)


def _smallest(x: Tensor, axes: list[int], keepdim: bool) -> Tensor:
    if any(x.shape[axis] == 0 for axis in axes):
        return _of_nothing(x, axes, keepdim, lowest=False)
    return x.amin(axes, keepdim=keepdim)


def _of_nothing(x: Tensor, axes: list[int], keepdim: bool, *, lowest: bool) -> Tensor:
    shape = [1 if axis in axes else n for axis, n in enumerate(x.shape)]
    if not keepdim:
        shape = [n for axis, n in enumerate(shape) if axis not in axes]
    if x.dtype.is_floating_point:
        edge: float = -torch.inf if lowest else torch.inf
    elif x.dtype is torch.bool:
        edge = not lowest
    else:
        edge = torch.iinfo(x.dtype).min if lowest else torch.iinfo(x.dtype).max
    return torch.full(shape, edge, dtype=x.dtype, device=x.device)


@operator(host=(1,))
def ReduceMax(
    x: Tensor, axes: Tensor | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    return _reduce(_largest, x, axes, keepdims, noop_with_empty_axes)


@operator(host=(1,))
def ReduceMin(
    x: Tensor, axes: Tensor | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    return _reduce(_smallest, x, axes, keepdims, noop_with_empty_axes)


def _product(x: Tensor, axes: list[int], keepdim: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keepdim=keepdim)
    return x


@operator(host=(1,))
def ReduceProd(
    x: Tensor, axes: Tensor | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    return _reduce(_product, x, axes, keepdims, noop_with_empty_axes).to(x.dtype)


@operator(host=(1,))
def ReduceL1(
    x: Tensor, axes: Tensor | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    return _reduce(torch.sum, x.abs(), axes, keepdims, noop_with_empty_axes).to(x.dtype)


@operator(host=(1,))
def ReduceL2(
    x: Tensor, axes: Tensor | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    return _reduce(torch.sum, x.square(), axes, keepdims, noop_with_empty_axes).sqrt().to(x.dtype)


@operator(host=(1,))
def ReduceSumSquare(
    x: Tensor, axes: Tensor | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    return _reduce(torch.sum, x.square(), axes, keepdims, noop_with_empty_axes).to(x.dtype)


@operator(host=(1,))
def ReduceLogSum(
    x: Tensor, axes: Tensor | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    return _reduce(torch.sum, x, axes, keepdims, noop_with_empty_axes).log()


@operator(host=(1,))
def ReduceLogSumExp(
    x: Tensor, axes: Tensor | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    return _reduce(torch.logsumexp, x, axes, keepdims, noop_with_empty_axes)


@operator()
def ArgMax(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    if not select_last_index:
        return torch.argmax(x, axis, keepdim=bool(keepdims))
    return x.shape[axis] - 1 - torch.argmax(x.flip(axis), axis, keepdim=bool(keepdims))


@operator()
def ArgMin(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    if not select_last_index:
        return torch.argmin(x, axis, keepdim=bool(keepdims))
    return x.shape[axis] - 1 - torch.argmin(x.flip(axis), axis, keepdim=bool(keepdims))


@operator(host=(1,))
def TopK(
    x: Tensor, k: Tensor, *, axis: int = -1, largest: int = 1, sorted: int = 1
) -> tuple[Tensor, Tensor]:
    """By a stable sort, so that of equals the one with the lower index comes first."""
    values, places = torch.sort(x, dim=axis, descending=bool(largest), stable=True)
    count = int(k)
    return values.narrow(axis, 0, count), places.narrow(axis, 0, count)


@operator(host=(1,))
def CumSum(x: Tensor, axis: Tensor, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    along = int(axis)
    ordered = x.flip(along) if reverse else x
    total = torch.cumsum(ordered, along).to(x.dtype)
    total = total - ordered if exclusive else total
    return total.flip(along) if reverse else total


@operator(host=(1,))
def CumProd(x: Tensor, axis: Tensor, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    along = int(axis)
    ordered = x.flip(along) if reverse else x
    if exclusive:
        ones = torch.ones_like(ordered.narrow(along, 0, 1))
        ordered = torch.cat([ones, ordered.narrow(along, 0, x.shape[along] - 1)], along)
    total = torch.cumprod(ordered, along).to(x.dtype)
    return total.flip(along) if reverse else total


@operator()
def Unique(
    x: Tensor, *, axis: int | None = None, sorted: int = 1
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The distinct slices, where each first occurs, which one each was, and how often it occurs."""
    slices = x.reshape(-1, 1) if axis is None else x.movedim(axis, 0).flatten(1)
    _, inverse, counts = torch.unique(slices, dim=0, return_inverse=True, return_counts=True)
    place = torch.arange(len(slices), device=x.device)
    start = torch.full_like(counts, len(slices))
    first = start.scatter_reduce(0, inverse, place, "amin")
    if not sorted:
        order = torch.argsort(first)
        first, counts, inverse = first[order], counts[order], torch.argsort(order)[inverse]
    values = x.reshape(-1)[first] if axis is None else x.index_select(axis, first)
    return values, first, inverse, counts
