"""How well an exported file predicts: ONNX Runtime over the eval split, batch by batch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from modelpress.spec.report import Quality
from workers.engine import data
from workers.engine.errors import BadModel, Diverged, ExportMismatch, Unsupported
from workers.engine.measure import predict
from workers.engine.measure.predict import Array, Outputs

MAX_CLASSES = 1000
"""Models with more classes get no accuracy for each class."""

_ROWS = 256


@dataclass(frozen=True)
class Reference:
    """The uploaded model's outputs on the eval split, on disk: by name, [samples, ...]."""

    outputs: Mapping[str, Array]

    @property
    def scores(self) -> str | None:
        """The output that scores classes: the first float [samples, classes]; null where there is none."""
        for name, output in self.outputs.items():
            if output.ndim == 2 and output.dtype.kind == "f":
                return name
        return None

    @cached_property
    def threshold(self) -> float:
        """Of scores [samples, 1], the one above which class 1 is meant: 0.5 if they look like probabilities, else 0."""
        scores = self.outputs[self.scores or ""]
        return 0.5 if scores.min() >= 0 and scores.max() <= 1 else 0.0

    def top_class(self, scores: Array) -> NDArray[np.int64]:
        """Class of the highest score [N, classes], the first of equals; of [N, 1] by the threshold."""
        if scores.shape[1] == 1:
            return np.asarray(scores[:, 0] > self.threshold, np.int64)
        return np.asarray(scores.argmax(axis=1))


def silent(fraction: float) -> None:
    """Tells nobody."""


