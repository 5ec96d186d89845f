"""Recipes: what is refused, with which reason, and where the pointer leads."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from modelpress.spec import named, problem, recipe
from modelpress.spec.prune import PruneMagnitude
from modelpress.spec.quantize import QuantizeInt8
from modelpress.spec.step import FineTune

PRUNE: dict[str, Any] = {"kind": "prune.magnitude", "sparsity": 0.5}
INT8: dict[str, Any] = {"kind": "quantize.int8"}
DYNAMIC: dict[str, Any] = {"kind": "quantize.int8", "mode": "dynamic"}


def problems(body: Any) -> list[problem.Problem]:
    with pytest.raises(problem.Refused) as refusal:
        recipe.parse(body)
    return refusal.value.problems


def only(body: Any) -> problem.Problem:
    (found,) = problems(body)
    return found


def test_recipe_survives_its_own_json() -> None:
    first = recipe.parse({"name": "mine", "steps": [PRUNE, INT8]})
    assert recipe.parse(json.loads(first.model_dump_json())) == first


def test_steps_keep_their_order() -> None:
    assert [s.kind for s in recipe.parse({"steps": [PRUNE, PRUNE, INT8]}).steps] == [
        "prune.magnitude",
        "prune.magnitude",
        "quantize.int8",
    ]


def test_unknown_kind_is_refused_with_the_kinds_there_are() -> None:
    found = only({"steps": [PRUNE, {"kind": "prune.nothing"}]})
    assert found.pointer == "/steps/1"
    assert "prune.nothing" in found.reason
    for kind in recipe.STEPS:
        assert kind in found.reason


def test_step_without_a_kind_is_refused() -> None:
    found = only({"steps": [{"sparsity": 0.5}]})
    assert found.pointer == "/steps/0"
    assert "kind" in found.reason


def test_unknown_field_of_a_step_is_refused_by_name() -> None:
    found = only({"steps": [{**PRUNE, "sparsty": 0.4}]})
    assert found.pointer == "/steps/0/sparsty"
    assert found.code == "extra_forbidden"


def test_unknown_field_of_the_recipe_is_refused_by_name() -> None:
    assert only({"steps": [INT8], "stepz": []}).pointer == "/stepz"


def test_pointer_of_a_field_deep_inside_a_step_names_every_level() -> None:
    body = {"steps": [{**PRUNE, "fine_tune": {"epochs": 0}}]}
    found = only(body)
    assert found.pointer == "/steps/0/fine_tune/epochs"
    assert "1" in found.reason
    assert "seen: 0" in found.reason


def test_pointer_escapes_what_json_pointers_reserve() -> None:
    assert only({"steps": [{**INT8, "a/b~c": 1}]}).pointer == "/steps/0/a~1b~0c"


def test_pointer_keeps_a_field_that_looks_like_a_kind() -> None:
    assert only({"steps": [{**INT8, "prune.magnitude": 1}]}).pointer == "/steps/0/prune.magnitude"


def test_every_defect_is_reported_not_only_the_first() -> None:
    body = {"steps": [{**PRUNE, "sparsity": 1.5}, {**INT8, "samples": 0}], "other": 1}
    assert [p.pointer for p in problems(body)] == [
        "/steps/0/sparsity",
        "/steps/1/samples",
        "/other",
    ]


def test_ten_thousand_steps_are_refused_at_once_with_the_limit() -> None:
    begin = time.perf_counter()
    found = only({"steps": [PRUNE] * 10_000})
    assert time.perf_counter() - begin < 1.0
    assert found.pointer == "/steps"
    assert str(recipe.MAX_STEPS) in found.reason
    assert len(found.reason) < 500


def test_ten_thousand_defects_are_reported_as_at_most_fifty() -> None:
    body = {"steps": [INT8], **{f"field{n}": n for n in range(10_000)}}
    assert len(problems(body)) == problem.MAX_PROBLEMS


def test_long_value_is_not_repeated_in_the_reason() -> None:
    found = only({"steps": [{**PRUNE, "scope": "x" * 10_000}]})
    assert len(found.reason) < 500


@pytest.mark.parametrize("body", [None, 7, "text", [], [PRUNE], {"steps": PRUNE}, {"steps": None}])
def test_body_of_another_shape_is_refused(body: Any) -> None:
    assert problems(body)


def test_empty_recipe_is_refused() -> None:
    assert only({"steps": []}).pointer == "/steps"


@pytest.mark.parametrize("sparsity", [0, 1, -0.1, 1.2, float("nan"), float("inf"), "much"])
def test_sparsity_is_a_fraction_between_0_and_1(sparsity: Any) -> None:
    assert only({"steps": [{**PRUNE, "sparsity": sparsity}]}).pointer == "/steps/0/sparsity"


def test_a_target_has_no_default() -> None:
    found = only({"steps": [{"kind": "prune.magnitude"}]})
    assert found.pointer == "/steps/0"
    assert "exactly one of sparsity and pattern" in found.reason


def test_rounds_without_training_are_refused_with_the_way_out() -> None:
    found = only({"steps": [{**PRUNE, "rounds": 3}]})
    assert found.pointer == "/steps/0"
    assert "set fine_tune or rounds = 1" in found.reason


def test_cap_of_a_layer_below_the_target_is_refused() -> None:
    found = only({"steps": [{**PRUNE, "sparsity": 0.9, "max_layer_sparsity": 0.8}]})
    assert "0.8 is below sparsity 0.9" in found.reason


def test_cap_of_a_layer_does_not_matter_when_layers_are_ranked_alone() -> None:
    step = {**PRUNE, "scope": "layer", "sparsity": 0.99}
    assert recipe.parse({"steps": [step]})


def test_pruning_after_quantization_is_refused_with_the_way_out() -> None:
    (found,) = recipe.parse({"steps": [INT8, PRUNE]}).problems(has_data=True, has_labels=True)
    assert (found.pointer, found.code) == ("/steps/1/kind", "wrong_order")
    assert "quantize.int8" in found.reason
    assert found.hint == "put quantize.int8 last"


def test_quantizing_twice_is_refused() -> None:
    (found,) = recipe.parse({"steps": [DYNAMIC, DYNAMIC]}).problems(
        has_data=False, has_labels=False
    )
    assert found.code == "wrong_order"


@pytest.mark.parametrize(
    "kinds",
    [
        ("quantize.cluster", "quantize.float16"),
        ("quantize.float16", "quantize.cluster"),
        ("code.huffman", "code.entropy"),
    ],
)
def test_of_two_last_steps_none_is_told_to_be_last(kinds: tuple[str, str]) -> None:
    steps = [{"kind": kind} for kind in kinds]
    (found,) = recipe.parse({"steps": steps}).problems(has_data=False, has_labels=False)
    assert found.code == "wrong_order"
    assert found.hint == "leave one of the two out: neither can follow the other"


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        ({**DYNAMIC, "calibration": "mse"}, "ranges in each run"),
        ({**INT8, "percentile": 99.0}, "calibration is 'minmax'"),
        ({"kind": "quantize.qat", "percentile": 99.0}, "calibration is 'mse'"),
        ({"kind": "quantize.bits", "damping": 0.1}, "method is 'rtn'"),
        ({"kind": "quantize.bits", "method": "awq", "damping": 0.1}, "method is 'awq'"),
        ({"kind": "quantize.binary", "temperature": 2.0}, "distill is 0"),
    ],
)
def test_options_without_effect_are_refused(step: dict[str, Any], reason: str) -> None:
    assert reason in only({"steps": [step]}).reason


def test_options_with_effect_are_taken() -> None:
    assert recipe.parse({"steps": [{**INT8, "calibration": "percentile", "percentile": 99.0}]})
    assert recipe.parse({"steps": [{"kind": "quantize.bits", "method": "gptq", "damping": 0.1}]})


def test_right_order_with_all_data_has_no_problem() -> None:
    wanted = recipe.parse({"steps": [{**PRUNE, "fine_tune": {}}, INT8]})
    assert wanted.problems(has_data=True, has_labels=True) == []


def test_step_that_needs_samples_is_refused_without_a_dataset() -> None:
    (found,) = recipe.parse({"steps": [PRUNE, INT8]}).problems(has_data=False, has_labels=False)
    assert (found.pointer, found.code) == ("/steps/1", "missing_data")
    assert found.hint


def test_step_that_needs_labels_is_refused_with_an_unlabelled_dataset() -> None:
    wanted = recipe.parse({"steps": [{**PRUNE, "fine_tune": {}}, INT8]})
    (found,) = wanted.problems(has_data=True, has_labels=False)
    assert (found.pointer, found.code) == ("/steps/0", "missing_labels")


def test_step_that_needs_another_model_is_refused_without_it() -> None:
    wanted = recipe.parse({"steps": [INT8, {**PRUNE, "criterion": "movement"}]})
    problems = wanted.problems(has_data=True, has_labels=True)
    found = next(p for p in problems if p.code == "missing_model")
    assert found.pointer == "/steps/1"
    assert "'initial'" in found.reason
    assert "models.initial" in found.hint
    assert "missing_model" not in {
        p.code for p in wanted.problems(has_data=True, has_labels=True, models=["initial"])
    }


def test_model_that_no_step_uses_is_refused_with_the_roles_in_use() -> None:
    wanted = recipe.parse({"steps": [{**PRUNE, "criterion": "movement"}]})
    assert wanted.unused_models(["initial"]) == []
    (found,) = wanted.unused_models(["initial", "teacher"])
    assert (found.pointer, found.code) == ("/models/teacher", "unused_model")
    assert found.reason.endswith("those in use are: initial")


def test_missing_data_is_not_reported_a_second_time_as_missing_labels() -> None:
    wanted = recipe.parse({"steps": [{**PRUNE, "fine_tune": {}}]})
    assert [p.code for p in wanted.problems(has_data=False, has_labels=False)] == ["missing_data"]


@pytest.mark.parametrize(
    ("step", "data", "labels"),
    [
        (PruneMagnitude(sparsity=0.5), False, False),
        (PruneMagnitude(sparsity=0.5, fine_tune=FineTune()), True, True),
        (QuantizeInt8(), True, False),
        (QuantizeInt8(mode="dynamic"), False, False),
    ],
)
def test_step_says_what_data_its_options_need(step: Any, data: bool, labels: bool) -> None:
    assert (step.needs_data, step.needs_labels) == (data, labels)
    whole = recipe.Recipe(steps=(step,))
    assert (whole.needs_data, whole.needs_labels) == (data, labels)


def test_excluded_names_match_as_file_names_do() -> None:
    step = PruneMagnitude(sparsity=0.5, exclude=("head.*", "conv?"))
    assert step.excludes("head.weight")
    assert step.excludes("other", "conv1")
    assert not step.excludes("conv10", "body.head.weight")


def test_step_cannot_be_changed_after_it_was_checked() -> None:
    step = PruneMagnitude(sparsity=0.5)
    with pytest.raises(ValueError, match="frozen"):
        step.sparsity = 2.0  # type: ignore[misc]


@pytest.mark.parametrize("name", sorted(named.NAMED))
def test_named_recipe_is_in_order_and_bears_its_name(name: str) -> None:
    assert named.NAMED[name].name == name
    assert named.resolve(name).problems(has_data=True, has_labels=True) == []


def test_unknown_name_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(
        ValueError,
        match="'minute'; the names are balanced, deep-compression, fast, half-channels, int8, int8-dynamic",
    ):
        named.resolve("minute")


@pytest.mark.parametrize("later", ["prune.magnitude", "code.huffman"])
def test_nothing_comes_after_the_packed_file(later: str) -> None:
    steps = [{"kind": "quantize.cluster"}, {"kind": "code.entropy"}]
    assert recipe.parse({"steps": steps}).problems(has_data=False, has_labels=False) == []
    options = {"sparsity": 0.5} if later.startswith("prune") else {}
    found = recipe.parse({"steps": [*steps, {"kind": later, **options}]})
    (problem,) = found.problems(has_data=False, has_labels=False)
    assert problem.code == "wrong_order"
    assert problem.pointer == "/steps/2/kind"
