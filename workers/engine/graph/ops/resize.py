"""Resampling of grids."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from workers.engine.errors import Unsupported
from workers.engine.graph import tensors
from workers.engine.graph.ops._operator import operator

Tensor = torch.Tensor


@operator(host=(1, 2, 3))
def Resize(
    x: Tensor,
    roi: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
    *,
    antialias: int = 0,
    axes: Sequence[int] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Tensor:
    """Axis by axis: a choice of elements, or a product with a matrix of interpolation weights."""
    along = [axis % x.dim() for axis in axes] if axes is not None else list(range(x.dim()))
    targets, factors = _targets(x, along, scales, sizes, keep_aspect_ratio_policy)
    window = [] if roi is None or not roi.numel() else roi.reshape(-1).tolist()
    outside: Tensor | None = None
    for at, axis in enumerate(along):
        size, target, factor = x.shape[axis], targets[at], factors[at]
        cropped = coordinate_transformation_mode == "tf_crop_and_resize"
        edges = (window[at], window[at + len(along)]) if cropped else (0.0, 1.0)
        if target == size and factor == 1 and not cropped:
            continue
        place = torch.arange(target, dtype=torch.float64, device=x.device)
        where = _coordinates(place, size, factor, coordinate_transformation_mode, edges)
        stretch = min(factor, 1.0) if antialias else 1.0
        if mode == "nearest":
            x = x.index_select(axis, _nearest(where, nearest_mode).clamp(0, size - 1).long())
        else:
            kernel = (mode, cubic_coeff_a, stretch)
            x = _apply(x, _weights(where, size, kernel, bool(exclude_outside)), axis)
        if cropped:
            beyond = (where < 0) | (where > size - 1)
            shape = [-1 if a == axis else 1 for a in range(x.dim())]
            outside = beyond.reshape(shape) | (outside if outside is not None else False)
    return x if outside is None else x.masked_fill(outside, extrapolation_value)


def _targets(
    x: Tensor, along: list[int], scales: Tensor | None, sizes: Tensor | None, policy: str
) -> tuple[list[int], list[float]]:
    """Output size and scale of each axis."""
    if sizes is None or not sizes.numel():
        if scales is None:
            raise Unsupported("Resize without scales and sizes")
        factors = [float(s) for s in scales.reshape(-1).tolist()]
        targets = [math.floor(x.shape[axis] * f) for axis, f in zip(along, factors, strict=True)]
        return targets, factors
    targets = tensors.ints(sizes)
    factors = [n / x.shape[axis] for n, axis in zip(targets, along, strict=True)]
    if policy != "stretch":
        one = min(factors) if policy == "not_larger" else max(factors)
        factors = [one] * len(along)
        targets = [math.floor(x.shape[axis] * one + 0.5) for axis in along]
    return targets, factors


def _coordinates(
    place: Tensor, size: int, scale: float, mode: str, edges: tuple[float, float]
) -> Tensor:
    """Where in the input each output element lies, in input elements."""
    target = len(place)
    if mode == "half_pixel":
        return (place + 0.5) / scale - 0.5
    if mode == "half_pixel_symmetric":
        adjusted = target / (size * scale)
        offset = size / 2 * (1 - adjusted)
        return offset + (place + 0.5) / scale - 0.5
    if mode == "pytorch_half_pixel":
        return (place + 0.5) / scale - 0.5 if target > 1 else torch.zeros_like(place)
    if mode == "align_corners":
        return place * ((size - 1) / (target - 1)) if target > 1 else torch.zeros_like(place)
    if mode == "asymmetric":
        return place / scale
    if mode == "tf_crop_and_resize":
        first, last = edges
        if target == 1:
            return torch.full_like(place, 0.5 * (first + last) * (size - 1))
        return first * (size - 1) + place * ((last - first) * (size - 1) / (target - 1))
    raise Unsupported(f"Resize with coordinate_transformation_mode '{mode}'")


def _weights(
    where: Tensor, size: int, kernel: tuple[str, float, float], exclude_outside: bool
) -> Tensor:
    """[target, size] float64: how much of each input element goes into each output element."""
    mode, a, stretch = kernel
    radius = math.ceil((2 if mode == "cubic" else 1) / stretch)
    taps = torch.arange(-radius + 1, radius + 1, dtype=torch.float64, device=where.device)
    taken = torch.floor(where).unsqueeze(1) + taps
    distance = (where.unsqueeze(1) - taken).abs() * stretch
    weight = _cubic(distance, a) if mode == "cubic" else (1 - distance).clamp(min=0)
    if exclude_outside:
        weight = weight * ((taken >= 0) & (taken <= size - 1))
    weight = weight / weight.sum(1, keepdim=True)
    matrix = torch.zeros(len(where), size, dtype=torch.float64, device=where.device)
    return matrix.scatter_add(1, taken.clamp(0, size - 1).long(), weight)


def _nearest(where: Tensor, mode: str) -> Tensor:
    if mode == "floor":
        return torch.floor(where)
    if mode == "ceil":
        return torch.ceil(where)
    if mode == "round_prefer_floor":
        return torch.ceil(where - 0.5)
    return torch.floor(where + 0.5)


def _cubic(distance: Tensor, a: float) -> Tensor:
    """Keys: Cubic convolution interpolation for digital image processing (1981)."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    inside = torch.where(distance <= 1, near, far)
    return torch.where(distance < 2, inside, torch.zeros_like(distance))


def _apply(x: Tensor, weights: Tensor, axis: int) -> Tensor:
    dtype = x.dtype if x.dtype.is_floating_point else torch.float32
    moved = x.movedim(axis, -1).to(dtype)
    result = (moved @ weights.to(dtype).t()).movedim(-1, axis)
    return result if x.dtype.is_floating_point else result.round().to(x.dtype)
