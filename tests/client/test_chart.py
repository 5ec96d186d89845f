"""Curves as a picture: every line is in it, at the places of its figures."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from modelpress import _chart
from modelpress.spec.report import Curve, CurvePoint

SVG = "{http://www.w3.org/2000/svg}"


def curve(name: str, *means: float, y: str = "accuracy", **ends: float) -> Curve:
    points = tuple(CurvePoint(x=x, mean=mean, **ends) for x, mean in enumerate(means))
    return Curve(name=name, x="bits", y=y, points=points)


def drawn(*curves: Curve) -> ElementTree.Element:
    return ElementTree.fromstring(_chart.svg(curves, "title"))


def texts(picture: ElementTree.Element) -> list[str]:
    return [text.text or "" for text in picture.iter(f"{SVG}text")]


def lines(picture: ElementTree.Element) -> dict[str, ElementTree.Element]:
    groups = picture.iter(f"{SVG}g")
    return {group[0].text or "": group[1] for group in groups}


def places(line: ElementTree.Element) -> list[tuple[float, float]]:
    return [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]


def test_higher_figures_are_higher_up() -> None:
    picture = drawn(curve("a", 0.5, 1.0), curve("b", 0.0, 0.75))
    (left, a0), (right, a1) = places(lines(picture)["a"])
    (_, b0), (_, b1) = places(lines(picture)["b"])
    assert left < right
    assert a1 < b1 < a0 < b0
    assert (b0 - a0) == pytest.approx((b0 - a1) / 2)


def test_axes_and_lines_have_names_even_such_that_mean_something_in_xml() -> None:
    picture = drawn(curve("<w> & w", 1, 2))
    assert {"title", "accuracy", "bits", "<w> & w"} <= set(texts(picture))


def test_each_pair_of_axes_has_a_panel_of_its_own() -> None:
    picture = drawn(curve("a", 1, 2), curve("a", 5, 6, y="agreement"))
    tops = [places(line)[0][1] for line in picture.iter(f"{SVG}polyline")]
    assert tops[1] - tops[0] == pytest.approx(_chart._HEIGHT)


def test_of_many_lines_those_that_move_most_are_named() -> None:
    picture = drawn(*(curve(f"layer {n}", 1, 1 - n / 10) for n in range(10)))
    assert len(lines(picture)) == 10
    assert [t for t in texts(picture) if t.startswith("layer")] == [
        f"layer {n}" for n in range(9, 1, -1)
    ]
    assert "2 others in grey" in texts(picture)
    assert lines(picture)["layer 1"].attrib["stroke"] == _chart._GREY


def test_line_has_one_colour_in_every_panel() -> None:
    picture = drawn(
        curve("a", 0, 1), curve("b", 0, 9), curve("b", 0, 1, y="error"), curve("a", 0, 2, y="error")
    )
    colours = [group.attrib["fill"] for group in picture.iter(f"{SVG}g")]
    assert colours[0] == colours[2 + 1] != colours[1] == colours[2]


def test_several_runs_are_a_band() -> None:
    picture = drawn(curve("a", 1, 2, low=0.5, high=2.5))
    (band,) = picture.iter(f"{SVG}polygon")
    assert len(places(band)) == 4


def test_one_point_and_one_figure_are_drawn_too() -> None:
    assert len(list(drawn(curve("a", 1)).iter(f"{SVG}circle"))) == 1
    assert len(set(places(lines(drawn(curve("a", 1, 1)))["a"]))) == 2


def test_nothing_is_no_picture() -> None:
    with pytest.raises(ValueError, match="no curves"):
        _chart.svg([], "title")