def baseline(
    path: Path,
    dataset: data.Dataset,
    folder: Path,
    *,
    threads: int,
    report: Callable[[float], None] = silent,
) -> tuple[Quality, Reference]:
    """Measures the uploaded model and keeps its outputs below `folder`, which must be new or empty.

    Raises:
        BadData: a label that is none of the model's classes.
        BadModel: ONNX Runtime can't run the file, or it answers NaN.
        Unsupported: no output has one row for each sample.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept: Outputs = {}
    for indices, outputs in predict.batches(path, dataset, threads=threads, raising=BadModel):
        if indices[0] == 0:
            kept = _places(outputs, dataset.samples, folder)
        kept = {name: place for name, place in kept.items() if _fits(outputs.get(name), place)}
        for name, place in kept.items():
            _check_numbers(outputs[name], name, indices)
            place[indices] = outputs[name]
        report((int(indices[-1]) + 1) / dataset.samples)
    if not kept:
        raise Unsupported(
            "no output of the model has one row for each sample, so that results can't be compared",
            hint="export the model with a batch dimension first in its outputs",
        )
    reference = Reference(kept)
    return compare(reference, reference, dataset.labels), reference


def measure(
    path: Path,
    dataset: data.Dataset,
    reference: Reference,
    *,
    threads: int,
    report: Callable[[float], None] = silent,
) -> Quality:
    """Measures an exported file against the uploaded model's outputs on the same samples.

    Raises:
        ExportMismatch: ONNX Runtime can't run the file, or its outputs have other names or shapes.
        Diverged: it answers NaN, which the uploaded model does not.
    """
    tally = _Tally(reference, dataset.labels)
    for indices, outputs in predict.batches(path, dataset, threads=threads, raising=ExportMismatch):
        _check_still_numbers(outputs, reference, indices)
        tally.add(indices, outputs)
        report((int(indices[-1]) + 1) / dataset.samples)
    return tally.quality()


def compare(outputs: Reference, reference: Reference, labels: NDArray[np.int64] | None) -> Quality:
    """The same for outputs that are already on disk."""
    tally = _Tally(reference, labels)
    samples = len(next(iter(reference.outputs.values())))
    for start in range(0, samples, _ROWS):
        indices = np.arange(start, min(start + _ROWS, samples))
        tally.add(indices, {name: output[indices] for name, output in outputs.outputs.items()})
    return tally.quality()


class _Tally:
    """Sums over the samples seen so far."""

    def __init__(self, reference: Reference, labels: NDArray[np.int64] | None) -> None:
        self.reference, self.labels = reference, labels
        self.samples = self.agreed = 0
        self.largest = self.difference = self.norm = 0.0
        self.classes = self._classes()
        self.seen = np.zeros(self.classes, np.int64)
        self.correct = np.zeros(self.classes, np.int64)
        if labels is not None and self.classes:
            data.check_classes(labels, self.classes)

    def add(self, indices: NDArray[np.int64], outputs: Outputs) -> None:
        """Adds samples `indices`, whose outputs are given."""
        self.samples += len(indices)
        for name, kept in self.reference.outputs.items():
            self._add_difference(kept[indices], outputs.get(name), name)
        scores = self.reference.scores
        if scores is not None:
            self._add_classes(indices, outputs[scores], self.reference.outputs[scores][indices])

    def quality(self) -> Quality:
        """The figures over all samples added."""
        has_classes, has_labels = self.classes > 0, self.labels is not None
        accurate = has_classes and has_labels
        relative = np.sqrt(self.difference) / np.sqrt(self.norm) if self.norm else 0.0
        return Quality(
            samples=self.samples,
            accuracy=float(self.correct.sum() / self.samples) if accurate else None,
            agreement=self.agreed / self.samples if has_classes else None,
            max_abs_difference=_finite(self.largest),
            relative_l2_difference=_finite(float(relative)),
            class_accuracy=self._class_accuracy() if accurate else (),
        )

    def _classes(self) -> int:
        name = self.reference.scores
        return 0 if name is None else max(2, self.reference.outputs[name].shape[1])

    def _add_difference(self, kept: Array, output: Array | None, name: str) -> None:
        if output is None or output.shape != kept.shape:
            shape = "missing" if output is None else f"of shape {list(output.shape)}"
            raise ExportMismatch(
                f"output {name!r} of the exported file is {shape}, the uploaded model's is {list(kept.shape)}",
                layer=name,
            )
        wanted = kept.astype(np.float64)
        with np.errstate(invalid="ignore"):
            difference = np.where(output == kept, 0.0, output.astype(np.float64) - wanted)
        difference = np.nan_to_num(difference, nan=np.inf)
        self.largest = max(self.largest, float(np.abs(difference).max(initial=0.0)))
        with np.errstate(over="ignore"):
            self.difference += float(np.square(difference).sum())
            self.norm += float(np.square(wanted[np.isfinite(wanted)]).sum())

    def _add_classes(
        self,
        indices: NDArray[np.int64],
        scores: Array,
        kept: Array,
    ) -> None:
        top = self.reference.top_class(scores)
        self.agreed += int((top == self.reference.top_class(kept)).sum())
        if self.labels is None:
            return
        labels = self.labels[indices]
        self.seen += np.bincount(labels, minlength=self.classes)
        self.correct += np.bincount(labels[top == labels], minlength=self.classes)

    def _class_accuracy(self) -> tuple[float | None, ...]:
        if self.classes > MAX_CLASSES:
            return ()
        return tuple(
            float(correct / seen) if seen else None
            for correct, seen in zip(self.correct, self.seen, strict=True)
        )


def _places(outputs: Outputs, samples: int, folder: Path) -> Outputs:
    """Room on disk for each output of all samples."""
    return {
        name: open_memmap(folder / f"{index}.npy", "w+", o.dtype, (samples, *o.shape[1:]))
        for index, (name, o) in enumerate(outputs.items())
    }


def _fits(output: Array | None, place: Array) -> bool:
    return output is not None and output.shape[1:] == place.shape[1:]


def _check_numbers(output: Array, name: str, indices: NDArray[np.int64]) -> None:
    row = _row_of_nan(output)
    if row is not None:
        raise BadModel(
            f"the uploaded model answers NaN in output {name!r} for eval sample {int(indices[row])}",
            layer=name,
            hint="check the weights, and that the data is scaled as in training",
        )


def _check_still_numbers(
    outputs: Outputs, reference: Reference, indices: NDArray[np.int64]
) -> None:
    for name in outputs.keys() & reference.outputs.keys():
        row = _row_of_nan(outputs[name])
        if row is not None:
            raise Diverged(
                f"after this step the model answers NaN in output {name!r} for eval sample {int(indices[row])}; "
                "the uploaded model does not",
                layer=name,
                hint="where the step trains, lower learning_rate; else ask for less, or exclude layers",
            )


def _row_of_nan(output: Array) -> int | None:
    """The first row that holds one."""
    if output.dtype.kind != "f" or not np.isnan(output).any():
        return None
    return int(np.argwhere(np.isnan(output))[0][0])


def _finite(value: float) -> float:
    """JSON holds no infinity; the largest float stands for it."""
    return min(value, sys.float_info.max)
