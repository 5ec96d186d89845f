"""Accuracy against the weights that are kept: as a picture, and as text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("svg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from modelpress.spec.report import Curve
from workers.engine.passes.prune import _tally

TICKS = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
LABELS = {
    "ticket": "winning ticket",
    "random_reinit": "same mask, weights in random order",
    "signed_permutation": "same mask and signs, magnitudes in random order",
    "signed_constant": "same mask and signs, constant magnitude",
    "random_mask": "random mask, same weights",
}


def draw(curves: Sequence[Curve], title: str, path: Path) -> Path:
    """Writes a picture; the same figures give the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    matplotlib.rcParams.update({"svg.hashsalt": path.stem, "font.size": 9})
    figure, axes = plt.subplots(figsize=(7, 4.2))
    for curve in curves:
        _line(axes, curve)
    _scale(axes, min(point.x for curve in curves for point in curve.points))
    axes.set_title(title)
    axes.legend(loc="lower left", frameon=False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return path


def joined(runs: Sequence[Sequence[Curve]]) -> list[Curve]:
    """The curves of several runs as one of each name, with means and intervals. Each run has the same names and fractions."""
    return [_joined(same) for same in zip(*runs, strict=True)]


def _joined(same: Sequence[Curve]) -> Curve:
    points = zip(*(curve.points for curve in same), strict=True)
    found = tuple(_tally.point(at[0].x, [point.mean for point in at]) for at in points)
    return same[0].model_copy(update={"points": found})


def near(curve: Curve, kept: float) -> str:
    """The point within a tenth of a fraction kept, as text: the output layer is pruned half as fast, which shifts tickets a little."""
    point = min(curve.points, key=lambda p: abs(p.x - kept))
    if abs(point.x - kept) > 0.1 * kept:
        return "-"
    half = f" ± {point.high - point.mean:.3f}" if point.high is not None else ""
    return f"{point.mean:.3f}{half}"


def _line(axes: Axes, curve: Curve) -> None:
    """The means, and their 95 % intervals as a band."""
    xs = [point.x for point in curve.points]
    label = LABELS.get(curve.name, curve.name)
    (line,) = axes.plot(xs, [p.mean for p in curve.points], marker=".", label=label)
    lows = [p.mean if p.low is None else p.low for p in curve.points]
    highs = [p.mean if p.high is None else p.high for p in curve.points]
    axes.fill_between(xs, lows, highs, color=line.get_color(), alpha=0.15, linewidth=0)


def _scale(axes: Axes, lowest: float) -> None:
    """Weights kept from all to few, as in the papers."""
    axes.set_xscale("log")
    axes.set_xlim(1.05, lowest * 0.95)
    axes.set_xticks([tick for tick in TICKS if tick >= lowest])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:g} %"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("weights kept")
    axes.set_ylabel("accuracy on 1,000 test images")
    axes.grid(alpha=0.3)
