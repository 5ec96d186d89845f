"""k-means of numbers: on a line, the members of a cluster are neighbours, so that an iteration costs k binary searches.

    cost = sum over all values of (value - centroid of its cluster)^2        (Han et al. 2016, arXiv 1510.00149, eq. 2)

Lloyd's iterations on sorted values and their prefix sums. A centroid without members moves into the cluster of the largest error, which
can only lower the cost.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]
MAX_ITERATIONS = 300


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
    """Centroids to begin with: evenly over the range, at even shares of the values, or at random values."""
    values = line.values
    if initialization == "linear":
        return np.linspace(values[0], values[-1], count)
    if initialization == "density":
        return np.quantile(values, (np.arange(count) + 0.5) / count)
    return np.sort(rng.choice(np.unique(values), count, replace=False))


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
