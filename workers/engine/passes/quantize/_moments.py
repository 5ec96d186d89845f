"""Second moments of what layers multiply, gathered from training samples batch by batch.

H = sum over places of x x^T        one matrix for each weight, and for each group of a grouped convolution
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from workers.engine import data, forward
from workers.engine.context import Context
from workers.engine.errors import BadModel
from workers.engine.graph import Graph, execute, match, shapes
from workers.engine.passes.quantize import _matrix
from workers.engine.passes.quantize._matrix import Matrix

MAX_COLUMNS = 4096
"""A wider layer's matrix, and its inverse, would take more than 128 MiB each."""
MAX_PLACES = 1 << 17
"""Of one layer that are looked at: a convolution sees each sample at many places, of which a seeded choice is enough."""
_BATCH = 32
_BATCH_BYTES = 256 << 20
_BYTES = 512 << 20
"""Of the matrices that are gathered in one pass over the samples."""


@dataclass
class Moments:
    """Sums over all places seen."""

    h: torch.Tensor
    """[groups, columns, columns] float64."""
    magnitude: torch.Tensor
    """[groups, columns] float64: of |x|."""
    places: int = 0

    @property
    def size(self) -> torch.Tensor:
        """Mean of |x| of each column: [groups, columns]."""
        return self.magnitude / max(self.places, 1)


def passes(names: Sequence[str], matrices: Mapping[str, Matrix]) -> Iterator[list[str]]:
    """Weights whose moments fit into memory together, in this order."""
    held: list[str] = []
    total = 0
    for name in names:
        matrix = matrices[name]
        needed = 8 * matrix.groups * matrix.columns**2
        if held and total + needed > _BYTES:
            yield held
            held, total = [], 0
        held, total = [*held, name], total + needed
    if held:
        yield held


def gather(
    graph: Graph,
    layers: Sequence[match.Layer],
    matrices: Mapping[str, Matrix],
    samples: int,
    ctx: Context,
) -> dict[str, Moments]:
    """Moments for the weight of each layer; layers that share a weight add to one.

    Raises:
        BadModel: an input of a layer is not finite.
    """
    found = {name: _empty(matrices[name], ctx.device) for name in {lay.weight for lay in layers}}
    dataset = taken(samples, ctx)
    names = list(dict.fromkeys(_input(layer) for layer in layers))
    rng = ctx.random("places")
    for _, values in run(graph, dataset, names, ctx):
        for layer in layers:
            matrix = matrices[layer.weight]
            for x in _pieces(layer, values[_input(layer)], matrix):
                seen = _matrix.inputs(layer, _finite(_input(layer), x), matrix.shape)
                most = math.ceil(MAX_PLACES * len(x) / dataset.samples)
                _add(found[layer.weight], _some(seen, most, rng))
    return found


def taken(samples: int, ctx: Context) -> data.Dataset:
    """Some of the training samples, by the seed."""
    assert ctx.train is not None, "the recipe was checked: what is measured has data"
    return ctx.train.take(samples, ctx.seed)


def run(
    graph: Graph, dataset: data.Dataset, names: Sequence[str], ctx: Context
) -> Iterator[tuple[npt.NDArray[np.int64], dict[str, torch.Tensor]]]:
    """Values of these names for all samples, in batches; where the model fixes the batch, the last is filled up."""
    module = execute.as_module(graph).to(ctx.device).eval()
    for indices, inputs in feeds(graph, dataset, ctx, names):
        with torch.no_grad():
            yield indices, module.values(inputs, names)


def feeds(
    graph: Graph, dataset: data.Dataset, ctx: Context, names: Sequence[str] = ()
) -> Iterator[tuple[npt.NDArray[np.int64], list[torch.Tensor]]]:
    """Inputs of all samples in batches, small enough for values of these names to be kept; where the model fixes the batch, the last is filled up."""
    fixed = forward.fixed_batch(graph, dataset)
    for indices in _batches(dataset.samples, fixed or _free_batch(graph, names, dataset), fixed):
        batch = dataset.batch(indices)
        yield indices, [torch.from_numpy(batch[v.name or ""]).to(ctx.device) for v in graph.inputs]


def _batches(samples: int, size: int, fixed: int | None) -> Iterator[npt.NDArray[np.int64]]:
    """Indices of all samples; a batch of a fixed size repeats the last sample where there are no more."""
    for start in range(0, samples, size):
        indices = np.arange(start, start + size)
        yield indices.clip(max=samples - 1) if fixed else indices[indices < samples]


def _free_batch(graph: Graph, names: Sequence[str], samples: data.Dataset) -> int:
    given = {name: array.shape for name, array in samples.batch([0]).items()}
    inferred = shapes.infer(graph, shapes.example_shapes(graph, given=given))
    sample_bytes = sum(4 * math.prod(inferred[name]) for name in names if name in inferred)
    return max(1, min(_BATCH, _BATCH_BYTES // max(sample_bytes, 1)))


def _empty(matrix: Matrix, device: torch.device) -> Moments:
    groups, columns = matrix.groups, matrix.columns
    kind = torch.float64
    return Moments(
        torch.zeros(groups, columns, columns, dtype=kind, device=device),
        torch.zeros(groups, columns, dtype=kind, device=device),
    )


def _input(layer: match.Layer) -> str:
    value = layer.node.inputs[0]
    assert value is not None, "a layer multiplies something"
    return value.name or ""


def _pieces(layer: match.Layer, x: torch.Tensor, matrix: Matrix) -> Sequence[torch.Tensor]:
    """A convolution's input sample by sample as far as that keeps what lies under its kernel within `_BATCH_BYTES`."""
    if layer.kind != "Conv":
        return [x]
    sample_bytes = 4 * math.prod(x.shape[2:]) * matrix.columns * matrix.groups
    size = max(1, _BATCH_BYTES // sample_bytes)
    return [x[start : start + size] for start in range(0, len(x), size)]


def _some(seen: torch.Tensor, most: int, rng: np.random.Generator) -> torch.Tensor:
    """At most so many places of [groups, places, columns]."""
    if seen.shape[1] <= most:
        return seen
    chosen = np.sort(rng.choice(seen.shape[1], most, replace=False))
    return seen[:, torch.from_numpy(chosen).to(seen.device)]


def _add(moments: Moments, seen: torch.Tensor) -> None:
    wide = seen.double()
    moments.h += wide.mT @ wide
    moments.magnitude += wide.abs().sum(1)
    moments.places += wide.shape[1]


def _finite(name: str, x: torch.Tensor) -> torch.Tensor:
    if not torch.isfinite(x).all():
        raise BadModel(
            f"value '{name}' is not finite on training samples: what a layer sees can't be measured",
            layer=name,
            hint="look for NaN or infinity in the data, or exclude the layers after it",
        )
    return x.float()
