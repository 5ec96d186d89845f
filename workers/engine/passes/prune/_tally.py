"""Accuracies of many networks as curves: for each point the mean over the runs and its 95 % interval."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean, stdev

from modelpress.spec.report import Curve, CurvePoint, Quality
from workers.engine.errors import BadData

_T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Two-sided 95 % quantiles of Student's t for 1, 2, ... degrees of freedom."""


class Tally:
    """Scores by curve and by the fraction of weights kept."""

    def __init__(self) -> None:
        self._scores: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
        self.measures = "accuracy"

    def add(self, curve: str, kept: float, quality: Quality) -> None:
        """Records a network of one run.

        Raises:
            BadData: neither accuracy nor agreement was measured.
        """
        score = quality.accuracy
        if score is None:
            self.measures, score = "agreement with the uploaded model", quality.agreement
        if score is None:
            raise BadData(
                "tickets can't be compared: no output of the model is a vector of classes",
                hint="prune.lottery needs a classifier",
            )
        self._scores[curve][kept].append(score)

    def curves(self) -> list[Curve]:
        """One for each name, in the order in which they came."""
        return [
            Curve(
                name=name,
                x="fraction of weights kept",
                y=self.measures,
                points=tuple(point(kept, points[kept]) for kept in sorted(points)),
            )
            for name, points in self._scores.items()
        ]


def point(x: float, scores: Sequence[float]) -> CurvePoint:
    """The mean of 1 to 10 scores; of two or more also its interval, by Student's t."""
    mean, runs = fmean(scores), len(scores)
    if runs == 1:
        return CurvePoint(x=x, mean=mean)
    half = _T_95[runs - 2] * stdev(scores) / math.sqrt(runs)
    return CurvePoint(x=x, mean=mean, low=mean - half, high=mean + half, runs=runs)
