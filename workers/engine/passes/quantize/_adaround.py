"""AdaRound: whether a weight is rounded up or down is learned for each layer (Nagel et al. 2020, arXiv 2004.10568).

~W = s * clip(floor(W / s) + h(V)),  h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1)             (eq. 22, 23)
minimize |W x - ~W x|^2 + lambda * sum(1 - |2 h(V) - 1|^b),  b falling from 20 to 2      (eq. 21, 24)

The first term is a quadratic form of the second moments E[x x'], which one pass over the data gathers in memory that does not grow:
every optimizer step then sees all samples. Differs in: it is taken before the activation function and with inputs of the float
network; errors are relative to those of rounding to nearest, row by row; a row that ends no better than that keeps it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from modelpress.spec.quantize.int8 import AdaRound
from workers.engine.context import Context
from workers.engine.data import Dataset
from workers.engine.graph import Graph
from workers.engine.passes.quantize import _affine, _layerwise, _sweep
from workers.engine.passes.quantize._targets import Target
from workers.engine.passes.quantize._weights import Layer

Tensor = torch.Tensor

MAX_INPUTS = 8192
"""Inputs of an output: the moments of more would take over 256 MiB."""
_MOMENT_BYTES = 512 << 20
_PATCH_ELEMENTS = 1 << 25
_STRETCH = (-0.1, 1.1)
_SHARPNESS = (20.0, 2.0)
_FREE = 0.2
"""Part of the steps in which nothing pushes weights to either side."""


def learn(
    graph: Graph,
    layers: Sequence[Layer],
    options: AdaRound,
    samples: Dataset,
    ctx: Context,
    deeds: Mapping[str, list[str]],
) -> list[Layer]:
    """The layers with learned roundings. Those that can't be learned keep the nearest codes, and a note says why."""
    learned = {id(layer): layer for layer in layers}
    able = []
    for layer in layers:
        reason = _why_not(graph, layer.target)
        if reason:
            ctx.note(f"adaround: {layer.target.weight} is rounded to nearest: {reason}")
        else:
            able.append(layer)
    for some in _portions(graph, able):
        moments = [Moments(layer.target, graph.weight(layer.target.weight)) for layer in some]
        wanted = [(s.target.input.name or "", m) for s, m in zip(some, moments, strict=True)]
        _sweep.run(graph, wanted, samples, ctx, "taking moments")
        for layer, moment in zip(some, moments, strict=True):
            codes, ratio = _learned(graph, layer, moment.mean, options, ctx)
            learned[id(layer)] = replace(layer, codes=codes)
            deeds[layer.target.weight].append(
                f"rounding learned: {ratio:.2f} of the nearest's error"
            )
            ctx.report(min(1.0, len(deeds) / len(layers)), f"rounding {layer.target.weight}")
    return [learned[id(layer)] for layer in layers]


