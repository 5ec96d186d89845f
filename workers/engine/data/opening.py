"""Opens a dataset file for a model."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from modelpress.spec.inspection import TensorInfo
from modelpress.spec.job import Images
from workers.engine.data import dataset, directory, images, layout, match, npz, values
from workers.engine.errors import BadData

LABELS = "labels"


def open(path: Path, inputs: Sequence[TensorInfo], rule: Images, work: Path) -> dataset.Dataset:
    """Opens an .npz file or a zip of image folders as samples of these model inputs.

    Arrays are mapped, never copied whole; what must be unpacked goes to a new folder below `work`.

    Raises:
        BadData: the file is damaged, breaks a limit, or its arrays, labels or images don't fit the inputs.
        Unsupported: an input that no dataset can feed.
    """
    scratch = Path(tempfile.mkdtemp(prefix="data-", dir=work))
    with path.open("rb") as file:
        members = directory.read(file)
        if format_of(members) == "npz":
            return _arrays(npz.arrays(file, members, scratch), inputs)
        return _images(file, members, inputs, rule, scratch)


def format_of(members: Sequence[directory.Member]) -> Literal["npz", "images"]:
    """What an archive holds, by the names of its members.

    Raises:
        BadData: neither arrays nor images.
    """
    names = [member.name for member in members if not member.is_folder]
    if any(images.is_image(name) for name in names):
        return "images"
    if any(name.endswith(npz.SUFFIX) for name in names):
        return "npz"
    raise BadData(
        f"the dataset holds neither arrays (.npy) nor images (.png, .jpg, .webp): {names[:8]}",
        hint="save arrays with np.savez, or zip one folder of images per class",
    )


def labels_of(arrays: dict[str, NDArray[np.generic]]) -> NDArray[np.int64] | None:
    """The class numbers among the arrays, checked.

    Raises:
        BadData: they are no class numbers, or not one for each sample.
    """
    if LABELS not in arrays:
        return None
    labels = values.labels(arrays[LABELS])
    for name, array in arrays.items():
        if len(array) != len(labels):
            raise BadData(
                f"there are {len(labels):,} labels, but array {name!r} has {len(array):,} samples",
                layer=LABELS,
                hint="samples are the first dimension of every array, with one label each",
            )
    return labels


def _arrays(
    arrays: dict[str, NDArray[np.generic]], inputs: Sequence[TensorInfo]
) -> dataset.Dataset:
    given = {name: array for name, array in arrays.items() if name != LABELS}
    columns, notes = match.columns(given, inputs)
    used = {name: column.array for name, column in columns}
    labels = labels_of(used | {LABELS: arrays[LABELS]}) if LABELS in arrays else None
    opened = dataset.with_columns(columns, len(columns[0][1].array))
    return replace(opened, labels=labels, notes=tuple(notes))


def _images(
    file: BinaryIO,
    members: Sequence[directory.Member],
    inputs: Sequence[TensorInfo],
    rule: Images,
    scratch: Path,
) -> dataset.Dataset:
    target, found = layout.of(inputs), images.folders(members)
    column = images.column(file, found.members, target, rule, scratch)
    opened = dataset.with_columns([(inputs[0].name, column)], len(found.members))
    return replace(
        opened,
        labels=found.labels,
        classes=found.classes,
        preprocessing=target.rule(rule),
        notes=found.notes,
    )
