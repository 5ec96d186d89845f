"""What a recipe may ask of prune.magnitude."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from modelpress.spec import recipe
from modelpress.spec.prune import PruneMagnitude
from modelpress.spec.prune.magnitude import Criterion
from modelpress.spec.step import FineTune


def asked(**options: Any) -> PruneMagnitude:
    return PruneMagnitude(**options)


@pytest.mark.parametrize("options", [{}, {"sparsity": 0.5, "pattern": "2:4"}])
def test_exactly_one_target_is_given(options: Any) -> None:
    with pytest.raises(ValidationError, match="exactly one of sparsity and pattern"):
        asked(**options)


@pytest.mark.parametrize("pattern", ["4:4", "5:4"])
def test_pattern_that_keeps_everything_is_refused(pattern: str) -> None:
    with pytest.raises(ValidationError, match="needs N below M"):
        asked(pattern=pattern)


@pytest.mark.parametrize("pattern", ["0:4", "2-4", "2:0", "2:4 ", "1:1000", "²:4"])
def test_pattern_that_is_none_is_refused(pattern: str) -> None:
    with pytest.raises(ValidationError, match="pattern"):
        asked(pattern=pattern)


def test_pattern_is_read() -> None:
    assert asked(pattern="2:4").kept_of == (2, 4)
    assert asked(pattern="16:128").kept_of == (16, 128)


def test_scope_beside_a_pattern_is_refused() -> None:
    with pytest.raises(ValidationError, match="leave scope out"):
        asked(pattern="2:4", scope="layer")


def test_wanda_ranks_within_each_output_unless_told_otherwise() -> None:
    assert asked(sparsity=0.5, criterion="wanda").ranked_in == "row"
    assert asked(sparsity=0.5, criterion="wanda", scope="layer").ranked_in == "layer"
    assert asked(sparsity=0.5).ranked_in == "global"


def test_a_single_shot_has_one_round() -> None:
    with pytest.raises(ValidationError, match="'one_shot' has one round, rounds is 2"):
        asked(sparsity=0.5, schedule="one_shot", rounds=2, fine_tune=FineTune())


NEEDS: dict[str, tuple[bool, bool, tuple[str, ...]]] = {
    "large_final": (False, False, ()),
    "small_final": (False, False, ()),
    "random": (False, False, ()),
    "large_init": (False, False, ("initial",)),
    "magnitude_increase": (False, False, ("initial",)),
    "movement": (False, False, ("initial",)),
    "snip": (True, True, ()),
    "taylor": (True, True, ()),
    "wanda": (True, False, ()),
}


@pytest.mark.parametrize("criterion", get_args(Criterion))
def test_criterion_says_what_it_needs(criterion: Any) -> None:
    step = asked(sparsity=0.5, criterion=criterion)
    assert (step.needs_data, step.needs_labels, step.needs_models) == NEEDS[criterion]


def test_overrides_keep_their_order_where_a_database_sorts_keys() -> None:
    """They are a list, because Postgres gives the keys of an object back in another order."""
    overrides = [{"layers": "fc*", "sparsity": 0.5}, {"layers": "*", "sparsity": 0.0}]
    step = {"kind": "prune.magnitude", "sparsity": 0.9, "overrides": overrides}
    text = json.dumps(recipe.parse({"steps": [step]}).model_dump(mode="json"), sort_keys=True)
    assert [o.layers for o in recipe.parse(json.loads(text)).steps[0].overrides] == ["fc*", "*"]  # type: ignore[union-attr]


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 2])
def test_sparsity_of_a_layer_is_a_fraction_below_1(sparsity: float) -> None:
    with pytest.raises(ValidationError, match="overrides"):
        asked(sparsity=0.5, overrides=[{"layers": "fc", "sparsity": sparsity}])


def test_cap_is_no_limit_where_layers_are_not_ranked_together() -> None:
    assert asked(sparsity=0.99, scope="layer")
    with pytest.raises(ValidationError, match="can't be reached"):
        asked(sparsity=0.99)
