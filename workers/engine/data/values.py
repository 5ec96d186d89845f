"""Checks the values of mapped arrays, a chunk at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from workers.engine.data import limits
from workers.engine.errors import BadData

_CHUNK_BYTES = 8 * limits.MIB
_LABEL_HINT = "labels are class numbers: integers from 0, one for each sample"


def check_cast(array: NDArray[np.generic], dtype: np.dtype[np.generic], name: str) -> None:
    """Checks that every value of `array` [N, ...] survives the cast to `dtype`.

    Raises:
        BadData: NaN, infinity, or a value outside the range of `dtype`; names the first sample that has one.
    """
    if dtype.kind == "f" and array.dtype.kind == "f":
        _check_finite(array, dtype, name)
    elif dtype.kind in "iu" and not np.can_cast(array.dtype, dtype):
        _check_range(array, dtype, name)


def labels(array: NDArray[np.generic]) -> NDArray[np.int64]:
    """Class numbers [N] int64 from an array [N] or [N, 1].

    Raises:
        BadData: no integers, another shape, or a number that is negative or absurd.
    """
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise _labels_refused(f"their shape is {list(array.shape)}, not [samples]")
    if array.dtype.kind not in "iub":
        raise _labels_refused(f"they are {array.dtype}; use .astype('int64')")
    lowest, highest = int(array.min()), int(array.max())
    if lowest < 0 or highest >= limits.MAX_CLASSES:
        wrong = lowest if lowest < 0 else highest
        sample = int(np.argmax(array == wrong))
        raise _labels_refused(
            f"sample {sample} has label {wrong}, outside 0 to {limits.MAX_CLASSES - 1:,}"
        )
    return array.astype(np.int64)


def check_classes(labels: NDArray[np.int64], classes: int) -> None:
    """Checks labels against the number of classes that the model tells apart.

    Raises:
        BadData: a label that is none of them.
    """
    highest = int(labels.max())
    if highest >= classes:
        raise BadData(
            f"sample {int(np.argmax(labels))} has label {highest}, but the model's output has {classes} classes: "
            f"labels go from 0 to {classes - 1}",
            layer="labels",
            hint="number the classes from 0 in the order of the model's outputs",
        )


def _check_finite(array: NDArray[np.generic], dtype: np.dtype[np.generic], name: str) -> None:
    for start, chunk in _chunks(array):
        with np.errstate(over="ignore"):
            finite = np.isfinite(chunk.astype(dtype, copy=False))
        if not finite.all():
            at = np.unravel_index(int(np.argmin(finite)), finite.shape)
            raise BadData(
                f"array {name!r} holds {chunk[at]} in sample {start + int(at[0])}; "
                f"every value must be a finite {dtype}",
                layer=name,
                hint="drop or fill such samples before saving",
            )


def _check_range(array: NDArray[np.generic], dtype: np.dtype[np.generic], name: str) -> None:
    info = np.iinfo(dtype.name)
    for start, chunk in _chunks(array):
        for wrong in (int(chunk.min()), int(chunk.max())):
            if not info.min <= wrong <= info.max:
                sample = start + int(np.argwhere(chunk == wrong)[0][0])
                raise BadData(
                    f"array {name!r} holds {wrong} in sample {sample}, outside the range of the model's {dtype}",
                    layer=name,
                    hint="check how the array was encoded",
                )


def _chunks(array: NDArray[np.generic]) -> Iterator[tuple[int, NDArray[np.generic]]]:
    """Yields (first sample, samples) of about `_CHUNK_BYTES` each."""
    rows = max(1, _CHUNK_BYTES // max(1, array.nbytes // len(array)))
    for start in range(0, len(array), rows):
        yield start, array[start : start + rows]


def _labels_refused(reason: str) -> BadData:
    return BadData(f"array 'labels' is refused: {reason}", layer="labels", hint=_LABEL_HINT)
