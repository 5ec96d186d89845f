"""A dataset as the engine sees it: rows of mapped arrays, by input name, with or without labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from workers.engine.data import choice
from workers.engine.errors import BadData

Labels = NDArray[np.int64]
Rows = NDArray[np.int64]


class Column(Protocol):
    """The samples of one input, on disk."""

    @property
    def row_bytes(self) -> int:
        """Bytes of one sample as `read` answers it."""

    def read(self, rows: Rows) -> NDArray[np.generic]:
        """Copies these samples into memory: [len(rows), ...], contiguous, as the model's input asks."""


@dataclass(frozen=True)
class ArrayColumn:
    """A mapped array [N, ...], cast to `dtype` as it is read."""

    array: NDArray[np.generic]
    dtype: np.dtype[np.generic]

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * (self.array.size // len(self.array))

    def read(self, rows: Rows) -> NDArray[np.generic]:
        return np.ascontiguousarray(self.array[rows], dtype=self.dtype)


@dataclass(frozen=True)
class Dataset:
    """Samples of a dataset. Subsets share the arrays; only batches are ever copied into memory."""

    columns: Mapping[str, Column]  # by input name, in the order of the model's inputs
    rows: Rows  # which samples of the columns, in this order
    labels: Labels | None = None  # [N], one for each of `rows`
    classes: tuple[str, ...] = ()  # class names in label order, where the file names them
    preprocessing: str = ""
    notes: tuple[str, ...] = ()

    @property
    def samples(self) -> int:
        return len(self.rows)

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(self.columns)

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample in a batch, all inputs together."""
        return sum(column.row_bytes for column in self.columns.values())

    def batch(self, indices: ArrayLike) -> dict[str, NDArray[np.generic]]:
        """Copies samples `indices` of this dataset into memory, by input name: [len(indices), ...]."""
        rows = self.rows[np.asarray(indices, dtype=np.int64)]
        return {name: column.read(rows) for name, column in self.columns.items()}

    def batches(self, size: int) -> Iterator[tuple[Rows, dict[str, NDArray[np.generic]]]]:
        """Yields (indices, batch) over all samples in order; the last batch may be smaller."""
        for start in range(0, self.samples, size):
            indices = np.arange(start, min(start + size, self.samples))
            yield indices, self.batch(indices)

    def subset(self, indices: ArrayLike) -> Dataset:
        """The dataset of samples `indices`, in that order."""
        chosen = np.asarray(indices, dtype=np.int64)
        labels = None if self.labels is None else self.labels[chosen]
        return replace(self, rows=self.rows[chosen], labels=labels)

    def take(self, n: int, seed: int) -> Dataset:
        """Up to `n` samples, chosen by the seed and by label where there are labels, in the order of the dataset."""
        if n >= self.samples:
            return self
        return self.subset(choice.choose(self.samples, n, self.labels, seed))


def split(dataset: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset, str]:
    """Splits off `fraction` of the samples for measuring. Answers (train, eval, how it was done).

    Raises:
        BadData: fewer than two samples.
    """
    n = choice.held_out(dataset.samples, fraction)
    chosen = choice.choose(dataset.samples, n, dataset.labels, seed)
    kept = np.setdiff1d(np.arange(dataset.samples), chosen)
    how = "stratified by label" if dataset.labels is not None else "at random"
    description = (
        f"{n:,} of {dataset.samples:,} samples ({fraction:.0%}) held out for measuring, "
        f"{how}, seed {seed}"
    )
    return dataset.subset(kept), dataset.subset(chosen), description


def check_same_classes(train: Dataset, eval: Dataset) -> None:
    """Checks that a label means the same in both.

    Raises:
        BadData: both name their classes, and the names differ.
    """
    if train.classes and eval.classes and train.classes != eval.classes:
        differing = sorted(set(train.classes) ^ set(eval.classes))
        raise BadData(
            f"the train dataset has {len(train.classes)} class folders, the eval dataset {len(eval.classes)}; "
            f"they differ in {differing[:8]}, so that labels would mean different things",
            layer="labels",
            hint="give both datasets the same folders",
        )


def with_columns(columns: Sequence[tuple[str, Column]], samples: int) -> Dataset:
    """All samples of these columns, without labels."""
    return Dataset(columns=dict(columns), rows=np.arange(samples, dtype=np.int64))
