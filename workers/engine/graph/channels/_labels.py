"""Labels: numbers that name channels, which of them stand and fall together, and which must stay."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

import numpy as np
import torch

Tensor = torch.Tensor


@dataclass(frozen=True)
class Classes:
    """The outcome: every label's class, and why some classes must stay."""

    of: np.ndarray
    """Class of each label; that of label 0, no channel, is among the pinned."""
    reasons: dict[int, str]
    """Why a class is pinned, by class."""

    @property
    def count(self) -> int:
        """How many classes there are, pinned ones included."""
        return int(self.of.max()) + 1

    def without(self, first: int, but: Container[int]) -> Classes:
        """The same, and of the labels from `first` on, which stand by themselves, only these classes may go."""
        later = np.unique(self.of[first:]).tolist()
        held = {one: "it goes by another axis" for one in later if one not in but}
        return Classes(self.of, held | self.reasons)

    def is_pinned(self) -> np.ndarray:
        """[classes] bool."""
        pinned = np.zeros(self.count, dtype=np.bool_)
        pinned[list(self.reasons)] = True
        return pinned


class Labels:
    """Hands out labels and writes down what is said about them; 0 names no channel and never goes."""

    def __init__(self) -> None:
        self._count = 1
        self._pairs: list[Tensor] = []
        self._pins: list[tuple[Tensor, str]] = []

    @property
    def count(self) -> int:
        """How many there are, that of no channel included."""
        return self._count

    def fresh(self, count: int) -> Tensor:
        """New labels. [count] int64."""
        made = torch.arange(self._count, self._count + count)
        self._count += count
        return made

    def unify(self, a: Tensor, b: Tensor, reason: str) -> None:
        """Elements at one place go together; beside an element without a label, the other one stays."""
        shape = np.broadcast_shapes(tuple(a.shape), tuple(b.shape))
        a, b = a.expand(shape), b.expand(shape)
        differ = a != b
        if not bool(differ.any()):
            return
        one, other = a[differ], b[differ]
        alone = (one == 0) | (other == 0)
        if bool(alone.any()):
            self.pin((one + other)[alone], reason)
        if not bool(alone.all()):
            self._pairs.append(torch.stack([one[~alone], other[~alone]]))

    def pin(self, labels: Tensor, reason: str) -> None:
        """These channels can't go."""
        labels = labels[labels != 0]
        if labels.numel():
            self._pins.append((torch.unique(labels), reason))

    def classes(self) -> Classes:
        """Connected labels, numbered in the order of their smallest label."""
        of = _components(self._count, self._pairs)
        reasons = {int(of[0]): "it carries no channel"}
        for labels, reason in self._pins:
            for found in np.unique(of[labels.numpy()]).tolist():
                reasons.setdefault(found, reason)
        return Classes(of, reasons)


def _components(count: int, pairs: list[Tensor]) -> np.ndarray:
    """The class of each label: labels take the smallest label they can reach, by hooking and halving."""
    root = np.arange(count)
    if pairs:
        one, other = torch.cat(pairs, dim=1).numpy()
        while True:
            a, b = root[one], root[other]
            apart = a != b
            if not apart.any():
                break
            one, other, a, b = one[apart], other[apart], a[apart], b[apart]
            np.minimum.at(root, np.maximum(a, b), np.minimum(a, b))
            while not np.array_equal(root[root], root):
                root = root[root]
    return np.unique(root, return_inverse=True)[1]


def groups_of(vector: Tensor, other: Tensor) -> int:
    """How many classes are left among labels when elements at one place are unified."""
    names, places = torch.unique(torch.cat([vector, other]), return_inverse=True)
    pairs = [places.reshape(2, -1)]
    return int(_components(len(names), pairs).max()) + 1