class Moments:
    """E[x x'] over all rows x that the layer multiplies by its weight: [groups, K, K]."""

    def __init__(self, target: Target, weight: np.ndarray) -> None:
        self._target, self._count = target, 0
        groups, _, inputs = _layerwise.as_rows(target, weight).shape
        self._groups, self._inputs = groups, inputs
        self._sum = torch.zeros(groups, inputs, inputs)
        self._kernel = None if _layerwise.is_matrix(target) else _patches(weight.shape, groups)

    def add(self, values: _sweep.Values) -> None:
        x = torch.from_numpy(values)
        if self._kernel is None:
            rows = x.reshape(-1, self._inputs)
            self._sum[0] += rows.T @ rows
            self._count += len(rows)
            return
        size = max(1, _PATCH_ELEMENTS // max(1, x[0].numel() * self._kernel[0].numel()))
        for part in torch.split(x, size):
            y = _layerwise.multiply(self._target, part, self._kernel)
            rows = y.reshape(len(part), self._groups, self._inputs, -1)
            self._sum += torch.einsum("ngkp,nglp->gkl", rows, rows)
            self._count += rows.shape[0] * rows.shape[-1]

    @property
    def mean(self) -> Tensor:
        """Over all rows that were added."""
        return self._sum / max(1, self._count)


def _patches(shape: tuple[int, ...], groups: int) -> Tensor:
    """A weight with which the convolution answers what each of its outputs reads, channel by channel."""
    size = math.prod(shape[1:])
    return torch.eye(size).reshape(size, *shape[1:]).repeat(groups, *[1] * (len(shape) - 1))


def _learned(
    graph: Graph, layer: Layer, moments: Tensor, options: AdaRound, ctx: Context
) -> tuple[_affine.Weight, float]:
    """The layer's codes, and their error over that of the nearest ones."""
    target, old = layer.target, layer.codes
    weight = np.asarray(graph.weight(target.weight), dtype=np.float32)
    scale = np.broadcast_to(_affine.along(old.scale, old.axis, weight.ndim), weight.shape)
    exact = torch.from_numpy(np.array(_layerwise.as_rows(target, weight / scale)))
    nearest = torch.from_numpy(_layerwise.as_rows(target, old.codes.astype(np.float32)).copy())
    units = torch.from_numpy(np.array(_layerwise.as_rows(target, scale))[:, :, 0] ** 2)
    device = ctx.device
    rows = Rows(exact.to(device), nearest.to(device), moments.to(device), layer.limit)
    found = rows.learn(options)
    before, after = rows.errors(nearest.to(device)).cpu(), rows.errors(found).cpu()
    ratio = float((after * units).sum() / (before * units).sum().clamp_min(1e-30))
    codes = _layerwise.from_rows(target, found.cpu().numpy().astype(np.int8), weight.shape)
    return replace(old, codes=codes.astype(np.int8)), ratio


class Rows:
    """The rows of a weight in units of their scales, [groups, outputs, K], and what is asked of their roundings."""

    def __init__(self, exact: Tensor, nearest: Tensor, moments: Tensor, limit: int) -> None:
        self._exact, self._nearest, self._moments = exact, nearest, moments
        self._floor, self._limit = exact.floor(), limit
        self._norm = self.errors(nearest).clamp_min(1e-30)
        self._open = exact != 0

    def errors(self, codes: Tensor) -> Tensor:
        """Mean squared error of each output in squared units of its scale: [groups, outputs]."""
        off = codes - self._exact
        found: Tensor = ((off @ self._moments) * off).sum(-1)
        return found

    def learn(self, options: AdaRound) -> Tensor:
        """Codes of least error; zeros stay zero."""
        low, high = _STRETCH
        rest = (self._exact - self._floor).clamp(1e-4, 1 - 1e-4)
        v = -torch.log((high - low) / (rest - low) - 1)
        v.requires_grad_()
        optimizer = torch.optim.Adam([v], options.learning_rate)
        for index in range(options.iterations):
            optimizer.zero_grad()
            self._loss(v, (index + 1) / options.iterations, options.regularization).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return self._best(_hardness(v.detach()) >= 0.5)

    def _loss(self, v: Tensor, done: float, regularization: float) -> Tensor:
        up = _hardness(v)
        codes = torch.where(self._open, self._floor + up, self._nearest)
        relative = self.errors(codes.clamp(-self._limit, self._limit)) / self._norm
        error: Tensor = relative.sum()
        if done <= _FREE:
            return error
        first, last = _SHARPNESS
        sharpness = last + (first - last) * 0.5 * (
            1 + math.cos(math.pi * (done - _FREE) / (1 - _FREE))
        )
        undecided: Tensor = (1 - (2 * up - 1).abs() ** sharpness).sum() / math.sqrt(up.shape[-1])
        return error + regularization * undecided

    def _best(self, up: Tensor) -> Tensor:
        """The rounding that was learned, in rows where it is better than the nearest."""
        codes = torch.where(self._open, self._floor + up, self._nearest)
        codes = codes.clamp(-self._limit, self._limit)
        better = self.errors(codes) < self.errors(self._nearest)
        return torch.where(better[..., None], codes, self._nearest)


def _hardness(v: Tensor) -> Tensor:
    """h(V), the rectified sigmoid: from 0, rounded down, to 1, rounded up."""
    low, high = _STRETCH
    return (torch.sigmoid(v) * (high - low) + low).clamp(0, 1)


def _portions(graph: Graph, layers: Sequence[Layer]) -> Iterator[list[Layer]]:
    """Layers whose moments fit into memory together, in order."""
    some: list[Layer] = []
    size = 0
    for layer in layers:
        groups, _, inputs = _rows_shape(graph, layer.target)
        needed = 4 * groups * inputs**2
        if some and size + needed > _MOMENT_BYTES:
            yield some
            some, size = [], 0
        some.append(layer)
        size += needed
    if some:
        yield some


def _why_not(graph: Graph, target: Target) -> str:
    if target.kind == "ConvTranspose":
        return "its outputs read a varying number of weights"
    if len(graph.initializers[target.weight].uses()) > 1:
        return "several layers share it"
    inputs = _rows_shape(graph, target)[2]
    if inputs > MAX_INPUTS:
        return f"each output has {inputs:,} inputs, the limit is {MAX_INPUTS:,}"
    return ""


def _rows_shape(graph: Graph, target: Target) -> tuple[int, ...]:
    shape: tuple[int, ...] = _layerwise.as_rows(target, graph.weight(target.weight)).shape
    return shape
