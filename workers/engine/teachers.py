"""The teachers of a student: found by role, checked against it, run together, remembered where their answers stay the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from modelpress.spec.distill import Distill
from modelpress.spec.distill._teaching import SOURCE
from workers.engine import data, divergence, forward, losses
from workers.engine.context import Context
from workers.engine.errors import Unsupported
from workers.engine.graph import Graph, element_types, execute, shapes

IN_MEMORY_BYTES = 64 << 20
"""Answers that take more are mapped from a file beside the job's work."""

_BATCH = 256
_IMAGE = "Image."  # begins the keys under which ONNX models say how pixels became numbers


def find(distill: Distill, ctx: Context) -> list[Graph]:
    """The graphs of the roles, in their order. Raises as `ctx.models`."""
    return [
        ctx.source if teacher.role == SOURCE else ctx.models[teacher.role]
        for teacher in distill.teachers
    ]


def check(student: Graph, teachers: Mapping[str, Graph], distill: Distill, ctx: Context) -> None:
    """Checks that every teacher answers what the student is asked; teachers by the name that messages give them.

    Raises:
        Unsupported: one has other inputs, classes, output shapes or another preprocessing of images, or there are too few classes for
            what the loss compares.
    """
    classes = next((shape[0] for shape in _answers(student, ctx) if len(shape) == 1), None)
    if distill.standardize and classes is not None and classes <= 2:
        raise Unsupported(
            f"standardised scores of two classes are all alike, and the model has {max(classes, 2)}",
            hint="set standardize to false",
        )
    for name, teacher in teachers.items():
        for reason in _differences(student, teacher, ctx):
            raise Unsupported(
                f"teacher '{name}' can't teach this student: {reason}",
                layer=name,
                hint="take a teacher that was trained for the same task on the same inputs",
            )


def _differences(student: Graph, teacher: Graph, ctx: Context) -> list[str]:
    """In words, what the teacher has otherwise; the first is enough to refuse it."""
    ours, theirs = (
        [(element_types.of(value), _sizes(value.shape)) for value in graph.inputs]
        for graph in (student, teacher)
    )
    if len(ours) != len(theirs):
        return [f"it has {len(theirs)} inputs, the student {len(ours)}"]
    for index, (own, other) in enumerate(zip(ours, theirs, strict=True)):
        if own[0] != other[0] or not _fit(own[1], other[1]):
            return [f"its input {index} is {_shown(*other)}, that of the student {_shown(*own)}"]
    for what in ("inputs", "outputs"):
        if orders := other_order(getattr(student, what), getattr(teacher, what)):
            return [f"it has the {what} {orders[1]}, the student {orders[0]}, in another order"]
    rules = [_rules(graph) for graph in (student, teacher)]
    differing = sorted(k for k in rules[0].keys() & rules[1].keys() if rules[0][k] != rules[1][k])
    if differing:
        key = differing[0]
        return [
            f"it was made for images with {key} '{rules[1][key]}', the student for '{rules[0][key]}'"
        ]
    return _differing_outputs(student, teacher, ctx)


def other_order(
    ours: Sequence[ir.Value], theirs: Sequence[ir.Value]
) -> tuple[list[str], list[str]] | None:
    """The names of both, where they are the same in another order: what goes by place would then be mixed up."""
    own, other = ([value.name or "" for value in values] for values in (ours, theirs))
    return (own, other) if own != other and sorted(own) == sorted(other) else None


def _differing_outputs(student: Graph, teacher: Graph, ctx: Context) -> list[str]:
    own, other = (_answers(graph, ctx) for graph in (student, teacher))
    scores = [next((shape for shape in found if len(shape) == 1), None) for found in (own, other)]
    if scores[0] and scores[1] and max(scores[0][0], 2) != max(scores[1][0], 2):
        return [f"it knows {scores[1][0]} classes, the student {scores[0][0]}"]
    if scores[0] is not None and scores[1] is not None:
        return []
    if own != other:
        return [
            f"its outputs have the shapes {[list(s) for s in other][:8]}, those of the student {[list(s) for s in own][:8]}"
        ]
    return []


def _answers(graph: Graph, ctx: Context) -> list[tuple[int, ...]]:
    """Shapes of the outputs of one sample, without the batch."""
    found = shapes_of(graph, ctx)
    return [found.get(value.name or "", ())[1:] for value in graph.outputs]


def shapes_of(graph: Graph, ctx: Context) -> dict[str, tuple[int, ...]]:
    """Of all values of a student or teacher, for one sample of the data."""
    return shapes.infer(graph, shapes.example_shapes(graph, given=_by_position(graph, ctx)))


def _by_position(graph: Graph, ctx: Context) -> dict[str, tuple[int, ...]]:
    """Shapes of the data, for the graph's own names of its inputs."""
    if ctx.train is None:
        return {}
    given = [array.shape for array in ctx.train.batch([0]).values()]
    return {value.name or "": shape for value, shape in zip(graph.inputs, given, strict=False)}


def has_scores(graph: Graph, ctx: Context) -> bool:
    """Whether an output is [samples, classes]."""
    return any(len(shape) == 1 for shape in _answers(graph, ctx))


def _sizes(shape: object) -> tuple[int | None, ...] | None:
    """Of the axes after the batch; null where an axis is open, and instead of all where the rank is."""
    if shape is None:
        return None
    axes = list(shape)[1:]  # type: ignore[call-overload]
    return tuple(size if isinstance(size, int) else None for size in axes)


