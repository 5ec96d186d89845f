"""One run of the calibration samples through a graph, from which everything that wants to see values takes what it needs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from workers.engine.context import Context
from workers.engine.data import Dataset
from workers.engine.errors import BadModel
from workers.engine.graph import Graph, execute, shapes

_BATCH = 32
_BATCH_BYTES = 256 << 20

Values = npt.NDArray[np.float32]


class Gatherer(Protocol):
    """Takes in values batch by batch and keeps what it needs of them, in memory that does not grow."""

    def add(self, values: Values) -> None:
        """Takes in one batch of finite values."""


def run(
    graph: Graph,
    wanted: Sequence[tuple[str, Gatherer]],
    samples: Dataset,
    ctx: Context,
    message: str = "calibrating",
) -> None:
    """Shows each value, by name, to its gatherers. A graph of a fixed batch sees the last sample more than once.

    Raises:
        BadModel: a value is not finite.
    """
    names = list(dict.fromkeys(name for name, _ in wanted))
    module = execute.as_module(graph).to(ctx.device).eval()
    fixed = _fixed_batch(graph)
    size = fixed or _free_batch(graph, names, samples)
    for indices in _batches(samples.samples, size, full=fixed is not None):
        batch = samples.batch(indices)
        inputs = [torch.from_numpy(batch[v.name or ""]).to(ctx.device) for v in graph.inputs]
        with torch.no_grad():
            seen = module.values(inputs, names)
        values = {name: _finite(name, seen[name].float().cpu().numpy()) for name in names}
        for name, gatherer in wanted:
            gatherer.add(values[name])
        done = (int(indices[-1]) + 1) / samples.samples
        ctx.report(done, f"{message} on {samples.samples} samples")


def _fixed_batch(graph: Graph) -> int | None:
    """The number of samples that the inputs declare; None where it is free."""
    sizes = [value.shape[0] for value in graph.inputs if value.shape]
    return next((size for size in sizes if isinstance(size, int)), None)


def _free_batch(graph: Graph, names: Sequence[str], samples: Dataset) -> int:
    """As many samples as keep the values that are looked at, all at one time, within `_BATCH_BYTES`."""
    given = {name: array.shape for name, array in samples.batch([0]).items()}
    inferred = shapes.infer(graph, shapes.example_shapes(graph, given=given))
    sample_bytes = sum(4 * math.prod(inferred[name]) for name in names if name in inferred)
    return max(1, min(_BATCH, _BATCH_BYTES // max(sample_bytes, 1)))


def _batches(samples: int, size: int, *, full: bool) -> Iterator[npt.NDArray[np.int64]]:
    """Indices of all samples in batches; a last one that must be full repeats the last sample."""
    for start in range(0, samples, size):
        indices = np.arange(start, start + size)
        yield indices.clip(max=samples - 1) if full else indices[indices < samples]


def _finite(name: str, values: Values) -> Values:
    if not np.isfinite(values).all():
        raise BadModel(
            f"value '{name}' is not finite on calibration samples: no range can be taken",
            layer=name,
            hint="look for NaN or infinity in the data, or exclude the layers before it",
        )
    return values
