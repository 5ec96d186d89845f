"""What can be removed: classes of channels with everything they touch, in families of equal kind."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from workers.engine.graph import shapes
from workers.engine.graph.channels import _heads, flow
from workers.engine.graph.channels._book import Book
from workers.engine.graph.channels._heads import Choice, Cut
from workers.engine.graph.channels._labels import Classes
from workers.engine.graph.channels.flow import Flow
from workers.engine.graph.graph import Graph

Removed = npt.NDArray[np.bool_]
"""[classes]: True where a class goes."""


@dataclass(frozen=True)
class Family:
    """Classes that touch the same axes of the same weights: the channels of one layer, or of layers that are joined."""

    classes: npt.NDArray[np.int64]
    axes: tuple[tuple[str, int], ...]
    """Weights and their axes, in the order in which the network reads them."""
    width: int
    """Elements that one class takes of the axis of which it takes the fewest."""


@dataclass(frozen=True)
class Plan:
    """Channels of a graph, and which of them go together."""

    flow: Flow
    classes: Classes

    @cached_property
    def axes(self) -> dict[tuple[str, int], npt.NDArray[np.int64]]:
        """The class of each element along each axis of each weight that channels touch."""
        return {
            (name, axis): self.classes.of[labels.numpy()]
            for name, known in self.flow.book.axes.items()
            for axis, labels in known.items()
        }

    @cached_property
    def families(self) -> list[Family]:
        """Every family that may lose channels, in the order of its first class."""
        free = ~self.classes.is_pinned()
        rng = np.random.default_rng(0)
        marks = np.zeros(self.classes.count, dtype=np.uint64)
        for touched in self.axes.values():
            marks[np.unique(touched)] += rng.integers(1, 2**63, dtype=np.uint64)
        known = np.flatnonzero(free & (marks != 0))
        _, first, member = np.unique(marks[known], return_index=True, return_inverse=True)
        return [self._family(known[member == at]) for at in np.argsort(first)]

    def _family(self, classes: npt.NDArray[np.int64]) -> Family:
        takes = {key: int((touched == classes[0]).sum()) for key, touched in self.axes.items()}
        axes = tuple(key for key, count in takes.items() if count)
        return Family(classes, axes, min(takes[key] for key in axes))

    def vectors(self) -> Iterator[npt.NDArray[np.int64]]:
        """The classes along each axis that has channels, of weights and of values, each once."""
        seen: set[bytes] = set()
        labelled = (s.labels for s in self.flow.book.shadows.values() if s.labels is not None)
        of_values = (self.classes.of[labels.numpy()] for labels in labelled)
        for vector in (*self.axes.values(), *of_values):
            if vector.tobytes() not in seen:
                seen.add(vector.tobytes())
                yield vector

    def reason(self, name: str, axis: int) -> str:
        """Why elements of this axis stay; '' where all of them may go."""
        if (name, axis) not in self.axes:
            return "nothing that is known reads it"
        found = [self.classes.reasons.get(c, "") for c in np.unique(self.axes[name, axis]).tolist()]
        return next((reason for reason in found if reason), "")

    @property
    def statistics(self) -> dict[str, int]:
        """Nodes with a statistic over channels, and over how many it is."""
        return {s.title: s.labels.numel() for s in self.flow.book.statistics}

    def narrowed(self, removed: Removed) -> list[tuple[str, int, int]]:
        """Nodes whose statistics are over fewer channels then: the node, how many they were over, how many they are.

        What such a node computes differs even where the removed channels were zero.
        """
        found = []
        for statistic in self.flow.book.statistics:
            kept = self.kept(statistic.labels, removed)
            if not kept.all():
                found.append((statistic.title, kept.size, int(kept.sum())))
        return found

    def spare(self, removed: Removed, scores: npt.NDArray[np.float64], least: int) -> Removed:
        """The same, with the best channels back wherever fewer than `least` would be left."""
        removed = removed.copy()
        for vector in self.vectors():
            lost = removed[vector]
            missing = min(least, vector.size) - int((~lost).sum())
            if missing > 0:
                gone = np.unique(vector[lost])
                best = gone[np.argsort(-scores[gone], kind="stable")]
                removed[best[:missing]] = False
        return removed

    def kept(self, labels: torch.Tensor, removed: Removed) -> npt.NDArray[np.bool_]:
        """Which of these channels stay. labels: [n] int64."""
        kept: npt.NDArray[np.bool_] = ~removed[self.classes.of[labels.numpy()]]
        return kept


def make(
    graph: Graph,
    input_shapes: shapes.Shapes,
    *,
    attention: Literal["auto", "heads", "width"] = "auto",
    normalized: Literal["narrow", "keep"] = "narrow",
) -> Plan:
    """Follows every channel through a graph and finds what can go.

    Args:
        graph: The graph; it is not changed.
        input_shapes: Sizes of its inputs, of one sample.
        attention: What of attention can go: whole heads, the same places in all heads of a layer, or of both what is
            more. The width of what attention reads and writes can go in any case.
        normalized: What becomes of channels that a layer normalization or another statistic is over: they may go, and
            the statistic is then over those that are left, or all of them are kept.

    Raises:
        BadModel: shapes do not fit each other, or depend on the data.
    """
    keeps = normalized == "keep"
    plan = _followed(Book(graph, keeps), input_shapes)
    sites = _heads.cuts(plan.flow)
    axes = _axes(plan, sites, attention)
    if all(_kept_axis(plan, cut) == axes[cut.node] for site in sites for cut in site):
        return plan
    other = _followed(Book(graph, keeps, axes), input_shapes)
    return plan if attention == "auto" and _freed(other) <= _freed(plan) else other


def again(graph: Graph, input_shapes: shapes.Shapes, before: Plan) -> Plan:
    """The plan of a graph that has lost channels since `before`: what was chosen then is chosen again.

    Raises:
        BadModel: shapes do not fit each other, or depend on the data.
    """
    book = before.flow.book
    return _followed(Book(graph, book.keeps_statistics, book.chosen_axes), input_shapes)


def _followed(book: Book, input_shapes: shapes.Shapes) -> Plan:
    followed = flow.trace(book, input_shapes)
    return Plan(followed, book.labels.classes())


def _axes(plan: Plan, sites: Sequence[Sequence[Cut]], attention: str) -> dict[str, int]:
    """The axis along which the channels of each cut shall stay apart, by node."""
    axes = {}
    for site in sites:
        choice: Choice = "heads" if attention == "heads" else "width"
        if attention == "auto":
            choice = _usual(plan, site)
        axes.update({cut.node: cut.axis(choice) for cut in site})
    return axes


def _usual(plan: Plan, site: Sequence[Cut]) -> Choice:
    """What of a layer of attention goes where nobody says: the other choice where what was tried frees nothing."""
    by_width = sum(_kept_axis(plan, cut) == cut.width for cut in site) * 2 >= len(site)
    frees = all(_is_free(plan, cut) for cut in site)
    return "width" if by_width == frees else "heads"


def _kept_axis(plan: Plan, cut: Cut) -> int:
    return plan.flow.book.chosen_axes.get(cut.node, -1)


def _is_free(plan: Plan, cut: Cut) -> bool:
    """Whether more than one class of a cut's channels can go."""
    labels = plan.flow.book.shadows[cut.value].labels
    if labels is None:
        return False
    classes = np.unique(plan.classes.of[labels.numpy()])
    return int((~plan.classes.is_pinned()[classes]).sum()) > 1


def _freed(plan: Plan) -> float:
    """Elements of weights that could go, those that could go by two axes counted twice."""
    free = ~plan.classes.is_pinned()
    shapes_of = plan.flow.shapes
    parts = (
        free[touched].mean() * math.prod(shapes_of[name])
        for (name, _), touched in plan.axes.items()
    )
    return float(sum(parts))
