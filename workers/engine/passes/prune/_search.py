"""How much must go for a network to be so many times cheaper or faster."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from workers.engine.graph.channels.plan import Removed
from workers.engine.passes.prune._selection import Classes

Ratio = Callable[[Removed], float]
"""How many times cheaper the network is without these channels."""

TOLERANCE = 1.005
"""A ratio up to so far above the one asked for is no reason to search on."""
MOST_TIMINGS = 8
_MOST_BLOCKS = 64
_STEPS = 14
"""Halvings of the search: the fraction is found to 0.01 %."""
_ENOUGH = 1.05
"""The same where a ratio is measured by the clock."""
_APART = 1.02
"""MAC ratios closer than this take the same time."""


@dataclass(frozen=True)
class Found:
    """What goes, and how many times cheaper that is."""

    removed: Removed
    ratio: float


@dataclass(frozen=True)
class Timing:
    """How many times faster than before, by the clock."""

    ratio: float
    """Median over stretches of interleaved runs."""
    low: float
    """The lowest of them."""
    high: float


@dataclass(frozen=True)
class Timed:
    """What goes, how many times fewer multiply-accumulates that is, and how many times faster."""

    removed: Removed
    macs_ratio: float
    timing: Timing


def cheapest(
    choose: Callable[[float], Removed],
    ratio: Ratio,
    wanted: float,
    most: float,
    blocks: Callable[[Removed], Sequence[tuple[Hashable, Classes]]],
) -> Found:
    """The least that must go for `ratio` to be at least `wanted`; what goes at fraction `most` where that is not enough.

    Args:
        choose: Answers for a fraction what goes; more for a larger one.
        ratio: Measures it.
        wanted: The ratio wanted.
        most: The largest fraction to try.
        blocks: Answers parts of what goes, each with the layer it is of, in the order in which they come back if they can.
    """
    more, least = _at(choose, ratio, most), _at(choose, ratio, 0.0)
    if least.ratio >= wanted or more.ratio < wanted:
        return least if least.ratio >= wanted else more
    low, high = 0.0, most
    for _ in range(_STEPS):
        if more.ratio <= wanted * TOLERANCE:
            return more
        middle = (low + high) / 2
        found = _at(choose, ratio, middle)
        if found.ratio >= wanted:
            more, high = found, middle
        else:
            low = middle
    return _without_surplus(more, ratio, wanted, blocks(more.removed))


def fastest(
    at: Callable[[float], Found], time: Callable[[Removed], Timing], wanted: float, most: float
) -> Sequence[Timed]:
    """Networks tried on the way to one that is `wanted` times faster, the last one the best.

    The time is a staircase with noise, the multiply-accumulates are not: the search is for a MAC ratio, from `wanted` on,
    and ends within 5 % above, at neighbours that hardly differ, or after 8 measurements.

    Args:
        at: Answers for a MAC ratio what goes.
        time: Measures it.
        wanted: The ratio of times wanted.
        most: The largest MAC ratio to try.
    """
    tried: list[Timed] = []
    slow, quick = 1.0, math.inf
    guess = min(wanted, most)
    while len(tried) < MOST_TIMINGS:
        found = at(guess)
        timed = Timed(found.removed, found.ratio, time(found.removed))
        tried.append(timed)
        if timed.timing.ratio >= wanted:
            quick = min(guess, quick)
        else:
            slow = max(guess, slow)
        if (
            wanted <= timed.timing.ratio <= wanted * _ENOUGH
            or slow >= most
            or quick / slow < _APART
        ):
            break
        guess = min(_next(guess, wanted / timed.timing.ratio, slow, quick), most)
    return sorted(tried, key=lambda timed: _merit(timed, wanted))


def _at(choose: Callable[[float], Removed], ratio: Ratio, fraction: float) -> Found:
    removed = choose(fraction)
    return Found(removed, ratio(removed))


def _without_surplus(
    found: Found, ratio: Ratio, wanted: float, blocks: Sequence[tuple[Hashable, Classes]]
) -> Found:
    """Takes less where the last step of the fraction, of whole blocks in several layers, took more than was wanted."""
    full: set[Hashable] = set()
    for layer, block in blocks[:_MOST_BLOCKS]:
        if layer in full or found.ratio <= wanted * TOLERANCE:
            continue
        removed = found.removed.copy()
        removed[block] = False
        fewer = Found(removed, ratio(removed))
        if fewer.ratio >= wanted:
            found = fewer
        else:
            full.add(layer)
    return found


def _next(guess: float, lacking: float, slow: float, quick: float) -> float:
    """Time falls about as the multiply-accumulates do; between two known ones, the middle is as good where that leads out."""
    wanted = guess * lacking
    if math.isinf(quick):
        return max(wanted, slow * _APART)
    margin = (quick / slow) ** 0.1
    inside = slow * margin < wanted < quick / margin
    return wanted if inside else math.sqrt(slow * quick)


def _merit(timed: Timed, wanted: float) -> tuple[bool, float]:
    """Those that are fast enough last, of them the one that computes most; of the others the fastest."""
    enough = timed.timing.ratio >= wanted
    return enough, -timed.macs_ratio if enough else timed.timing.ratio
