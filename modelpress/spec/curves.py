"""Measurements as curves."""

from __future__ import annotations

from modelpress.spec.report import Curve, CurvePoint
from modelpress.spec.sensitivity import METHODS, Measurement, Metric, Sensitivity

_Y: dict[Metric, str] = {
    "accuracy": "accuracy on training samples",
    "agreement": "agreement with the float network",
    "error": "relative error of the outputs",
}


def of_sensitivity(found: Sensitivity) -> list[Curve]:
    """A line for each method and layer, of the most telling metric."""
    return [
        Curve(
            name=name,
            x=METHODS[method].unit,
            y=f"{_Y[found.metric]}, {method}",
            points=tuple(_point(row, found.metric) for row in rows),
        )
        for method in found.methods
        for name, rows in found.lines(method).items()
    ]


def _point(row: Measurement, metric: Metric) -> CurvePoint:
    value = getattr(row, metric)
    assert value is not None, "all rows have what the first has"
    return CurvePoint(x=row.amount, mean=value)
