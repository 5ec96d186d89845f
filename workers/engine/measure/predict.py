"""Runs an exported file over a dataset, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.engine import data
from workers.engine.errors import EngineError
from workers.engine.measure import session

Array = NDArray[Any]
Outputs = dict[str, Array]
"""By name, one row for each sample."""

BATCH_BYTES = 32 << 20
"""Inputs of one batch."""
_MAX_BATCH = 256


def batches(
    path: Path, dataset: data.Dataset, *, threads: int, raising: type[EngineError]
) -> Iterator[tuple[NDArray[np.int64], Outputs]]:
    """Yields (indices, outputs) over all samples in order; outputs without a row for each sample are left out.

    Where the model fixes the batch, the last one is filled up with its last sample, and the rows of that are dropped.

    Raises:
        EngineError: of class `raising`, when ONNX Runtime can't load or run the file.
    """
    opened = session.open(path, threads=threads, raising=raising)
    size = opened.fixed_batch or max(1, min(_MAX_BATCH, BATCH_BYTES // dataset.sample_bytes))
    for indices, feeds in dataset.batches(size):
        rows = opened.fixed_batch or len(indices)
        answers = opened.run({name: _fill(feeds[name], rows) for name in opened.inputs})
        yield (
            indices,
            {
                name: answer[: len(indices)]
                for name, answer in zip(opened.outputs, answers, strict=True)
                if _has_rows(answer, rows)
            },
        )


def _fill(array: Array, rows: int) -> Array:
    """Repeats the last sample until there are so many."""
    if len(array) == rows:
        return array
    return np.concatenate([array, np.repeat(array[-1:], rows - len(array), axis=0)])


def _has_rows(answer: object, rows: int) -> bool:
    """Whether an answer is an array of numbers with so many rows; others are sequences, maps or text."""
    return (
        isinstance(answer, np.ndarray)
        and answer.ndim > 0
        and len(answer) == rows
        and answer.dtype.kind in "fiub"
    )
