"""Operators that move elements and compute nothing: shapes, slices, gathers, joins."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional

from workers.engine.graph import tensors
from workers.engine.graph.ops import convolution
from workers.engine.graph.ops._operator import Call, operator

Tensor = torch.Tensor


@operator(moves_data=True)
def Identity(x: Tensor) -> Tensor:
    return x


@operator(host=(1,), moves_data=True)
def Reshape(x: Tensor, shape: Tensor, *, allowzero: int = 0) -> Tensor:
    wanted = tensors.ints(shape)
    if not allowzero:
        wanted = [x.shape[axis] if n == 0 else n for axis, n in enumerate(wanted)]
    return x.reshape(wanted)


@operator(moves_data=True)
def Flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    axis = axis + x.dim() if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@operator(moves_data=True)
def Transpose(x: Tensor, *, perm: Sequence[int] | None = None) -> Tensor:
    return x.permute(tuple(perm) if perm is not None else tuple(reversed(range(x.dim()))))


@operator(host=(1,), moves_data=True)
def Squeeze(x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(tensors.ints(axes)))


@operator(host=(1,), moves_data=True)
def Unsqueeze(x: Tensor, axes: Tensor) -> Tensor:
    wanted = tensors.ints(axes)
    rank = x.dim() + len(wanted)
    for axis in sorted(axis % rank for axis in wanted):
        x = x.unsqueeze(axis)
    return x


@operator(host=(1,), moves_data=True)
def Expand(x: Tensor, shape: Tensor) -> Tensor:
    return x.expand(np.broadcast_shapes(tuple(x.shape), tuple(tensors.ints(shape))))


@operator(host=(1,), moves_data=True)
def Tile(x: Tensor, repeats: Tensor) -> Tensor:
    return x.repeat(tensors.ints(repeats)) if x.dim() else x


@operator(moves_data=True)
def Concat(*xs: Tensor, axis: int) -> Tensor:
    return torch.cat(xs, axis)


@operator(takes_call=True, host=(1,), moves_data=True)
def Split(
    call: Call,
    x: Tensor,
    split: Tensor | None = None,
    *,
    axis: int = 0,
    num_outputs: int | None = None,
) -> tuple[Tensor, ...]:
    """Without sizes the parts are equal, the last one smaller where they cannot be."""
    if split is not None:
        return tuple(torch.split(x, tensors.ints(split), axis))
    size, each = x.shape[axis], -(-x.shape[axis] // call.outputs)
    sizes = [each] * (call.outputs - 1)
    return tuple(torch.split(x, [*sizes, size - sum(sizes)], axis))


@operator(host=(1, 2, 3, 4), moves_data=True)
def Slice(
    x: Tensor,
    starts: Tensor,
    ends: Tensor,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    begins, stops = tensors.ints(starts), tensors.ints(ends)
    along = tensors.ints(axes) if axes is not None else list(range(len(begins)))
    strides = tensors.ints(steps) if steps is not None else [1] * len(begins)
    for begin, stop, axis, stride in zip(begins, stops, along, strides, strict=True):
        x = _slice_axis(x, begin, stop, axis % x.dim(), stride)
    return x


def _slice_axis(x: Tensor, begin: int, stop: int, axis: int, stride: int) -> Tensor:
    taken = range(*slice(begin, stop, stride).indices(x.shape[axis]))
    if stride < 0 and stop < -x.shape[axis]:
        taken = range(*slice(begin, None, stride).indices(x.shape[axis]))
    if not taken:
        return x.narrow(axis, 0, 0)
    if stride > 0:
        index = [slice(None)] * axis + [slice(taken.start, taken[-1] + 1, stride)]
        return x[tuple(index)]
    flipped = x.narrow(axis, taken[-1], taken.start - taken[-1] + 1).flip(axis)
    return flipped[tuple([slice(None)] * axis + [slice(None, None, -stride)])]


@operator(weights=(0,), moves_data=True)
def Gather(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    axis = axis % x.dim()
    places = torch.where(indices < 0, indices + x.shape[axis], indices).long()
    if places.dim() == 0:
        return x.index_select(axis, places.reshape(1)).squeeze(axis)
    taken = x.index_select(axis, places.reshape(-1))
    return taken.reshape(*x.shape[:axis], *places.shape, *x.shape[axis + 1 :])


@operator()
def GatherElements(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    places = torch.where(indices < 0, indices + x.shape[axis], indices).long()
    return x.gather(axis, places)


@operator()
def GatherND(x: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    index = tuple(indices.long().unbind(-1))
    if batch_dims:
        lead = [
            torch.arange(n, device=x.device).reshape(
                [-1 if axis == at else 1 for at in range(indices.dim() - 1)]
            )
            for axis, n in enumerate(x.shape[:batch_dims])
        ]
        index = (*lead, *index)
    return x[index]


_SCATTER = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@operator()
def ScatterElements(
    x: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none"
) -> Tensor:
    places = torch.where(indices < 0, indices + x.shape[axis], indices).long()
    if reduction == "none":
        return x.scatter(axis, places, updates)
    return x.scatter_reduce(axis, places, updates, _SCATTER[reduction])


@operator()
def ScatterND(x: Tensor, indices: Tensor, updates: Tensor, *, reduction: str = "none") -> Tensor:
    depth = indices.shape[-1]
    tail = math.prod(x.shape[depth:])
    strides = [math.prod(x.shape[axis + 1 : depth]) for axis in range(depth)]
    sizes = torch.tensor(x.shape[:depth], device=indices.device)
    places = torch.where(indices < 0, indices + sizes, indices)
    rows = (places * torch.tensor(strides, device=indices.device)).sum(-1).reshape(-1).long()
    flat = x.reshape(math.prod(x.shape[:depth]), tail)
    index = rows.unsqueeze(-1).expand(rows.numel(), tail)
    source = updates.reshape(rows.numel(), tail)
    scattered: Tensor = ScatterElements(flat, index, source, axis=0, reduction=reduction)
    return scattered.reshape(x.shape)


_PAD_MODES = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}


@operator(host=(1, 2, 3), moves_data=True)
def Pad(
    x: Tensor,
    pads: Tensor,
    constant_value: Tensor | None = None,
    axes: Tensor | None = None,
    *,
    mode: str = "constant",
) -> Tensor:
    edges = _pad_edges(x, tensors.ints(pads), None if axes is None else tensors.ints(axes))
    if mode == "constant":
        value = 0 if constant_value is None or not constant_value.numel() else constant_value.item()
        return functional.pad(x, convolution.torch_pads(edges), value=value)
    rank = x.dim()
    for axis in range(rank):
        x = _pad_by_index(x, axis, edges[axis], edges[axis + rank], mode)
    return x


def _pad_edges(x: Tensor, pads: list[int], axes: list[int] | None) -> list[int]:
    if axes is None:
        return pads
    edges, count = [0] * 2 * x.dim(), len(axes)
    for at, axis in enumerate(axes):
        edges[axis % x.dim()] = pads[at]
        edges[axis % x.dim() + x.dim()] = pads[at + count]
    return edges


def _pad_by_index(x: Tensor, axis: int, before: int, after: int, mode: str) -> Tensor:
    if not before and not after:
        return x
    size = x.shape[axis]
    place = torch.arange(-before, size + after, device=x.device)
    if mode == "edge":
        place = place.clamp(0, size - 1)
    elif mode == "wrap":
        place = place.remainder(size)
    else:
        period = max(1, 2 * (size - 1))
        place = place.remainder(period)
        place = torch.where(place >= size, period - place, place)
    return x.index_select(axis, place)


@operator(moves_data=True)
def DepthToSpace(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    n, c, h, w = x.shape
    b = blocksize
    if mode == "DCR":
        split = x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        split = x.reshape(n, c // b**2, b, b, h, w).permute(0, 1, 4, 2, 5, 3)
    return split.reshape(n, c // b**2, h * b, w * b)


@operator(moves_data=True)
def SpaceToDepth(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    n, c, h, w = x.shape
    b = blocksize
    order = (0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4)
    split = x.reshape(n, c, h // b, b, w // b, b).permute(order)
    return split.reshape(n, c * b**2, h // b, w // b)


@operator(host=(1,))
def Trilu(x: Tensor, k: Tensor | None = None, *, upper: int = 1) -> Tensor:
    diagonal = 0 if k is None else int(k)
    return torch.triu(x, diagonal) if upper else torch.tril(x, diagonal)


@operator()
def ReverseSequence(
    x: Tensor, sequence_lens: Tensor, *, batch_axis: int = 1, time_axis: int = 0
) -> Tensor:
    moved = x.movedim((batch_axis, time_axis), (0, 1))
    place = torch.arange(moved.shape[1], device=x.device).expand(moved.shape[0], -1)
    lens = sequence_lens.reshape(-1, 1)
    place = torch.where(place < lens, lens - 1 - place, place)
    index = place.reshape(*place.shape, *[1] * (moved.dim() - 2)).expand(moved.shape)
    return moved.gather(1, index).movedim((0, 1), (batch_axis, time_axis))


@operator()
def NonZero(x: Tensor) -> Tensor:
    return (
        torch.stack(torch.nonzero(x, as_tuple=True))
        if x.dim()
        else torch.zeros((1, int(bool(x))), dtype=torch.int64)
    )


@operator()
def Compress(x: Tensor, condition: Tensor, *, axis: int | None = None) -> Tensor:
    flat = x.reshape(-1) if axis is None else x
    along = 0 if axis is None else axis
    return flat.index_select(along, torch.nonzero(condition).reshape(-1).to(x.device))


@operator(host=(1,))
def OneHot(indices: Tensor, depth: Tensor, values: Tensor, *, axis: int = -1) -> Tensor:
    count = int(depth.reshape(-1)[0])
    axis = axis % (indices.dim() + 1)
    whole = indices.long()
    places = torch.where(whole < 0, whole + count, whole).unsqueeze(axis)
    shape = [1] * places.dim()
    shape[axis] = count
    classes = torch.arange(count, device=indices.device).reshape(shape)
    return torch.where(places == classes, values[1], values[0])
