"""Measures each stage of a job the same way: on the file it exported, beside the uploaded one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from modelpress.spec.report import Latency, Size, SizeParts, Stage
from workers.engine import context, data
from workers.engine.data import dataset
from workers.engine.errors import EngineError
from workers.engine.graph import Graph, shapes
from workers.engine.measure import alone, bound, cost, latency, parts, quality, size
from workers.engine.measure.quality import Reference
from workers.engine.verdict import FASTER_BELOW, SMALLER_BELOW

RANDOM_SAMPLES = 64
LATENCY_BUDGET_S = latency.BUDGET_S

NO_DATA = (
    f"the job has no data: agreement and differences were measured on {RANDOM_SAMPLES} seeded random inputs, "
    "which say nothing about accuracy"
)
NO_LABELS = "the data has no labels: agreement with the uploaded model stands in for accuracy"


def silent(fraction: float, message: str) -> None:
    """Tells nobody."""


@dataclass(frozen=True)
class Performed:
    """A step that was applied and exported."""

    kind: str
    index: int
    seconds: float
    coverage: context.Coverage
    analyzes: bool = False
    """Whether it left the model as it was."""


@dataclass(frozen=True)
class Gauge:
    """The uploaded file, the samples every stage is measured on, and the uploaded model's answers to them."""

    original: Path
    samples: data.Dataset
    shapes: Mapping[str, tuple[int, ...]]
    """Of the inputs, for the batch that latency is measured with: 1, or what the model fixes."""
    fixed: bool
    """Whether the model fixes the batch."""
    threads: int
    work: Path
    notes: tuple[str, ...] = ()
    reference: Reference = field(default_factory=lambda: Reference({}))

    @classmethod
    def open(
        cls,
        original: Path,
        source: Graph,
        held: data.Dataset | None,
        *,
        threads: int,
        seed: int,
        work: Path,
    ) -> Gauge:
        """A gauge on the eval split; on random inputs where there is none.

        Raises:
            Unsupported: an axis of an input has no fixed size and no data gives it one.
        """
        if held is None:
            samples, notes = _random(source, seed), [NO_DATA]
        else:
            samples, notes = held, [*held.notes, *([] if held.labels is not None else [NO_LABELS])]
        given = {name: array.shape for name, array in samples.batch([0]).items()}
        return cls(
            original=original,
            samples=samples,
            shapes=shapes.example_shapes(source, given=given),
            fixed=any(isinstance(v.shape[0], int) for v in source.inputs if v.shape),
            threads=threads,
            work=work,
            notes=tuple(notes),
        )

    def baseline(self, source: Graph, report: context.Report = silent) -> tuple[Gauge, Stage]:
        """Measures the uploaded file; answers the gauge for the stages that follow.

        Raises:
            BadModel: ONNX Runtime can't run the file, or it answers NaN.
            BadData: a label is none of the model's classes.
        """
        folder = self.work / "baseline"
        tell = _only_fraction(report, "measuring the uploaded model")
        measured, reference = quality.baseline(
            self.original, self.samples, folder, threads=self.threads, report=tell
        )
        stage = Stage(
            name="baseline",
            step=None,
            seconds=0.0,
            quality=measured,
            size=_size(self.original, source),
            latency=self._latency(self.original),
            cost=cost.measure(source, self.shapes),
            notes=self.notes,
        )
        return replace(self, reference=reference), stage

    def measure(
        self,
        path: Path,
        graph: Graph,
        done: Performed,
        before: Stage,
        report: context.Report = silent,
    ) -> Stage:
        """Measures the file that a step exported; notes what the step did not improve on the stage `before`.

        Raises:
            ExportMismatch: ONNX Runtime can't run it, or its outputs have other names or shapes.
        """
        tell = _only_fraction(report, f"measuring {done.kind}")
        stage = Stage(
            name=done.kind,
            step=done.index,
            seconds=done.seconds,
            quality=quality.measure(
                path, self.samples, self.reference, threads=self.threads, report=tell
            ),
            size=_size(path, graph, done.coverage.coded),
            latency=self._latency(path),
            latency_packed=done.coverage.latency_packed,
            cost=cost.measure(graph, self.shapes),
            touched=tuple(done.coverage.touched),
            skipped=tuple(done.coverage.skipped),
            notes=tuple(done.coverage.notes),
            controls=tuple(done.coverage.controls),
            curves=tuple(done.coverage.curves),
        )
        if stage.size.coded_bytes is not None or done.analyzes:
            return stage
        found = *_shortfalls(before, stage), *bound.explain(before, stage, graph, self.shapes)
        return stage.model_copy(update={"notes": (*stage.notes, *found)})

    def explain(
        self, stage: Stage, changed: alone.Changed, report: context.Report = silent
    ) -> Stage:
        """The stage with what its step did to the network before it, and what each layer does alone."""
        bounds = alone.Bounds.of(stage.cost.macs, stage.size.file_bytes, self.samples.samples)
        tell = _only_fraction(report, f"measuring each layer of {stage.name} alone")
        try:
            effect, layers = alone.measure(
                changed, self.samples, self.work, bounds=bounds, threads=self.threads, report=tell
            )
        except EngineError as error:
            note = f"its layers were not measured alone: {error.message}"
            return stage.model_copy(update={"notes": (*stage.notes, note)})
        return stage.model_copy(update={"effect": effect, "layers": layers})

    @property
    def fixed_batch(self) -> int | None:
        """The number of samples that the model fixes for every run; None where it is free."""
        return self.batch if self.fixed else None

    @property
    def batch(self) -> int:
        """Samples of one run: 1, or what the model fixes."""
        return max((shape[0] for shape in self.shapes.values() if shape), default=1)

    def check_labels(self, train: data.Dataset) -> None:
        """Checks the labels of the train split against the model's classes.

        Raises:
            BadData: a label is none of them.
        """
        scores = self.reference.scores
        if train.labels is not None and scores is not None:
            data.check_classes(train.labels, max(2, self.reference.outputs[scores].shape[1]))

    def _latency(self, path: Path) -> Latency:
        feeds = latency.sample_feeds(self.samples, self.batch)
        return latency.measure(
            path, self.original, feeds, threads=self.threads, budget_s=LATENCY_BUDGET_S
        )


