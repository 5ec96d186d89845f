"""What is written down while a network runs on labels, and what a rule sees of one node."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch

from workers.engine.graph import program
from workers.engine.graph.channels import _shadow
from workers.engine.graph.channels._labels import Labels
from workers.engine.graph.channels._shadow import Shadow
from workers.engine.graph.graph import Graph

Tensor = torch.Tensor

Rule: TypeAlias = Callable[["Node"], Sequence[Shadow]]
"""Answers the shadows of a node's outputs, and tells the labels what goes together or must stay."""


@dataclass(frozen=True)
class Count:
    """A node's attribute that counts channels or groups."""

    node: str
    attribute: str
    labels: Tensor
    """One for each channel or group that it counts."""


@dataclass(frozen=True)
class Fixed:
    """A node's number that follows from how many channels there are, and must stay as it is."""

    node: str
    attribute: str
    labels: Tensor
    value: float


@dataclass(frozen=True)
class Statistic:
    """A mean, a variance, a norm or a maximum over channels: without some of them it is another one."""

    title: str
    labels: Tensor
    """Of the channels it is over."""


@dataclass
class Book:
    """Everything known of channels so far."""

    graph: Graph
    keeps_statistics: bool = False
    """Whether channels that a statistic is over must stay."""
    kept_axes: Mapping[str, int] = field(default_factory=dict)
    """Of nodes that spread channels over several axes, the one along which they stay apart; of the others the longest does."""
    labels: Labels = field(default_factory=Labels)
    chosen_axes: dict[str, int] = field(default_factory=dict)
    """The same of all nodes that channels were followed through: a later plan that is told them chooses the same."""
    shadows: dict[str, Shadow] = field(default_factory=dict)
    """Of values that nodes make, by name."""
    axes: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    """Labels along axes of initializers, by name and axis."""
    counts: list[Count] = field(default_factory=list)
    fixed: list[Fixed] = field(default_factory=list)
    statistics: list[Statistic] = field(default_factory=list)

    def axis_labels(self, name: str, axis: int) -> Tensor:
        """Labels along an axis of an initializer: the same ones whoever asks."""
        tensor = self.graph.model.graph.initializers[name].const_value
        assert tensor is not None
        shape = tuple(tensor.shape.numpy())
        axis, size = axis % len(shape), shape[axis]
        known = self.axes.setdefault(name, {})
        if axis not in known:
            known[axis] = (
                self.labels.fresh(size) if size > 1 else torch.zeros(size, dtype=torch.int64)
            )
        return known[axis]


