"""A histogram of values that are seen once, in constant memory."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

BINS = 4096
MIDDLE = BINS // 2
_FLOAT32_SPANS = 2.0**126
"""How far on both sides of 0 values may lie for their differences to be float32."""


class Histogram:
    """Counts over -reach..reach. When a value lies beyond, `reach` doubles and bins merge in pairs.

    No batch is seen twice and no count is lost, whatever the order of the batches. `reach` is less than twice the largest magnitude.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(BINS, dtype=np.int64)
        self.reach = 0.0
        self.low, self.high = 0.0, 0.0
        self.zeros = 0
        """How many values were exactly 0; they are in the bin right of the middle."""

    def add(self, values: npt.NDArray[np.floating]) -> None:
        """Takes in one batch of finite values."""
        self.low = min(self.low, float(values.min(initial=0.0)))
        self.high = max(self.high, float(values.max(initial=0.0)))
        self.zeros += int(values.size - np.count_nonzero(values))
        self._widen(max(-self.low, self.high))
        if self.reach:
            span = (-self.reach, self.reach)
            wide = values.astype(np.float64) if self.reach > _FLOAT32_SPANS else values
            self.counts += np.histogram(wide, bins=BINS, range=span)[0]
        else:
            self.counts[MIDDLE] += values.size

    @property
    def edges(self) -> npt.NDArray[np.float64]:
        """Where the bins begin, and the last one ends: [BINS + 1]."""
        return np.linspace(-self.reach, self.reach, BINS + 1)

    @property
    def without_zeros(self) -> npt.NDArray[np.float64]:
        """Counts of the values that are not exactly 0, which no code represents better than another."""
        counts = self.counts.astype(np.float64)
        counts[MIDDLE] -= self.zeros
        return counts

    def _widen(self, largest: float) -> None:
        if largest and not self.reach:
            self.reach = float(2.0 ** np.ceil(np.log2(largest)))
        while self.reach < largest:
            quarter = BINS // 4
            merged = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.zeros_like(self.counts)
            self.counts[quarter : 3 * quarter] = merged
            self.reach *= 2
