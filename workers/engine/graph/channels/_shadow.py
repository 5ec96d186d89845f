"""The shadow of a value: which channel each of its elements belongs to."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from workers.engine.graph.channels import _labels
from workers.engine.graph.channels._labels import Labels

Tensor = torch.Tensor

NOT_WHOLE = "its channels are spread over two axes of a reshaped value"
SINGLE = "it is picked out by itself"


@dataclass(frozen=True)
class Shadow:
    """Labels of a value's elements. They vary along one axis at most, so that a class is made of whole slices."""

    shape: tuple[int, ...]
    axis: int = -1
    """Along which labels vary; -1 where no element has a label."""
    labels: Tensor | None = None
    """[shape[axis]] int64; null where no element has a label."""

    def along(self, axis: int) -> Tensor:
        """The labels along an axis, zeros where they don't vary along it."""
        if self.labels is not None and axis % len(self.shape) == self.axis:
            return self.labels
        return torch.zeros(self.shape[axis], dtype=torch.int64)

    def full(self) -> Tensor:
        """A label for each element, without memory for the axes along which they are equal."""
        if self.labels is None:
            return torch.zeros(1, dtype=torch.int64).expand(self.shape)
        lined = self.labels.reshape([-1 if a == self.axis else 1 for a in range(len(self.shape))])
        return lined.expand(self.shape)


def blank(shape: tuple[int, ...]) -> Shadow:
    """No element belongs to a channel."""
    return Shadow(tuple(shape))


def lined(shape: tuple[int, ...], axis: int, labels: Tensor) -> Shadow:
    """Labels along one axis."""
    axis = axis % len(shape)
    if shape[axis] <= 1 or not bool((labels != 0).any()):
        return blank(shape)
    return Shadow(tuple(shape), axis, labels)


def close(full: Tensor, labels: Labels, kept: int = -1) -> Shadow:
    """The shadow of a value whose elements have these labels, unified until they vary along one axis at most.

    Of several axes `kept` is, if it is one of them, and else that which leaves the most classes. Where one element is left along
    `kept`, it stays.
    """
    shape = tuple(full.shape)
    small = _compressed(full)
    axes = [axis for axis, size in enumerate(small.shape) if size > 1]
    if not axes or (kept >= 0 and shape[kept] == 1):
        labels.pin(small.reshape(-1), SINGLE)
        return blank(shape)
    if kept in axes:
        axes = [kept]
    axis = axes[0] if len(axes) == 1 else max(axes, key=lambda a: _classes_left(small, a))
    edge = _edge(small, axis)
    labels.unify(small, edge, NOT_WHOLE)
    return lined(shape, axis, edge.reshape(-1))


def _compressed(full: Tensor) -> Tensor:
    """One slice of each axis along which all slices are equal."""
    for axis in range(full.dim()):
        first = full.narrow(axis, 0, 1) if full.shape[axis] else full
        if full.shape[axis] > 1 and (
            full.stride(axis) == 0 or torch.equal(first.expand_as(full), full)
        ):
            full = first
    return full


def _edge(small: Tensor, axis: int) -> Tensor:
    for other in range(small.dim()):
        small = small if other == axis else small.narrow(other, 0, 1)
    return small


def _classes_left(small: Tensor, axis: int) -> int:
    edge = _edge(small, axis).expand_as(small)
    return _labels.groups_of(small.reshape(-1), edge.reshape(-1))