class Node:
    """One node, as its rule sees it."""

    def __init__(
        self, book: Book, step: program.Step, operands: Sequence[Any], results: Sequence[Any]
    ) -> None:
        self.book, self.step = book, step
        self.operands, self.results = operands, results

    @property
    def kept_axis(self) -> int:
        """The axis along which channels stay apart, where that was asked for; -1 otherwise."""
        return self.book.kept_axes.get(self.step.name, -1)

    def choose(self, axis: int) -> None:
        """Writes down along which axis of the result channels stay apart."""
        if axis >= 0:
            self.book.chosen_axes[self.step.name] = axis

    @property
    def kind(self) -> str:
        """The operator's name."""
        return self.step.operator.name

    def attribute(self, name: str, default: Any) -> Any:
        """An attribute's value, or the operator's default."""
        return self.step.attributes.get(name, default)

    def has(self, slot: int) -> bool:
        """Whether the operand is given, as a tensor."""
        return slot < len(self.operands) and isinstance(self.operands[slot], torch.Tensor)

    def slots(self) -> Iterator[int]:
        """Operands that are given."""
        return (slot for slot in range(len(self.operands)) if self.has(slot))

    def is_initializer(self, slot: int) -> bool:
        """Whether the operand is an initializer of numbers that can be left out: floats."""
        known = self.book.graph.model.graph.initializers
        return (
            self.has(slot)
            and self.step.inputs[slot] in known
            and self.operands[slot].is_floating_point()
        )

    def shape(self, slot: int) -> tuple[int, ...]:
        """An operand's shape."""
        return tuple(self.operands[slot].shape)

    def shadow(self, slot: int, prefer: int = -1) -> Shadow:
        """An operand's shadow. Of an initializer's axes that one gets labels which is preferred."""
        name = self.step.inputs[slot]
        if not self.is_initializer(slot):
            return self.book.shadows.get(name) or _shadow.blank(self.shape(slot))
        shape = self.shape(slot)
        wide = [axis for axis, size in enumerate(shape) if size > 1]
        if not wide:
            return _shadow.blank(shape)
        axis = prefer if prefer in wide else wide[-1]
        self.pin_axes(slot, keep=axis)
        return _shadow.lined(shape, axis, self.book.axis_labels(name, axis))

    def along(self, slot: int, axis: int) -> Tensor:
        """An operand's labels along an axis; zeros where it has none."""
        if self.is_initializer(slot):
            return self.book.axis_labels(self.step.inputs[slot], axis)
        return self.shadow(slot).along(axis)

    def varying(self, slot: int) -> int:
        """The axis along which an activation has labels; -1 where it has none, and for initializers."""
        return -1 if self.is_initializer(slot) else self.shadow(slot).axis

    def unify(self, a: Tensor, b: Tensor) -> None:
        """Elements of both at one place go together."""
        self.book.labels.unify(a, b, f"{self.title} joins it with what can't go")

    def pin(self, slot: int, why: str) -> None:
        """No channel of the operand may go."""
        if self.is_initializer(slot):
            self.pin_axes(slot, why=why)
            return
        found = self.shadow(slot).labels
        if found is not None:
            self.book.labels.pin(found, f"{self.title} {why}")

    def pin_axes(self, slot: int, keep: int = -1, why: str = "uses this axis as it is") -> None:
        """No axis of the initializer but `keep` may lose elements."""
        for axis, size in enumerate(self.shape(slot)):
            if axis != keep and size > 1:
                self.book.labels.pin(self.along(slot, axis), f"{self.title} {why}")

    def follow(self, slot: int, shadow: Shadow) -> None:
        """An operand that is broadcast onto a value goes with its channels."""
        if not self.has(slot):
            return
        shift = len(shadow.shape) - len(self.shape(slot))
        for axis, size in enumerate(self.shape(slot)):
            if size > 1:
                self.unify(self.along(slot, axis), shadow.along(axis + shift))

    def summarise(self, labels: Tensor) -> None:
        """The node computes a statistic over these channels."""
        if self.book.keeps_statistics:
            self.book.labels.pin(labels, f"{self.title} has statistics over it, which are kept")
        elif bool((labels != 0).any()):
            self.book.statistics.append(Statistic(self.title, labels))

    def count(self, attribute: str, labels: Tensor) -> None:
        """An attribute counts these channels or groups."""
        self.book.counts.append(Count(self.step.name, attribute, labels))

    def fix(self, attribute: str, labels: Tensor, value: float) -> None:
        """An attribute is this number from now on, when any of the channels goes."""
        if attribute not in self.step.attributes:
            self.book.fixed.append(Fixed(self.step.name, attribute, labels, value))

    def blanks(self) -> list[Shadow]:
        """Outputs without channels."""
        return [_shadow.blank(_shape(result)) for result in self.results]

    def carried(self, slot: int = 0) -> list[Shadow]:
        """Outputs of the operand's shape have its channels, others none."""
        source = self.shadow(slot)
        return [
            source if _shape(result) == source.shape else _shadow.blank(_shape(result))
            for result in self.results
        ]

    @property
    def title(self) -> str:
        """How reasons name the node."""
        return f"{self.kind} '{self.step.name}'"


def _shape(result: Any) -> tuple[int, ...]:
    return tuple(result.shape) if isinstance(result, torch.Tensor) else ()
