"""Looks into a dataset before any model is known."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from modelpress.spec.inspection import DatasetInspection, TensorInfo
from workers.engine.data import directory, images, layout, npz, opening, values
from workers.engine.errors import BadData

_RARE = 10


def inspect(path: Path, work: Path) -> DatasetInspection:
    """Reads a dataset whole, checks what can be checked without a model, and says what it holds.

    Raises:
        BadData: the file is damaged, breaks a limit, or holds values or labels that no model could use.
    """
    scratch = Path(tempfile.mkdtemp(prefix="data-", dir=work))
    with path.open("rb") as file:
        members = directory.read(file)
        if opening.format_of(members) == "npz":
            return _arrays(npz.arrays(file, members, scratch))
        return _images(file, images.folders(members))


def _arrays(arrays: dict[str, NDArray[np.generic]]) -> DatasetInspection:
    labels = opening.labels_of(arrays)
    inputs = {name: array for name, array in arrays.items() if name != opening.LABELS}
    if not inputs:
        raise BadData(
            "the dataset holds labels and nothing else",
            hint="add an array for each input of the model, samples along its first dimension",
        )
    _check_samples(inputs)
    for name, array in inputs.items():
        values.check_cast(array, array.dtype, name)
    histogram = () if labels is None else tuple(np.bincount(labels).tolist())
    return DatasetInspection(
        format="npz",
        samples=len(next(iter(inputs.values()))),
        arrays=tuple(_info(name, array) for name, array in inputs.items()),
        labels=None if labels is None else _info(opening.LABELS, arrays[opening.LABELS]),
        classes=tuple(str(label) for label in range(len(histogram))),
        histogram=histogram,
        notes=_notes(histogram),
    )


def _images(file: BinaryIO, found: images.Folders) -> DatasetInspection:
    headers = [images.header(file, member) for member in found.members]
    histogram = () if found.labels is None else tuple(np.bincount(found.labels).tolist())
    shape = (
        len(headers),
        _common([height for _, height, _ in headers]),
        _common([width for width, _, _ in headers]),
        _common([_channels(mode) for _, _, mode in headers]),
    )
    labels = TensorInfo(name=opening.LABELS, dtype="int64", shape=(len(headers),))
    return DatasetInspection(
        format="images",
        samples=len(headers),
        arrays=(TensorInfo(name="images", dtype="uint8", shape=shape),),
        labels=None if found.labels is None else labels,
        classes=found.classes,
        histogram=histogram,
        notes=(*found.notes, *_notes(histogram)),
    )


def _check_samples(arrays: Mapping[str, NDArray[np.generic]]) -> None:
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) > 1:
        raise BadData(
            f"the arrays differ in their number of samples: {counts}",
            hint="samples are the first dimension of every array",
        )


def _notes(histogram: Sequence[int]) -> tuple[str, ...]:
    absent = [str(label) for label, count in enumerate(histogram) if count == 0]
    rare = [str(label) for label, count in enumerate(histogram) if 0 < count < _RARE]
    notes = []
    if absent:
        notes.append(f"labels without samples: {', '.join(absent[:20])} ({len(absent):,} in all)")
    if rare:
        notes.append(
            f"labels with fewer than {_RARE} samples: {', '.join(rare[:20])} ({len(rare):,} in all)"
        )
    return tuple(notes)


def _info(name: str, array: NDArray[np.generic]) -> TensorInfo:
    return TensorInfo(name=name, dtype=array.dtype.name, shape=array.shape)


def _common(sizes: Sequence[int | None]) -> int | None:
    """The size that all share, or null."""
    return sizes[0] if len(set(sizes)) == 1 else None


def _channels(mode: str) -> int | None:
    return next((channels for channels, name in layout.MODES.items() if name == mode), None)
