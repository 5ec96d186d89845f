"""Curves as a picture: an SVG that refers to nothing outside itself, a panel for each pair of axes.

Of many lines, those that move most are coloured and named, the same in every panel, the others grey; the same curves give the same bytes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from modelpress.spec.report import Curve, CurvePoint

COLOURS = ("#1b6ca8", "#d1495b", "#2e933c", "#edae49", "#7b4fa3", "#00798c", "#a0522d", "#444444")
"""Of the lines with a name; as many are shown."""

_GREY = "#c8c8c8"
_WIDTH, _HEIGHT = 720, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 240, 34, 44
_TICKS, _MOST_PLACES = 4, 8
_LABEL = 34
"""Characters of a name; the start of a longer one is cut, since layers differ at the end."""


def svg(curves: Sequence[Curve], title: str) -> str:
    """The picture of all curves.

    Raises:
        ValueError: there is no point to draw.
    """
    if not any(curve.points for curve in curves):
        raise ValueError("there are no curves to draw")
    axes = list(dict.fromkeys((curve.x, curve.y) for curve in curves))
    panels = [[c for c in curves if (c.x, c.y) == pair] for pair in axes]
    colours = dict(zip(_most_moving(panels), COLOURS, strict=False))
    height = 28 + _HEIGHT * len(axes)
    body = [
        line
        for number, (panel, (x, y)) in enumerate(zip(panels, axes, strict=True))
        for line in _panel(panel, colours, x, y, 28 + _HEIGHT * number)
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="11">',
            f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
            _text(_WIDTH / 2, 20, title, anchor="middle", size=14),
            *body,
            "</svg>",
            "",
        ]
    )


@dataclass(frozen=True)
class _Scale:
    """From the figures of an axis to places in the picture."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def over(cls, figures: Sequence[float], start: float, end: float) -> _Scale:
        """From the least to the most, a little apart where they are the same."""
        low, high = min(figures), max(figures)
        room = 0.0 if high > low else abs(high) / 10 or 1.0
        return cls(low - room, high + room, start, end)

    def __call__(self, figure: float) -> float:
        share = (figure - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Figures at equal distances."""
        step = (self.high - self.low) / _TICKS
        return [self.low + step * number for number in range(_TICKS + 1)]


def _most_moving(panels: Sequence[Sequence[Curve]]) -> list[str]:
    """Names by how far their lines move, as shares of the farthest of each panel, summed; the farthest first."""
    moves: defaultdict[str, float] = defaultdict(float)
    for panel in panels:
        most = max(map(_spread, panel), default=0.0)
        for curve in panel:
            moves[curve.name] += _spread(curve) / most if most else 0.0
    return sorted(moves, key=lambda name: -moves[name])


def _panel(
    curves: Sequence[Curve], colours: Mapping[str, str], x: str, y: str, top: float
) -> Iterator[str]:
    points = [point for curve in curves for point in curve.points]
    across = _Scale.over([p.x for p in points], _LEFT, _WIDTH - _RIGHT)
    up = _Scale.over([f for p in points for f in _figures(p)], top + _HEIGHT - _BOTTOM, top + _TOP)
    yield _text(_LEFT, top + 22, y, size=12)
    yield from _frame(across, up, x, sorted({p.x for p in points}))
    named = {curve.name: curve for curve in curves if curve.name in colours}
    for curve in curves:
        if curve.name not in named:
            yield _line(curve, across, up, _GREY, 1)
    for name, curve in named.items():
        yield from _band(curve, across, up, colours[name])
        yield _line(curve, across, up, colours[name], 1.8)
    shown = {name: colour for name, colour in colours.items() if name in named}
    yield from _legend(shown, len(curves) - len(named), top + _TOP)


def _frame(across: _Scale, up: _Scale, x: str, places: Sequence[float]) -> Iterator[str]:
    """Lines at equal distances, and a mark at each place where something was measured, unless there are many."""
    for tick in up.ticks():
        yield _rule(across.start, up(tick), across.end, up(tick))
        yield _text(across.start - 6, up(tick) + 4, f"{tick:.3g}", anchor="end")
    for tick in places if len(places) <= _MOST_PLACES else across.ticks():
        yield _rule(across(tick), up.start, across(tick), up.start + 4)
        yield _text(across(tick), up.start + 16, f"{tick:.3g}", anchor="middle")
    yield _text((across.start + across.end) / 2, up.start + 32, x, anchor="middle")


def _legend(colours: Mapping[str, str], others: int, top: float) -> Iterator[str]:
    left = _WIDTH - _RIGHT + 16
    for number, (name, colour) in enumerate(colours.items()):
        at = top + 4 + 18 * number
        yield _rule(left, at, left + 18, at, colour=colour, width=2)
        short = name if len(name) <= _LABEL else f"…{name[1 - _LABEL :]}"
        yield _text(left + 24, at + 4, short)
    if others:
        yield _text(left + 24, top + 8 + 18 * len(colours), f"{others} others in grey")


def _line(curve: Curve, across: _Scale, up: _Scale, colour: str, width: float) -> str:
    """The means; a dot for each, so that a line of one point is seen."""
    places = " ".join(f"{across(p.x):.1f},{up(p.mean):.1f}" for p in curve.points)
    dots = "".join(
        f'<circle cx="{across(p.x):.1f}" cy="{up(p.mean):.1f}" r="{width:g}"/>'
        for p in curve.points
    )
    return (
        f'<g fill="{colour}"><title>{escape(curve.name)}</title>'
        f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="{width:g}"/>{dots}</g>'
    )


def _band(curve: Curve, across: _Scale, up: _Scale, colour: str) -> Iterator[str]:
    """The intervals, where there was more than one run."""
    lows = [(across(p.x), up(p.low)) for p in curve.points if p.low is not None]
    highs = [(across(p.x), up(p.high)) for p in curve.points if p.high is not None]
    if lows and highs:
        places = " ".join(f"{x:.1f},{y:.1f}" for x, y in [*lows, *reversed(highs)])
        yield f'<polygon points="{places}" fill="{colour}" opacity="0.15"/>'


def _figures(point: CurvePoint) -> list[float]:
    return [f for f in (point.low, point.mean, point.high) if f is not None]


def _spread(curve: Curve) -> float:
    means = [point.mean for point in curve.points]
    return max(means, default=0.0) - min(means, default=0.0)


def _rule(
    x1: float, y1: float, x2: float, y2: float, *, colour: str = "#dddddd", width: float = 1
) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
        f'stroke="{colour}" stroke-width="{width:g}"/>'
    )


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 11) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">'
        f"{escape(text)}</text>"
    )
