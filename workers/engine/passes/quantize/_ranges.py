"""Ranges of activations, gathered batch by batch in constant memory.

Every range holds 0. `symmetric` ranges are as wide on both sides of it, cut at the same magnitude.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from modelpress.spec.quantize import QuantizeInt8
from workers.engine.passes.quantize._histogram import BINS, MIDDLE, Histogram

STEPS = 255
"""Between the codes of a range."""
_STRIDE = 16
_MAX_CUT = 0.001
"""Of all values but exact zeros, by calibration 'entropy'."""
_TRIALS = np.arange(1, 129) / 128


class Range(Protocol):
    """Gathers values; then says between which bounds they lie."""

    def add(self, values: npt.NDArray[np.floating]) -> None:
        """Takes in one batch of finite values."""

    def bounds(self) -> tuple[float, float]:
        """Lower and upper bound of what was taken in; (0, 0) of nothing."""


def new(step: QuantizeInt8, *, symmetric: bool) -> Range:
    """An empty range of the kind that the step asks for."""
    match step.calibration:
        case "percentile":
            return Percentile(step.percentile)
        case "entropy":
            return Entropy(symmetric=symmetric)
        case "mse":
            return SquaredError(symmetric=symmetric)
        case _:
            return MinMax()


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
    """Bounds that leave out (100 - percent) / 2 percent of the values at each end, to a bin of 1/2048 of the largest magnitude."""

    def __init__(self, percent: float) -> None:
        self._tail = (100.0 - percent) / 200.0
        self._seen = Histogram()

    def add(self, values: npt.NDArray[np.floating]) -> None:
        self._seen.add(values)

    def bounds(self) -> tuple[float, float]:
        seen = self._seen
        total = int(seen.counts.sum())
        if not total or not seen.reach:
            return seen.low, seen.high
        share, edges = np.cumsum(seen.counts) / total, seen.edges
        first = int(np.searchsorted(share, self._tail, side="right"))
        last = int(np.searchsorted(share, 1.0 - self._tail, side="left"))
        cut_low, cut_high = (
            float(edges[min(first, BINS - 1)]),
            float(edges[min(last, BINS - 1) + 1]),
        )
        return min(max(seen.low, cut_low), 0.0), max(min(seen.high, cut_high), 0.0)


class Entropy:
    """The range whose codes lose least information: least Kullback-Leibler divergence (Migacz 2017, 8-bit Inference with TensorRT).

    Magnitudes are cut at a threshold. P: the histogram between the cuts, what lies beyond counted at the ends. Q: the same without what
    lies beyond, merged into 256 codes and spread evenly over the bins that are not empty. Differs in: both signs are seen, each with the
    codes its side of the range has; exact zeros do not count; at most 0.1 % of the values are cut. (Without that bound spikes, as the background
    of drawings leaves them, have a third of the values cut: a spike loses more when it is spread over a code than when it lies beyond all.)
    """

    def __init__(self, *, symmetric: bool) -> None:
        self._symmetric = symmetric
        self._seen = Histogram()

    def add(self, values: npt.NDArray[np.floating]) -> None:
        self._seen.add(values)

    def bounds(self) -> tuple[float, float]:
        seen = self._seen
        if not seen.reach or not seen.without_zeros.sum():
            return seen.low, seen.high
        thresholds = range(self._least_threshold(), MIDDLE + 1, _STRIDE)
        losses = [self._loss(threshold) for threshold in thresholds]
        best = thresholds[len(losses) - 1 - int(np.argmin(losses[::-1]))]
        cut = best * seen.reach / MIDDLE
        return max(seen.low, -cut), min(seen.high, cut)

    def _least_threshold(self) -> int:
        """Bins from 0, on the same grid whatever was seen, that hold all but the share of values that may be cut."""
        counts = self._seen.without_zeros
        magnitudes = np.cumsum(counts[MIDDLE:] + counts[:MIDDLE][::-1])
        needed = int(np.searchsorted(magnitudes, (1 - _MAX_CUT) * magnitudes[-1])) + 1
        least = (STEPS + 1) // 2
        steps = -(-max(needed - least, 0) // _STRIDE)
        return min(least + steps * _STRIDE, MIDDLE)

    def _loss(self, threshold: int) -> float:
        """Divergence of the range that ends `threshold` bins from 0."""
        counts = self._seen.without_zeros
        first, end = MIDDLE - threshold, MIDDLE + threshold
        if not self._symmetric:
            used = np.flatnonzero(counts)
            first = max(first, min(int(used[0]), MIDDLE))
            end = min(end, max(int(used[-1]) + 1, MIDDLE))
        inside = counts[first:end]
        clipped = inside.copy()
        clipped[0] += counts[:first].sum()
        clipped[-1] += counts[end:].sum()
        return _divergence(clipped, _merged(inside, STEPS + 1))


class SquaredError:
    """The range with the least squared error: rounding inside (a 12th of the squared step), cutting outside.

    Exact zeros have a code of their own and no error. The bounds are cut together, then each for itself.
    """

    def __init__(self, *, symmetric: bool) -> None:
        self._symmetric = symmetric
        self._seen = Histogram()

    def add(self, values: npt.NDArray[np.floating]) -> None:
        self._seen.add(values)

    def bounds(self) -> tuple[float, float]:
        low, high = self._seen.low, self._seen.high
        if not self._seen.reach:
            return low, high
        error = self._errors()
        if self._symmetric:
            most = max(-low, high)
            cut = most * _least(lambda part: error(-most * part, most * part))
            return max(low, -cut), min(high, cut)
        both = _least(lambda part: error(low * part, high * part))
        low, high = low * both, high * both
        end = self._seen.high * _least(lambda part: error(low, self._seen.high * part))
        start = self._seen.low * _least(lambda part: error(self._seen.low * part, end))
        return start, end

    def _errors(self) -> Callable[[float, float], float]:
        counts, edges = self._seen.without_zeros, self._seen.edges
        centres = (edges[:-1] + edges[1:]) / 2

        def error(low: float, high: float) -> float:
            beyond = centres - np.clip(centres, low, high)
            inside = float(counts[beyond == 0].sum())
            return float(counts @ beyond**2) + inside * ((high - low) / STEPS) ** 2 / 12

        return error


def _least(error: Callable[[float], float]) -> float:
    """The fraction with the least error; the largest of equals."""
    errors = [error(float(part)) for part in _TRIALS]
    return float(_TRIALS[len(errors) - 1 - int(np.argmin(errors[::-1]))])


def _merged(counts: npt.NDArray[np.float64], codes: int) -> npt.NDArray[np.float64]:
    """Counts of [n] bins as `codes` groups know them: each group's sum spread over its bins that are not empty."""
    group = np.arange(counts.size) * codes // counts.size
    filled = (counts > 0).astype(np.float64)
    sums = np.bincount(group, counts, codes)
    bins = np.maximum(np.bincount(group, filled, codes), 1.0)
    spread: npt.NDArray[np.float64] = (sums / bins)[group] * filled
    return spread


def _divergence(p: npt.NDArray[np.float64], q: npt.NDArray[np.float64]) -> float:
    """Kullback-Leibler divergence of two histograms, the second smoothed where it is empty and the first is not."""
    if not p.sum() or not q.sum():
        return float("inf")
    p, q = p / p.sum(), q / q.sum()
    there = p > 0
    return float((p[there] * np.log(p[there] / np.maximum(q[there], 1e-9))).sum())