def _size(path: Path, graph: Graph, coded: SizeParts | None = None) -> Size:
    """What a file weighs, and what its bytes are for; `coded`: the same of the packed file beside it."""
    found = size.measure(path, graph)
    return found.model_copy(
        update={
            "file_parts": parts.measure(graph, found.file_bytes),
            "coded_parts": coded,
            "coded_bytes": None if coded is None else sum(coded.model_dump().values()),
        }
    )


def _random(source: Graph, seed: int) -> data.Dataset:
    """Seeded inputs of the model's signature."""
    batch = shapes.example_shapes(source)
    wanted = {name: (RANDOM_SAMPLES, *shape[1:]) for name, shape in batch.items()}
    dtypes = {v.name or "": str(v.dtype.numpy()) for v in source.inputs if v.dtype is not None}
    feeds = latency.random_feeds(wanted, dtypes, seed)
    columns = [(name, dataset.ArrayColumn(a, np.dtype(a.dtype))) for name, a in feeds.items()]
    return dataset.with_columns(columns, RANDOM_SAMPLES)


def _shortfalls(before: Stage, after: Stage) -> Iterator[str]:
    """What an honest report says of a step: which gains did not come."""
    was, now = before.latency.ratio, after.latency.ratio
    if now > was / FASTER_BELOW:
        yield f"this step made the model slower here: x{was:.2f} of the upload's time before it, x{now:.2f} after"
    elif now >= was * FASTER_BELOW:
        yield f"this step made the model no faster here: x{now:.2f} of the upload's time"
    if after.size.file_bytes >= SMALLER_BELOW * before.size.file_bytes:
        zipped = (
            f"zipped it has {after.size.zipped_bytes:,} instead of {before.size.zipped_bytes:,}"
        )
        yield f"this step made the file no smaller, {after.size.file_bytes:,} bytes; {zipped}"


def _only_fraction(report: context.Report, message: str) -> Callable[[float], None]:
    return lambda fraction: report(fraction, message)
