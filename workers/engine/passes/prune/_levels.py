"""Fractions of layers that cost the network the same, by what was measured of each layer alone.

    share(layer, level) = the largest fraction of its channels whose error alone is no more than the level

Errors between measured fractions lie on straight lines from 0 at 0; beyond the last the line goes on. Which level it is follows from
how many channels are to go in all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from workers.engine.graph.channels.plan import Key

_HALVINGS = 50
Floats = npt.NDArray[np.float64]


class Line(NamedTuple):
    """Errors by fraction, both from 0 on and never falling."""

    fractions: Floats
    errors: Floats

    @classmethod
    def of(cls, measured: Mapping[float, float]) -> Line:
        """Through the figures of a layer; where a larger fraction moved outputs less, the smaller one's error counts."""
        fractions = np.array([0.0, *sorted(measured)])
        errors = np.maximum.accumulate([0.0, *(measured[f] for f in sorted(measured))])
        return cls(fractions, errors)

    def share(self, level: float) -> float:
        """The largest fraction whose error is no more than the level, at most 1."""
        if level < self.errors[-1]:
            at = int(np.searchsorted(self.errors, level, side="right"))
            (f0, f1), (e0, e1) = self.fractions[at - 1 : at + 1], self.errors[at - 1 : at + 1]
            return float(f0 + (f1 - f0) * (level - e0) / (e1 - e0))
        slope = self.errors[-1] / self.fractions[-1]
        beyond = (level - self.errors[-1]) / max(slope, 1e-30)
        return float(min(self.fractions[-1] + beyond, 1.0))


@dataclass(frozen=True)
class Levels:
    """What was measured of each family of channels."""

    lines: Mapping[Key, Line]

    def shares(
        self, families: Sequence[tuple[Key, int]], fraction: float, cap: float
    ) -> list[float]:
        """The fraction of each family, so that this fraction of all their channels goes; none above the cap.

        A family that was not measured loses the fraction itself.

        families: What each is known by, and its channels.
        """
        totals = np.array([total for _, total in families], np.float64)
        wanted = fraction * float(totals.sum())

        def at(level: float) -> list[float]:
            found = (self.lines.get(key) for key, _ in families)
            return [min(fraction if line is None else line.share(level), cap) for line in found]

        low, high = 0.0, self._most(families)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            enough = float(np.dot(at(middle), totals)) >= wanted
            low, high = (low, middle) if enough else (middle, high)
        return at(high)

    def _most(self, families: Sequence[tuple[Key, int]]) -> float:
        """A level at which every family is gone."""
        lines = [self.lines[key] for key, _ in families if key in self.lines]
        return max((float(2 * x.errors[-1] / x.fractions[-1]) for x in lines), default=0.0) + 1e-9
