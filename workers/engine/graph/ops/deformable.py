"""Convolution over places that the network chooses."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch

from workers.engine.graph.ops import convolution
from workers.engine.graph.ops._operator import operator

Tensor = torch.Tensor


@operator(weights=(1, 3), macs=convolution.macs)
def DeformConv(
    x: Tensor,
    w: Tensor,
    offset: Tensor,
    b: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    offset_group: int = 1,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """Dai et al.: Deformable Convolutional Networks (arXiv 1703.06211), modulated by `mask` (1811.11168).

    offset: [N, offset groups * kernel elements * axes, *out], in elements of x; mask the same
    without the axes. What lies outside of x is zero.
    """
    rank, out, taps = w.dim() - 2, offset.shape[2:], math.prod(w.shape[2:])
    grid = _grid(w.shape[2:], out, pads, strides or [1] * rank, dilations or [1] * rank, offset)
    where = offset.reshape(x.shape[0], offset_group, taps, rank, -1) + grid
    columns = _sampled(x, where, offset_group)
    if mask is not None:
        columns = columns * mask.reshape(x.shape[0], offset_group, 1, taps, -1)
    columns = columns.reshape(x.shape[0], group, -1, math.prod(out))
    y = w.reshape(group, w.shape[0] // group, -1) @ columns
    y = y.reshape(x.shape[0], w.shape[0], *out)
    return y if b is None else y + b.reshape(-1, *[1] * rank)


def _grid(
    kernel: Sequence[int],
    out: Sequence[int],
    pads: Sequence[int] | None,
    strides: Sequence[int],
    dilations: Sequence[int],
    like: Tensor,
) -> Tensor:
    """[taps, axes, places]: where each kernel element lies without an offset."""
    edges = pads or [0] * len(kernel)
    starts = [
        torch.arange(n, device=like.device, dtype=like.dtype) * s - edge
        for n, s, edge in zip(out, strides, edges, strict=False)
    ]
    reach = [
        torch.arange(k, device=like.device, dtype=like.dtype) * d
        for k, d in zip(kernel, dilations, strict=True)
    ]
    places = torch.stack([p.reshape(-1) for p in torch.meshgrid(*starts, indexing="ij")])
    steps = torch.stack([r.reshape(-1) for r in torch.meshgrid(*reach, indexing="ij")], 1)
    return steps.unsqueeze(-1) + places


def _sampled(x: Tensor, where: Tensor, groups: int) -> Tensor:
    """[N, groups, C / groups, taps, places]: x between its elements, by multilinear interpolation."""
    size, (n, _, taps, rank, places) = x.shape[2:], where.shape
    flat = x.reshape(n, groups, x.shape[1] // groups, -1)
    low = where.floor()
    total = flat.new_zeros(*flat.shape[:3], taps * places)
    for corner in itertools.product((0, 1), repeat=rank):
        index, share = torch.zeros_like(low[..., 0, :]), torch.ones_like(low[..., 0, :])
        for axis, step in enumerate(corner):
            at = low[..., axis, :] + step
            share = share * (1 - (where[..., axis, :] - at).abs())
            share = share * ((at >= 0) & (at < size[axis]))
            index = index * size[axis] + at.clamp(0, size[axis] - 1)
        picked = index.long().reshape(n, groups, 1, -1).expand(-1, -1, flat.shape[2], -1)
        total = total + flat.gather(3, picked) * share.reshape(n, groups, 1, -1)
    return total.reshape(*flat.shape[:3], taps, places)
