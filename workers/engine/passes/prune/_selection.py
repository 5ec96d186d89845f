"""Which classes of channels go: the lowest scores, within the limits of each layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from modelpress.spec.prune import PruneChannels
from workers.engine.graph import Graph
from workers.engine.graph.channels.plan import Family, Plan, Removed
from workers.engine.passes.prune._importance import Scores

_STEPS = 14
"""Halvings of the search: the fraction is found to 0.01 %."""


def choose(
    plan: Plan, families: Sequence[Family], scores: Scores, step: PruneChannels, fraction: float
) -> Removed:
    """The classes that go when this fraction of all channels goes."""
    removed: Removed = np.zeros(plan.classes.count, dtype=np.bool_)
    for group in _groups(plan.flow.book.graph, families, step.scope):
        chosen = _lowest(group, scores, fraction, step.max_layer_fraction)
        for family, lowest in zip(group, chosen, strict=True):
            removed[lowest[: _allowed(family, len(lowest), step)]] = True
    return plan.spare(removed, scores, step.min_channels)


def search(
    least: Callable[[float], tuple[Removed, float]], ratio: float, most: float
) -> tuple[Removed, float]:
    """The smallest fraction whose result is at least `ratio` times cheaper; with `most` where none is.

    Args:
        least: Answers, for a fraction, what goes and how many times cheaper that is.
        ratio: The ratio wanted.
        most: The largest fraction to try.
    """
    best = least(most)
    low, high = 0.0, most
    if best[1] < ratio:
        return best
    for _ in range(_STEPS):
        middle = (low + high) / 2
        found = least(middle)
        if found[1] >= ratio:
            best, high = found, middle
        else:
            low = middle
        if best[1] <= ratio * 1.002:
            break
    return best


def _groups(graph: Graph, families: Sequence[Family], scope: str) -> list[list[Family]]:
    """Families that are ranked together."""
    if scope == "layer":
        return [[family] for family in families]
    if scope == "global":
        return [list(families)]
    alike: dict[object, list[Family]] = {}
    for family in families:
        alike.setdefault(_structure(graph, family), []).append(family)
    return list(alike.values())


def _structure(graph: Graph, family: Family) -> tuple[tuple[str, int, int], ...]:
    """What reads the family's weights, on which axis, and of how many axes they are."""
    found = []
    for name, axis in family.axes:
        value = graph.initializers[name]
        readers = sorted({use.node.op_type for use in value.uses()})
        found.append((",".join(readers), axis, len(value.shape or ())))
    return tuple(sorted(found))


def _lowest(
    group: Sequence[Family], scores: Scores, fraction: float, cap: float
) -> list[npt.NDArray[np.int64]]:
    """Each family's classes that are among the lowest of the group, lowest first.

    Scores are divided by their mean in the family, so that layers of many weights are not worth more for that alone.
    """
    ranked = [f.classes[np.argsort(scores[f.classes], kind="stable")] for f in group]
    capped = [classes[: int(cap * len(classes))] for classes in ranked]
    means = [max(float(scores[f.classes].mean()), 1e-30) for f in group]
    joined = np.concatenate(
        [scores[classes] / mean for classes, mean in zip(capped, means, strict=True)]
    )
    count = math.floor(fraction * sum(len(f.classes) for f in group) + 1e-9)
    chosen = np.zeros(len(joined), dtype=np.bool_)
    chosen[np.argsort(joined, kind="stable")[:count]] = True
    parts = np.split(chosen, np.cumsum([len(classes) for classes in capped])[:-1])
    return [classes[part] for classes, part in zip(capped, parts, strict=True)]


def _allowed(family: Family, count: int, step: PruneChannels) -> int:
    """How many of these may go so that the rest is no less than min_channels, and a multiple of round_to."""
    total = len(family.classes)
    unit = step.round_to // math.gcd(step.round_to, family.width)
    kept = max(total - count, math.ceil(step.min_channels / family.width), 1)
    kept = math.ceil(kept / unit) * unit
    return max(0, total - kept)
