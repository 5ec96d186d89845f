"""Ranges of activations, gathered batch by batch in constant memory."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

_BINS = 4096


class Range(Protocol):
    """Gathers values; then says between which bounds they lie."""

    def add(self, values: npt.NDArray[np.floating]) -> None:
        """Takes in one batch of finite values."""

    def bounds(self) -> tuple[float, float]:
        """Lower and upper bound of what was taken in; (0, 0) of nothing."""


class MinMax:
    """The smallest and the largest value seen."""

    def __init__(self) -> None:
        self._low, self._high = 0.0, 0.0

    def add(self, values: npt.NDArray[np.floating]) -> None:
        self._low = min(self._low, float(values.min(initial=0.0)))
        self._high = max(self._high, float(values.max(initial=0.0)))

    def bounds(self) -> tuple[float, float]:
        return self._low, self._high


class Percentile:
    """Bounds that leave out (100 - percent) / 2 percent of the values at each end, to a bin of 1/2048 of the largest magnitude.

    A histogram over -reach..reach. When a value lies beyond, `reach` doubles and bins merge in pairs: no batch is seen twice and
    no count is lost, whatever the order of the batches.
    """

    def __init__(self, percent: float) -> None:
        self._tail = (100.0 - percent) / 200.0
        self._counts = np.zeros(_BINS, dtype=np.int64)
        self._reach = 0.0
        self._extremes = MinMax()

    def add(self, values: npt.NDArray[np.floating]) -> None:
        self._extremes.add(values)
        self._widen(max(map(abs, self._extremes.bounds())))
        if self._reach:
            span = (-self._reach, self._reach)
            self._counts += np.histogram(values, bins=_BINS, range=span)[0]
        else:
            self._counts[_BINS // 2] += values.size

    def bounds(self) -> tuple[float, float]:
        low, high = self._extremes.bounds()
        total = int(self._counts.sum())
        if not total or not self._reach:
            return low, high
        share = np.cumsum(self._counts) / total
        edges = np.linspace(-self._reach, self._reach, _BINS + 1)
        first = int(np.searchsorted(share, self._tail, side="right"))
        last = int(np.searchsorted(share, 1.0 - self._tail, side="left"))
        cut_low, cut_high = (
            float(edges[min(first, _BINS - 1)]),
            float(edges[min(last, _BINS - 1) + 1]),
        )
        return min(max(low, cut_low), 0.0), max(min(high, cut_high), 0.0)

    def _widen(self, largest: float) -> None:
        if largest and not self._reach:
            self._reach = float(2.0 ** np.ceil(np.log2(largest)))
        while self._reach < largest:
            quarter = _BINS // 4
            merged = self._counts.reshape(-1, 2).sum(axis=1)
            self._counts = np.zeros_like(self._counts)
            self._counts[quarter : 3 * quarter] = merged
            self._reach *= 2
