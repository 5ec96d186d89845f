"""k-means of numbers: on a line, the members of a cluster are neighbours, so that an iteration costs k binary searches.

    cost = sum over all values of (value - centroid of its cluster)^2        (Han et al. 2016, arXiv 1510.00149, eq. 2)

Lloyd's iterations on sorted values and their prefix sums. A centroid without members moves into the cluster of the largest error, which
can only lower the cost. Where they begin decides which of many minima they reach; on a line the least of all is found by dynamic
programming over the places of the cuts, here exactly for up to CUTS distinct values, and for more between as many cuts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]
MAX_ITERATIONS = 300
CUTS = 1024
"""Between which dynamic programming chooses."""


@dataclass(frozen=True)
class Line:
    """Sorted values with the sums that clusters are computed from."""

    values: Numbers
    sums: Numbers
    """Of the first i values."""
    squares: Numbers
    """Of the first i squared values."""

    @classmethod
    def of(cls, values: npt.ArrayLike) -> Line:
        """Values of any shape."""
        ordered = np.sort(np.asarray(values, np.float64).reshape(-1))
        return cls(ordered, _prefix(ordered), _prefix(ordered**2))

    def cuts(self, centroids: Numbers) -> npt.NDArray[np.intp]:
        """Where the members of each ascending centroid begin, and the end."""
        inner = np.searchsorted(self.values, middles(centroids), side="right")
        return np.concatenate([[0], inner, [self.values.size]])

    def errors(self, centroids: Numbers) -> Numbers:
        """The squared error of each cluster."""
        cuts = self.cuts(centroids)
        count, total, square = np.diff(cuts), np.diff(self.sums[cuts]), np.diff(self.squares[cuts])
        found: Numbers = square - 2 * centroids * total + count * centroids**2
        return found.clip(0)

    def cost(self, centroids: Numbers) -> float:
        """The squared error of all values."""
        return float(self.errors(centroids).sum())


def fit(line: Line, count: int, initialization: str, rng: np.random.Generator) -> Numbers:
    """At most `count` ascending centroids; the values themselves where there are no more."""
    distinct = np.unique(line.values)
    if distinct.size <= count:
        return distinct
    centroids = begin(line, count, initialization, rng)
    for _ in range(MAX_ITERATIONS):
        moved = step(line, centroids)
        if np.array_equal(moved, centroids):
            break
        centroids = moved
    return centroids


def begin(line: Line, count: int, initialization: str, rng: np.random.Generator) -> Numbers:
    """Centroids to begin with: evenly over the range, at even shares of the values, at random values, or the best there are."""
    values = line.values
    if initialization == "optimal":
        return optimal(line, count)
    if initialization == "linear":
        return np.linspace(values[0], values[-1], count)
    if initialization == "density":
        return np.quantile(values, (np.arange(count) + 0.5) / count)
    return np.sort(rng.choice(np.unique(values), count, replace=False))


def optimal(line: Line, count: int) -> Numbers:
    """The means of the `count` runs of neighbours whose errors have the least sum."""
    cuts = _possible_cuts(line.values)
    start, end = cuts[:-1, None], cuts[None, 1:]
    length = np.maximum(end - start, 1)
    total = line.sums[end] - line.sums[start]
    run = line.squares[end] - line.squares[start] - total**2 / length
    run = np.where(end > start, run, np.inf)
    best, back = run[0], []
    for _ in range(count - 1):
        sums = best[:-1, None] + run[1:]
        back.append(sums.argmin(axis=0) + 1)
        best = np.concatenate([[np.inf], sums.min(axis=0)[1:]])
    bounds = [len(cuts) - 1]
    for came_from in reversed(back):
        bounds.append(int(came_from[bounds[-1] - 1]))
    ends = cuts[[0, *reversed(bounds)]]
    found: Numbers = np.diff(line.sums[ends]) / np.diff(ends)
    return found


def _possible_cuts(values: Numbers) -> npt.NDArray[np.intp]:
    """Where runs may begin and end: between any distinct values, or evenly over the range and over the values."""
    starts = np.flatnonzero(np.diff(values)) + 1
    if starts.size >= CUTS:
        evenly = np.searchsorted(values, np.linspace(values[0], values[-1], CUTS // 2))
        shares = np.linspace(0, values.size, CUTS // 2).astype(np.intp)
        wanted = np.searchsorted(starts, np.union1d(evenly, shares)).clip(0, starts.size - 1)
        starts = starts[np.unique(wanted)]
    return np.concatenate([[0], starts, [values.size]])


def step(line: Line, centroids: Numbers) -> Numbers:
    """Each centroid at the mean of its members: the cost does not rise."""
    cuts = line.cuts(centroids)
    sizes = np.diff(cuts)
    means = np.diff(line.sums[cuts]) / np.maximum(sizes, 1)
    moved = np.where(sizes > 0, means, centroids)
    empty = np.flatnonzero(sizes == 0)
    if empty.size:
        moved = _revive(line, moved, empty)
    return np.sort(moved)


def assign(values: npt.ArrayLike, centroids: Numbers) -> npt.NDArray[np.intp]:
    """The nearest of the ascending centroids for each value, in the shape of the values."""
    found: npt.NDArray[np.intp] = np.searchsorted(
        middles(centroids), np.asarray(values, np.float64), side="left"
    )
    return found


def middles(centroids: Numbers) -> Numbers:
    """What lies between neighbours."""
    found: Numbers = (centroids[1:] + centroids[:-1]) / 2
    return found


def _revive(line: Line, centroids: Numbers, empty: npt.NDArray[np.intp]) -> Numbers:
    """Gives centroids without members the farthest value of the clusters of the largest error, one each."""
    lively = np.delete(centroids, empty)
    cuts, errors = line.cuts(lively), line.errors(lively)
    worst = [index for index in np.argsort(-errors, kind="stable") if errors[index] > 0]
    moved = centroids.copy()
    for place, index in zip(empty, worst, strict=False):
        ends = line.values[[cuts[index], cuts[index + 1] - 1]]
        moved[place] = ends[np.abs(ends - lively[index]).argmax()]
    return moved


def _prefix(values: Numbers) -> Numbers:
    return np.concatenate([[0.0], np.cumsum(values)])
