"""Second moments of what layers multiply, gathered from training samples batch by batch.

H = sum over places of x x^T        one matrix for each weight, and for each group of a grouped convolution

Where layers before it are rounded already, a layer is shown beside itself in the float network: x' x^T and x' x'^T are gathered too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from workers.engine import data, forward
from workers.engine.context import Context
from workers.engine.errors import BadModel
from workers.engine.graph import Graph, execute, match, shapes
from workers.engine.passes import _matrix
from workers.engine.passes._matrix import Matrix

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
    """Sums over all places seen, of x that the layer multiplies, and x' that it multiplies in the float network.

    Matrices are [groups, columns, columns], sums [groups, columns], all float64. Where x' is x, they are the same tensors.
    """

    h: torch.Tensor
    """Of x x^T."""
    cross: torch.Tensor
    """Of x' x^T."""
    exact: torch.Tensor
    """Of x' x'^T."""
    total: torch.Tensor
    """Of x."""
    exact_total: torch.Tensor
    """Of x'."""
    magnitude: torch.Tensor
    """Of |x|."""
    places: int = 0

    @classmethod
    def empty(cls, matrix: Matrix, device: torch.device, *, twins: bool) -> Moments:
        """Of no places; `twins`: x' will not be x."""
        groups, columns = matrix.groups, matrix.columns
        square, line = (groups, columns, columns), (groups, columns)
        h, total, magnitude = (
            torch.zeros(shape, dtype=torch.float64, device=device) for shape in (square, line, line)
        )
        if not twins:
            return cls(h, h, h, total, total, magnitude)
        return cls(
            h, torch.zeros_like(h), torch.zeros_like(h), total, torch.zeros_like(total), magnitude
        )

    def add(self, x: torch.Tensor, exact: torch.Tensor | None) -> None:
        """Takes in [groups, places, columns] of x, and of x' where it is not x."""
        x = x.double()
        self.h += x.mT @ x
        self.total += x.sum(1)
        self.magnitude += x.abs().sum(1)
        self.places += x.shape[1]
        if exact is not None:
            exact = exact.double()
            self.cross += exact.mT @ x
            self.exact += exact.mT @ exact
            self.exact_total += exact.sum(1)

    @property
    def mean(self) -> torch.Tensor:
        """Of x: [groups, columns]."""
        return self.total / max(self.places, 1)

    @property
    def exact_mean(self) -> torch.Tensor:
        """Of x': [groups, columns]."""
        return self.exact_total / max(self.places, 1)

    def centred(self) -> Moments:
        """With matrices about the means: what is left to weights where a bias makes good the mean of every output."""
        x, exact = self.mean, self.exact_mean

        def about(sums: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
            return sums - self.places * left.unsqueeze(2) * right.unsqueeze(1)

        return replace(
            self,
            h=about(self.h, x, x),
            cross=about(self.cross, exact, x),
            exact=about(self.exact, exact, exact),
        )

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
    *,
    beside: Graph | None = None,
) -> dict[str, Moments]:
    """Moments for the weight of each layer; layers that share a weight add to one. `beside`: the float network, where `graph` is not it.

    Raises:
        BadModel: an input of a layer is not finite.
    """
    twins, graphs = beside is not None, [graph] if beside is None else [graph, beside]
    found = {
        name: Moments.empty(matrices[name], ctx.device, twins=twins)
        for name in {lay.weight for lay in layers}
    }
    dataset = taken(samples, ctx)
    names = list(dict.fromkeys(_input(layer) for layer in layers))
    rng = ctx.random("places")
    for batches in zip(*(run(of, dataset, names, ctx) for of in graphs), strict=True):
        for layer in layers:
            matrix, values = matrices[layer.weight], [batch[_input(layer)] for _, batch in batches]
            for pieces in zip(*(_pieces(layer, x, matrix) for x in values), strict=True):
                most = math.ceil(MAX_PLACES * len(pieces[0]) / dataset.samples)
                x, *exact = _some(_seen(layer, pieces, matrix), most, rng)
                found[layer.weight].add(x, exact[0] if exact else None)
    return found


def _seen(layer: match.Layer, pieces: Sequence[torch.Tensor], matrix: Matrix) -> list[torch.Tensor]:
    """What the columns are multiplied by, in each network: [groups, places, columns]."""
    finite = (_finite(_input(layer), x) for x in pieces)
    return [_matrix.inputs(layer, x, matrix.shape) for x in finite]


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
            values = module.values(inputs, names)
        yield indices, values


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


def _input(layer: match.Layer) -> str:
    value = layer.node.inputs[0]
    assert value is not None, "a layer multiplies something"
    return value.name or ""


def _pieces(layer: match.Layer, x: torch.Tensor, matrix: Matrix) -> Sequence[torch.Tensor]:
    """A convolution's input sample by sample as far as that keeps what lies under its kernel within `_BATCH_BYTES`."""
    if layer.kind not in ("Conv", "ConvTranspose"):
        return [x]
    spread = math.prod(_matrix.strides(layer)) if layer.kind == "ConvTranspose" else 1
    sample_bytes = 4 * math.prod(x.shape[2:]) * spread * matrix.columns * matrix.groups
    size = max(1, _BATCH_BYTES // sample_bytes)
    return [x[start : start + size] for start in range(0, len(x), size)]


def _some(
    seen: Sequence[torch.Tensor], most: int, rng: np.random.Generator
) -> Sequence[torch.Tensor]:
    """At most so many places of each [groups, places, columns], the same of all."""
    places = seen[0].shape[1]
    if places <= most:
        return seen
    chosen = torch.from_numpy(np.sort(rng.choice(places, most, replace=False)))
    return [x[:, chosen.to(x.device)] for x in seen]


def _finite(name: str, x: torch.Tensor) -> torch.Tensor:
    if not torch.isfinite(x).all():
        raise BadModel(
            f"value '{name}' is not finite on training samples: what a layer sees can't be measured",
            layer=name,
            hint="look for NaN or infinity in the data, or exclude the layers after it",
        )
    return x.float()
