"""The table of sensitivities: what it covers, and which amounts a step may ask for."""

from __future__ import annotations

from typing import Any

import pytest

from modelpress.spec.analyze import AnalyzeSensitivity
from modelpress.spec.problem import Refused
from modelpress.spec.recipe import Recipe, parse
from modelpress.spec.sensitivity import METHODS, Layer, Measurement, Sensitivity

ANALYZE = {"kind": "analyze.sensitivity"}
BITS = {"kind": "quantize.bits"}
MIXED = {"kind": "quantize.bits", "mixed": {"average_bits": 4}}
PRUNE = {"kind": "prune.magnitude", "sparsity": 0.5}
CODE = {"kind": "code.entropy"}


def row(layer: str = "w", method: str = "bits", amount: float = 4, **fields: Any) -> Measurement:
    body = {"bytes_before": 100, "bytes_after": 20, "error": 0.5, "agreement": 0.9, "accuracy": 0.8}
    return Measurement.model_validate(
        {"layer": layer, "method": method, "amount": amount, **body, **fields}
    )


def table(*rows: Measurement, **fields: Any) -> Sensitivity:
    layers = dict.fromkeys(r.layer for r in rows)
    body = {"model_sha256": "ab", "seed": 0, "samples": 8, "group_size": 32, "accuracy": 0.9}
    shaped = tuple(Layer(name=name, kind="Gemm", shape=(4, 6)) for name in layers)
    return Sensitivity.model_validate({**body, "layers": shaped, "rows": rows, **fields})


def recipe(*steps: dict[str, Any]) -> Recipe:
    return Recipe.model_validate({"steps": steps})


def codes(*steps: dict[str, Any]) -> list[tuple[str, str]]:
    found = recipe(*steps).problems(has_data=True, has_labels=True)
    return [(problem.pointer, problem.code) for problem in found]


def test_lines_are_in_order_of_the_amount() -> None:
    found = table(row(amount=8), row(amount=2), row("v", "magnitude", 0.5))
    assert found.methods == ("bits", "magnitude")
    assert [r.amount for r in found.lines("bits")["w"]] == [2, 8]
    assert found.errors("magnitude") == {"v": {0.5: 0.5}}


@pytest.mark.parametrize(
    ("shapes", "amounts", "lacking"),
    [
        ({"w": (4, 6)}, [4], ""),
        ({"w": (4, 6)}, [2, 3, 4], "'w' was not measured at 2, 3 bits of a weight"),
        ({"w": (6, 4)}, [4], "'w' was measured with the shape [4, 6], it has [6, 4]"),
        ({"w": (4, 6), "u": (1,)}, [4], "'u' was not measured with 'bits'"),
    ],
)
def test_table_knows_what_it_lacks(
    shapes: dict[str, tuple[int, ...]], amounts: list[float], lacking: str
) -> None:
    assert table(row(amount=4)).missing("bits", shapes, amounts) == lacking


def test_metric_is_the_most_telling_that_there_is() -> None:
    assert table(row()).metric == "accuracy"
    assert table(row(accuracy=None)).metric == "agreement"
    assert table(row(accuracy=None, agreement=None)).metric == "error"


def test_table_is_about_one_model_as_it_was_uploaded() -> None:
    assert table(row()).unlike("ab") == ""
    assert "SHA-256 ab..., this one's is cd..." in table(row()).unlike("cd")
    assert "after prune.magnitude had changed" in table(row(), after=("prune.magnitude",)).unlike(
        "ab"
    )


def test_usual_amounts_are_possible_ones() -> None:
    step = AnalyzeSensitivity(amounts={m: known.usual for m, known in METHODS.items()})
    assert {m: step.amounts_of(m) for m in METHODS} == {m: k.usual for m, k in METHODS.items()}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"methods": ["bits", "bits"]}, "must differ"),
        ({"methods": ["bits"], "amounts": {"int8": [8]}}, "'int8', which is not among methods"),
        ({"amounts": {"bits": [3.5]}}, "3.5 is no amount of 'bits'"),
        ({"amounts": {"bits": [9]}}, "a whole number from 2 to 8"),
        ({"amounts": {"magnitude": [1]}}, "a number from 0.01 to 0.99"),
        ({"amounts": {"magnitude": []}}, "has 0 amounts"),
    ],
)
def test_step_refuses_what_it_cannot_measure(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        AnalyzeSensitivity.model_validate(options)


def test_analysis_may_stand_anywhere_before_integers() -> None:
    assert codes(ANALYZE) == []
    assert codes(ANALYZE, PRUNE, ANALYZE, CODE) == []
    assert codes(BITS, ANALYZE) == [("/steps/1/kind", "wrong_order")]
    assert codes(CODE, ANALYZE) == [("/steps/1/kind", "wrong_order")]
    assert recipe(PRUNE, ANALYZE).packs is False
    assert recipe(ANALYZE, CODE).packs is True


def test_recipe_uses_sensitivities_until_a_step_changes_the_model() -> None:
    assert recipe(MIXED).uses_sensitivity
    assert recipe(ANALYZE, MIXED).uses_sensitivity
    assert recipe(
        {"kind": "prune.channels", "fraction": 0.5, "scope": "sensitivity"}
    ).uses_sensitivity
    assert not recipe({"kind": "prune.channels", "fraction": 0.5}).uses_sensitivity
    assert not recipe(BITS).uses_sensitivity
    assert not recipe(PRUNE, MIXED).uses_sensitivity


def test_step_without_a_method_is_refused() -> None:
    with pytest.raises(Refused):
        parse({"steps": [{**ANALYZE, "methods": []}]})
