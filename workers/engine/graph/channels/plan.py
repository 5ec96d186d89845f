"""What can be removed: classes of channels with everything they touch, in families of equal kind."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, TypeAlias

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

Attention: TypeAlias = Literal["auto", "heads", "width", "both"]

Axes: TypeAlias = tuple[tuple[str, int], ...]
"""Weights and their axes, in the order in which the network reads them."""

Key: TypeAlias = tuple[Axes, bool]
"""What a family is known by from round to round."""

Kept: TypeAlias = npt.NDArray[np.bool_]
"""True where an element stays."""

Removed = npt.NDArray[np.bool_]
"""[classes]: True where a class goes."""


@dataclass(frozen=True)
class Family:
    """Classes that touch the same axes of the same weights: the channels of one layer, or of layers that are joined."""

    classes: npt.NDArray[np.int64]
    axes: Axes
    width: int
    """Elements that one class takes of the axis of which it takes the fewest; of places in heads as if one head was left."""
    is_beside: bool = False
    """Whether another family takes of the same axes: these are places in heads, of which whole ones go too."""

    @property
    def key(self) -> Key:
        return self.axes, self.is_beside


@dataclass(frozen=True)
class Plan:
    """Channels of a graph, and which of them go together."""

    flow: Flow
    classes: Classes
    beside: Flow | None = None
    """The network followed once more, for places in heads of which whole ones go too."""
    cuts: tuple[Cut, ...] = ()
    """Where attention cuts channels into heads."""

    @property
    def flows(self) -> tuple[Flow, ...]:
        """An element goes where one of these says so."""
        return (self.flow,) if self.beside is None else (self.flow, self.beside)

    @property
    def books(self) -> tuple[Book, ...]:
        """What was written down in each."""
        return tuple(followed.book for followed in self.flows)

    @cached_property
    def axes(self) -> dict[tuple[str, int], npt.NDArray[np.int64]]:
        """The class of each element along each axis of each weight that channels touch."""
        return {(name, axis): touched for name, axis, touched in self._touched(self.flow)}

    @cached_property
    def touched(self) -> list[tuple[str, int, npt.NDArray[np.int64]]]:
        """The same of all flows: weight, axis, classes."""
        return [found for followed in self.flows for found in self._touched(followed)]

    def _touched(self, followed: Flow) -> Iterator[tuple[str, int, npt.NDArray[np.int64]]]:
        for name, known in followed.book.axes.items():
            for axis, labels in known.items():
                yield name, axis, self.classes.of[labels.numpy()]

    @cached_property
    def families(self) -> list[Family]:
        """Every family that may lose channels, in the order of its first class."""
        free = ~self.classes.is_pinned()
        rng = np.random.default_rng(0)
        marks = np.zeros(self.classes.count, dtype=np.uint64)
        for _, _, touched in self.touched:
            marks[np.unique(touched)] += rng.integers(1, 2**63, dtype=np.uint64)
        known = np.flatnonzero(free & (marks != 0))
        _, first, member = np.unique(marks[known], return_index=True, return_inverse=True)
        return [self._family(known[member == at]) for at in np.argsort(first)]

    def _family(self, classes: npt.NDArray[np.int64]) -> Family:
        counts = ((n, axis, int((t == classes[0]).sum())) for n, axis, t in self.touched)
        takes = {(name, axis): count for name, axis, count in counts if count}
        is_beside = bool(classes[0] in self._beside)
        return Family(classes, tuple(takes), 1 if is_beside else min(takes.values()), is_beside)

    @cached_property
    def _beside(self) -> frozenset[int]:
        """The classes of the second flow."""
        found = [] if self.beside is None else list(self._touched(self.beside))
        return frozenset(c for _, _, touched in found for c in touched.tolist() if c)

    def vectors(self) -> Iterator[npt.NDArray[np.int64]]:
        """The classes along each axis that has channels, of weights and of values, each once."""
        seen: set[bytes] = set()
        shadows = (shadow for book in self.books for shadow in book.shadows.values())
        of_values = (self.classes.of[s.labels.numpy()] for s in shadows if s.labels is not None)
        for vector in (*(touched for _, _, touched in self.touched), *of_values):
            if vector.tobytes() not in seen:
                seen.add(vector.tobytes())
                yield vector

    def reason(self, name: str, axis: int) -> str:
        """Why elements of this axis stay; '' where all of them may go."""
        known = [touched for n, a, touched in self.touched if (n, a) == (name, axis)]
        if not known:
            return "nothing that is known reads it"
        pinned = self.classes.is_pinned()
        stuck = np.logical_and.reduce([pinned[touched] for touched in known])
        found = np.unique(known[0][stuck]).tolist()
        return next((self.classes.reasons[c] for c in found), "")

    def held(self, choices: Sequence[Choice]) -> dict[tuple[Choice, str], str]:
        """Why nothing of what was chosen for attention can go, by choice and node that cuts channels into heads.

        choices: One for each flow.
        """
        found: dict[tuple[Choice, str], str] = {}
        for choice, book in zip(choices, self.books, strict=True):
            for cut in self.cuts:
                shadow = book.shadows.get(cut.value)
                if shadow is None or shadow.labels is None:
                    found[choice, cut.node] = "no weight makes them"
                elif book.chosen_axes.get(cut.node) != cut.axis(choice):
                    found[choice, cut.node] = "they can't be told apart"
                elif reason := self._stuck(shadow.labels):
                    found[choice, cut.node] = reason
        return found

    def _stuck(self, labels: torch.Tensor) -> str:
        """Why none of these channels can go; '' where one of them can."""
        found = np.unique(self.classes.of[labels.numpy()]).tolist()
        reasons = [self.classes.reasons.get(one, "") for one in found]
        return "" if "" in reasons else reasons[-1]

    @property
    def statistics(self) -> dict[str, int]:
        """Nodes with a statistic over channels, and over how many it is."""
        return {s.title: s.labels.numel() for book in self.books for s in book.statistics}

    def narrowed(self, removed: Removed) -> list[tuple[str, int, int]]:
        """Nodes whose statistics are over fewer channels then: the node, how many they were over, how many they are.

        What such a node computes differs even where the removed channels were zero.
        """
        kept: dict[tuple[str, int], Kept] = {}
        for statistic in (s for book in self.books for s in book.statistics):
            key = statistic.title, statistic.labels.numel()
            kept[key] = kept.get(key, np.True_) & self.kept(statistic.labels, removed)
        return [(title, n, int(k.sum())) for (title, n), k in kept.items() if not k.all()]

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

    def kept(self, labels: torch.Tensor, removed: Removed) -> Kept:
        """Which of these channels stay. labels: [n] int64."""
        kept: Kept = ~removed[self.classes.of[labels.numpy()]]
        return kept

    def slices(self, removed: Removed) -> dict[str, dict[int, Kept]]:
        """Which elements of each weight stay, along each of its axes that channels touch."""
        found: dict[str, dict[int, Kept]] = {}
        for name, axis, touched in self.touched:
            known = found.setdefault(name, {})
            known[axis] = known.get(axis, np.True_) & ~removed[touched]
        return found

    def left(self, name: str, removed: Removed) -> dict[int, Kept]:
        """Which elements of a value stay, along the axes on which it loses some."""
        found: dict[int, Kept] = {}
        for book in self.books:
            for axis, labels in _lines(book, name):
                found[axis] = found.get(axis, np.True_) & self.kept(labels, removed)
        return {axis: kept for axis, kept in found.items() if not kept.all()}


def _lines(book: Book, name: str) -> Iterable[tuple[int, torch.Tensor]]:
    """Axes of a value or initializer that have labels, with these."""
    shadow = book.shadows.get(name)
    if shadow is not None and shadow.labels is not None:
        return [(shadow.axis, shadow.labels)]
    return book.axes.get(name, {}).items()


def make(
    graph: Graph,
    input_shapes: shapes.Shapes,
    *,
    attention: Attention = "auto",
    normalized: Literal["narrow", "keep"] = "narrow",
) -> Plan:
    """Follows every channel through a graph and finds what can go.

    Args:
        graph: The graph; it is not changed.
        input_shapes: Sizes of its inputs, of one sample.
        attention: What of attention can go: whole heads, the same places in all heads of a layer, both, or of the
            two what is more. The width of what attention reads and writes can go in any case.
        normalized: What becomes of channels that a layer normalization or another statistic is over: they may go, and
            the statistic is then over those that are left, or all of them are kept.

    Raises:
        BadModel: shapes do not fit each other, or depend on the data.
    """
    keeps = normalized == "keep"
    plan = _followed(Book(graph, keeps), input_shapes)
    sites = _heads.cuts(plan.flow)
    cuts = tuple(cut for site in sites for cut in site)
    if attention == "both":
        by_heads, by_width = ({cut.node: cut.axis(one) for cut in cuts} for one in _CHOICES)
        return _joined(Book(graph, keeps, by_heads), by_width, input_shapes, cuts)
    axes = _axes(plan, sites, attention)
    if all(_kept_axis(plan.flow, cut) == axes[cut.node] for cut in cuts):
        return replace(plan, cuts=cuts)
    other = _followed(Book(graph, keeps, axes), input_shapes)
    best = plan if attention == "auto" and _freed(other) <= _freed(plan) else other
    return replace(best, cuts=cuts)


_CHOICES: tuple[Choice, Choice] = ("heads", "width")


def again(graph: Graph, input_shapes: shapes.Shapes, before: Plan) -> Plan:
    """The plan of a graph that has lost channels since `before`: what was chosen then is chosen again.

    Raises:
        BadModel: shapes do not fit each other, or depend on the data.
    """
    chosen, *beside = ({**book.kept_axes, **book.chosen_axes} for book in before.books)
    anew = Book(graph, before.flow.book.keeps_statistics, chosen)
    if beside:
        return _joined(anew, beside[0], input_shapes, before.cuts)
    return replace(_followed(anew, input_shapes), cuts=before.cuts)


def _followed(book: Book, input_shapes: shapes.Shapes) -> Plan:
    followed = flow.trace(book, input_shapes)
    return Plan(followed, book.labels.classes())


def _joined(
    book: Book, by_width: Mapping[str, int], input_shapes: shapes.Shapes, cuts: tuple[Cut, ...]
) -> Plan:
    """Heads by an empty book, and the same places of all heads by a second one: of that, only what attention is cut into.

    Each of the two fits together by itself, and so does one after the other.
    """
    first = flow.trace(book, input_shapes)
    start = book.labels.count
    other = Book(book.graph, book.keeps_statistics, by_width, book.labels)
    second = flow.trace(other, input_shapes)
    places = [
        other.shadows[cut.value].labels
        for cut in cuts
        if _kept_axis(first, cut) != cut.width and _kept_axis(second, cut) == cut.width
    ]
    classes = book.labels.classes()
    wanted = {c for labels in places if labels is not None for c in classes.of[labels].tolist()}
    return Plan(first, classes.without(start, wanted), second, cuts)


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
    by_width = sum(_kept_axis(plan.flow, cut) == cut.width for cut in site) * 2 >= len(site)
    frees = all(_is_free(plan, cut) for cut in site)
    return "width" if by_width == frees else "heads"


def _kept_axis(followed: Flow, cut: Cut) -> int:
    return followed.book.chosen_axes.get(cut.node, -1)


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
