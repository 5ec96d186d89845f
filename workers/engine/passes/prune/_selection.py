"""Which classes of channels go: the lowest scores, within the limits of each layer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from modelpress.spec.prune import PruneChannels
from workers.engine.graph import Graph
from workers.engine.graph.channels.plan import Family, Key, Plan, Removed
from workers.engine.passes.prune._importance import Scores
from workers.engine.passes.prune._levels import Levels

Classes = npt.NDArray[np.int64]
"""Numbers of classes."""


@dataclass(frozen=True)
class Member:
    """A family that may lose channels."""

    family: Family
    total: int
    """Classes it had before the first round."""
    own: float | None = None
    """The fraction of them that goes; null where the target decides."""

    @property
    def gone(self) -> int:
        """Classes that earlier rounds took."""
        return self.total - len(self.family.classes)


@dataclass(frozen=True)
class Candidates:
    """Everything that may go in one round, and what it is worth."""

    plan: Plan
    members: Sequence[Member]
    scores: Scores
    ties: Classes
    """[classes]: which of two of equal worth goes first."""
    step: PruneChannels
    done: float
    """The share of the rounds that is over after this one: so much of an own fraction has gone then."""
    levels: Levels | None = None
    """With scope 'sensitivity': what fractions of each layer cost."""

    def choose(self, fraction: float) -> Removed:
        """The classes that go, so that this fraction of all that were there before the first round is gone.

        No layer loses more than its cap, is left with less than min_channels, or with what is no multiple of round_to.
        """
        removed: Removed = np.zeros(self.plan.classes.count, dtype=np.bool_)
        for member, lowest in self._lowest(fraction):
            removed[lowest[: _allowed(member.family, len(lowest), self.step)]] = True
        return self.plan.spare(removed, self.scores, self.step.min_channels)

    def blocks(self, removed: Removed) -> list[tuple[Key, Classes]]:
        """What goes, in blocks that can come back one by one: the worthiest first. Own fractions are not to be changed.

        A layer comes back block by block, each of as many classes as round_to allows.
        """
        found: list[tuple[float, Key, Classes]] = []
        for member in self.members:
            classes = self._ranked(member)[::-1]
            gone, unit = classes[removed[classes]], _unit(member.family, self.step)
            mean = _mean(self.scores[classes])
            if member.own is None:
                for start in range(0, len(gone), unit):
                    block = gone[start : start + unit]
                    worth = float(self.scores[block].mean()) / mean
                    found.append((worth, member.family.key, block))
        return [(key, block) for _, key, block in sorted(found, key=lambda b: -b[0])]

    def _lowest(self, fraction: float) -> Iterator[tuple[Member, Classes]]:
        """Each layer's classes that are among the lowest of those it is ranked with, lowest first."""
        for member in self.members:
            if member.own is not None:
                quota = _count(member.own * self.done, member.total) - member.gone
                yield member, self._ranked(member)[: max(quota, 0)]
        others = [member for member in self.members if member.own is None]
        if self.levels is not None:
            known = [(member.family.key, member.total) for member in others]
            shares = self.levels.shares(known, fraction, self.step.max_layer_fraction)
            for member, share in zip(others, shares, strict=True):
                quota = _count(share, member.total) - member.gone
                yield member, self._ranked(member)[: max(quota, 0)]
            return
        for group in _groups(self.plan.flow.book.graph, others, self.step.scope):
            yield from zip(group, self._lowest_of(group, fraction), strict=True)

    def _lowest_of(self, group: Sequence[Member], fraction: float) -> list[Classes]:
        """Scores are divided by their mean in the family, so that layers of many weights are not worth more for that alone."""
        cap = self.step.max_layer_fraction
        capped = [self._ranked(m)[: max(_count(cap, m.total) - m.gone, 0)] for m in group]
        relative = [
            self.scores[classes] / _mean(self.scores[m.family.classes])
            for classes, m in zip(capped, group, strict=True)
        ]
        ties, joined = self.ties[np.concatenate(capped)], np.concatenate(relative)
        quota = _count(fraction, sum(m.total for m in group)) - sum(m.gone for m in group)
        chosen = np.zeros(len(joined), dtype=np.bool_)
        chosen[np.lexsort((ties, joined))[: max(quota, 0)]] = True
        parts = np.split(chosen, np.cumsum([len(classes) for classes in capped])[:-1])
        return [classes[part] for classes, part in zip(capped, parts, strict=True)]

    def _ranked(self, member: Member) -> Classes:
        classes = member.family.classes
        return classes[np.lexsort((self.ties[classes], self.scores[classes]))]


def totals(plan: Plan) -> dict[Key, int]:
    """How many classes each family has."""
    return {family.key: len(family.classes) for family in plan.families}


def members(
    families: Sequence[Family], before: Mapping[Key, int], own: Mapping[Key, float]
) -> list[Member]:
    """The families with what they had before the first round; one that was another then has lost nothing."""
    return [Member(f, max(before.get(f.key, 0), len(f.classes)), own.get(f.key)) for f in families]


def _count(fraction: float, total: int) -> int:
    return math.floor(fraction * total + 1e-9)


def _mean(scores: Scores) -> float:
    return max(float(scores.mean()), 1e-30)


def _groups(graph: Graph, found: Sequence[Member], scope: str) -> list[list[Member]]:
    """Families that are ranked together."""
    alike: dict[object, list[Member]] = {}
    for index, member in enumerate(found):
        keys = {"layer": index, "global": None}
        key = keys[scope] if scope in keys else _structure(graph, member.family)
        alike.setdefault(key, []).append(member)
    return list(alike.values())


def _structure(graph: Graph, family: Family) -> tuple[tuple[str, int, int], ...]:
    """What reads the family's weights, on which axis, and of how many axes they are."""
    found = []
    for name, axis in family.axes:
        value = graph.initializers[name]
        readers = sorted({use.node.op_type for use in value.uses()})
        found.append((",".join(readers), axis, len(value.shape or ())))
    return tuple(sorted(found))


def _allowed(family: Family, count: int, step: PruneChannels) -> int:
    """How many of these may go so that the rest is no less than min_channels, and a multiple of round_to."""
    total = len(family.classes)
    unit = _unit(family, step)
    kept = max(total - count, math.ceil(step.min_channels / family.width), 1)
    kept = math.ceil(kept / unit) * unit
    return max(0, total - kept)


def _unit(family: Family, step: PruneChannels) -> int:
    """Classes that go together where a multiple of round_to is kept."""
    return step.multiple // math.gcd(step.multiple, family.width)