def _fit(a: tuple[int | None, ...] | None, b: tuple[int | None, ...] | None) -> bool:
    if a is None or b is None:
        return True
    return len(a) == len(b) and all(None in (x, y) or x == y for x, y in zip(a, b, strict=True))


def _shown(kind: object, sizes: tuple[int | None, ...] | None) -> str:
    shape = "of any shape" if sizes is None else str(["?" if s is None else s for s in sizes])
    return f"{getattr(kind, 'name', kind)} {shape} for each sample"


def _rules(graph: Graph) -> dict[str, str]:
    """What the file says of its images, by the keys that ONNX gives for it."""
    return {k: v for k, v in graph.model.metadata_props.items() if k.startswith(_IMAGE)}


class Teachers(nn.Module):
    """Teachers that answer together: class scores [N, classes], or the mean of all outputs where there are none."""

    def __init__(self, graphs: Sequence[Graph], distill: Distill, *, scores: bool) -> None:
        super().__init__()
        self._each = nn.ModuleList(execute.as_module(graph) for graph in graphs)
        self._kinds = [[losses.kind(value) for value in graph.outputs] for graph in graphs]
        self._distill, self._scores = distill, scores
        named = [teacher.weight for teacher in distill.teachers]
        self._weights = named if len(named) == len(graphs) else [1.0] * len(graphs)
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Teachers:
        """Teachers are never trained: their normalization and dropout stay as they answer."""
        return super().train(False)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The answers of all of them, without gradients."""
        with torch.no_grad():
            answers = [each(*inputs) for each in self._each]
            if not self._scores:
                return self._mean(answers)
            each = [
                _prepared(outputs, kinds, self._distill)
                for outputs, kinds in zip(answers, self._kinds, strict=True)
            ]
            asked = self._distill
            return (divergence.combined(each, self._weights, asked.temperature, asked.mean),)

    def _mean(self, answers: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        total = sum(self._weights)
        shares = [weight / total for weight in self._weights]
        return tuple(
            torch.stack([s * x.float() for s, x in zip(shares, outputs, strict=True)]).sum(0)
            for outputs in zip(*answers, strict=True)
        )


def _prepared(
    outputs: tuple[Tensor, ...], kinds: Sequence[losses.Scores], distill: Distill
) -> Tensor:
    index = losses.scores_index(outputs)
    scores = divergence.logits(outputs[index], kinds[index])
    return divergence.standardized(scores) if distill.standardize else scores


class Remembered:
    """A column of a dataset: what teachers answered to each of its samples."""

    def __init__(self, answers: NDArray[np.float32], rows: data.dataset.Rows) -> None:
        self._answers = answers
        self._place = np.zeros(int(rows.max()) + 1, dtype=np.int64)
        self._place[rows] = np.arange(len(rows))

    @property
    def row_bytes(self) -> int:
        return self._answers.itemsize * (self._answers.size // len(self._answers))

    def read(self, rows: data.dataset.Rows) -> NDArray[np.generic]:
        return np.ascontiguousarray(self._answers[self._place[rows]])


def remember(
    teachers: Teachers, dataset: data.Dataset, ctx: Context, fixed: int | None, name: str
) -> data.Dataset:
    """The dataset with the teachers' answers as one more column, last. Only for samples that are always the same."""
    path = ctx.work / f"{name}.answers"
    answers: NDArray[np.float32] | None = None
    teachers.to(ctx.device)
    for indices, _ in dataset.batches(_BATCH):
        given = forward.run(teachers, dataset, indices, ctx.device, fixed).outputs[0].cpu().numpy()
        if answers is None:
            answers = _room((dataset.samples, *given.shape[1:]), path)
        answers[indices] = given
    assert answers is not None, "a dataset has samples"
    columns = {**dataset.columns, _column(dataset): Remembered(answers, dataset.rows)}
    return replace(dataset, columns=columns)


def _column(dataset: data.Dataset) -> str:
    name = "teachers"
    while name in dataset.columns:
        name += "_"
    return name


def _room(shape: tuple[int, ...], path: Path) -> NDArray[np.float32]:
    """An array in memory; in a file where it is large."""
    if 4 * int(np.prod(shape)) <= IN_MEMORY_BYTES:
        return np.empty(shape, np.float32)
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)


def fixed(graphs: Sequence[Graph], dataset: data.Dataset) -> Graph | None:
    """Of these graphs one that runs a single number of samples only, its inputs named as in the data; null where there is none.

    Raises:
        Unsupported: two of them run different numbers.
    """
    found: dict[int, Graph] = {}
    for graph in graphs:
        named = _named_as_in(dataset, graph)
        size = forward.fixed_batch(named, dataset)
        if size is not None:
            found.setdefault(size, named)
    if len(found) > 1:
        raise Unsupported(
            f"student and teachers run batches of {' and '.join(map(str, sorted(found)))} and no others",
            hint="export them with a free batch size",
        )
    return next(iter(found.values()), None)


def _named_as_in(dataset: data.Dataset, graph: Graph) -> Graph:
    """The graph, or a copy whose inputs have the names of the data; they come in the same order."""
    names = [value.name for value in graph.inputs]
    if names == list(dataset.input_names):
        return graph
    copy = graph.clone()
    for value, name in zip(copy.inputs, dataset.input_names, strict=False):
        value.name = copy.unused_name(name) if value.name != name else name
    return copy
