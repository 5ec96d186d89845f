"""What is submitted: defaults, names of recipes, and the pointers of what is wrong."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from modelpress.spec import job, named, problem
from modelpress.spec.constraint import Constraint, Goal, Metric, judge

BODY: dict[str, Any] = {"model": "mdl_1", "recipe": "int8"}


def problems(body: Any) -> list[problem.Problem]:
    with pytest.raises(ValidationError) as refusal:
        job.JobRequest.model_validate(body)
    return problem.from_validation(refusal.value)


def test_name_of_a_recipe_stands_for_the_recipe() -> None:
    assert job.JobRequest.model_validate(BODY).recipe == named.NAMED["int8"]


def test_unknown_name_of_a_recipe_points_at_the_recipe() -> None:
    (found,) = problems({**BODY, "recipe": "smaller"})
    assert found.pointer == "/recipe"
    assert "'smaller'" in found.reason


def test_defect_of_a_step_points_into_the_recipe_of_the_body() -> None:
    recipe = {"steps": [{"kind": "prune.magnitude", "sparsity": 2}]}
    (found,) = problems({**BODY, "recipe": recipe})
    assert found.pointer == "/recipe/steps/0/sparsity"


def test_request_without_a_model_is_refused() -> None:
    (found,) = problems({"recipe": "int8"})
    assert (found.pointer, found.code) == ("/model", "missing")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("seed", -1),
        ("seed", 1 << 32),
        ("limits", {"max_runtime_s": 0}),
        ("limits", {"max_memory_bytes": 1}),
        ("data", {"eval_fraction": 1.0}),
        ("data", {"train": "x" * 65}),
        ("constraints", [{"metric": "size", "goal": "at_most", "value": 1}]),
        ("constraints", [{"metric": "accuracy", "goal": "at_least", "value": float("nan")}]),
        ("name", "x" * 201),
        ("models", {"initial": "x" * 65}),
        ("models", {"Initial": "mdl_2"}),
        ("models", {"../initial": "mdl_2"}),
        ("models", {f"role{n}": "mdl_2" for n in range(9)}),
    ],
)
def test_value_out_of_range_points_at_its_field(path: str, value: Any) -> None:
    (found,) = problems({**BODY, path: value})
    assert found.pointer.startswith(f"/{path}")


def bound(metric: Metric, goal: Goal, value: float) -> Constraint:
    return Constraint(metric=metric, goal=goal, value=value)


@pytest.mark.parametrize(
    ("goal", "value", "original", "final", "met"),
    [
        (Goal.AT_LEAST, 0.9, 0.95, 0.9, True),
        (Goal.AT_LEAST, 0.9, 0.95, 0.89, False),
        (Goal.AT_MOST, 0.9, None, 0.9, True),
        (Goal.AT_MOST, 0.9, None, 0.91, False),
        (Goal.MAX_DROP, 0.01, 0.95, 0.94, True),
        (Goal.MAX_DROP, 0.01, 0.95, 0.93, False),
        (Goal.MAX_DROP, 0.0, 0.95, 0.96, True),
        (Goal.MAX_RATIO, 0.5, 10.0, 5.0, True),
        (Goal.MAX_RATIO, 0.5, 10.0, 5.1, False),
        (Goal.MAX_DROP, 0.01, None, 0.94, False),
        (Goal.MAX_RATIO, 0.5, None, 0.0, False),
        (Goal.AT_LEAST, 0.0, None, None, False),
    ],
)
def test_constraint_is_judged_by_what_was_measured(
    goal: Goal, value: float, original: float | None, final: float | None, met: bool
) -> None:
    result = judge(bound(Metric.ACCURACY, goal, value), original, final)
    assert result.met is met
    assert (result.original, result.final) == (original, final)
