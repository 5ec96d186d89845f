"""The curves of a stage as people read them: a table for each picture, a column for each line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from rich import box
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from modelpress.spec.report import Curve, CurvePoint

MOST_COLUMNS = 6
"""Of lines; more of them are rows."""

_FRACTIONS = ("accuracy", "agreement", "fraction", "sparsity")
"""How names of figures begin that are shown in percent."""


def tables(curves: Sequence[Curve]) -> Iterator[Padding]:
    """A table for each pair of axes, in the order in which they come."""
    for axes in dict.fromkeys((curve.x, curve.y) for curve in curves):
        lines = [c for c in curves if (c.x, c.y) == axes]
        draw = _table if len(lines) <= MOST_COLUMNS else _turned
        yield Padding(draw(lines, *axes), (0, 0, 0, 2))


def _turned(curves: Sequence[Curve], x: str, y: str) -> Table:
    """The same with a row for each line."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=f"{y} by {x}", title_justify="left")
    table.add_column("", overflow="fold")
    places = sorted({point.x for curve in curves for point in curve.points}, reverse=True)
    for at in places:
        table.add_column(_figure(x)(at), justify="right", no_wrap=True)
    for curve in curves:
        points = {point.x: point for point in curve.points}
        table.add_row(curve.name, *(_cell(points.get(at), _figure(y)) for at in places))
    return table


def _table(curves: Sequence[Curve], x: str, y: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=f"{y} by {x}", title_justify="left")
    table.add_column(x.split()[0] if x.startswith(_FRACTIONS) else x, justify="right", no_wrap=True)
    lines = [{point.x: point for point in curve.points} for curve in curves]
    for curve in curves:
        table.add_column(curve.name, justify="right")
    for at in sorted({point.x for curve in curves for point in curve.points}, reverse=True):
        table.add_row(_figure(x)(at), *(_cell(line.get(at), _figure(y)) for line in lines))
    return table


def _cell(point: CurvePoint | None, figure: Callable[[float], str]) -> Text:
    """The mean, and below it the interval where there was more than one run."""
    if point is None:
        return Text("-")
    if point.low is None or point.high is None:
        return Text(figure(point.mean))
    interval = f"{figure(point.low)} to {figure(point.high)}"
    return Text.assemble(figure(point.mean), "\n", (interval, "dim"))


def _figure(name: str) -> Callable[[float], str]:
    return (lambda v: f"{v:.2%}") if name.startswith(_FRACTIONS) else (lambda v: f"{v:.4g}")
