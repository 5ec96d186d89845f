"""What a packed file counts for in constraints and in the outcome."""

from __future__ import annotations

import pytest

from modelpress.spec.constraint import Constraint, ConstraintResult, Goal, Metric
from modelpress.spec.report import Report
from modelpress.spec.state import Outcome
from tests.client import reports
from workers.engine import verdict


def report(*, file_bytes: int = 1_000_000, coded: int | None = None, ratio: float = 1.0) -> Report:
    """A million bytes before, so many after."""
    before = reports.stage("baseline", None, file_bytes=1_000_000, accuracy=0.9)
    after = reports.stage("code.entropy", 0, file_bytes=file_bytes, accuracy=0.9)
    size = after.size.model_copy(update={"coded_bytes": coded})
    latency = after.latency.model_copy(update={"ratio": ratio})
    after = after.model_copy(update={"size": size, "latency": latency})
    return reports.report().model_copy(update={"stages": (before, after)})


def judged(of: Report, goal: Goal, value: float) -> ConstraintResult:
    asked = Constraint(metric=Metric.CODED_BYTES, goal=goal, value=value)
    [result] = verdict.judge(of, [asked]).constraints
    return result


@pytest.mark.parametrize(
    ("goal", "value", "met"),
    [
        (Goal.AT_MOST, 100_000, True),
        (Goal.AT_MOST, 99_999, False),
        (Goal.AT_LEAST, 100_000, True),
        (Goal.MAX_RATIO, 0.1, True),
        (Goal.MAX_RATIO, 0.09, False),
    ],
)
def test_coded_bytes_are_compared_with_the_uploaded_file(
    goal: Goal, value: float, met: bool
) -> None:
    result = judged(report(coded=100_000), goal, value)
    assert (result.original, result.final) == (1_000_000, 100_000)
    assert result.met is met


@pytest.mark.parametrize("goal", [Goal.AT_MOST, Goal.MAX_RATIO])
def test_without_a_packed_file_coded_bytes_are_not_met(goal: Goal) -> None:
    result = judged(report(file_bytes=1000), goal, 1e9)
    assert result.final is None
    assert not result.met


def test_file_size_is_that_of_the_onnx_file_also_where_it_is_packed() -> None:
    of = report(file_bytes=500_000, coded=1000)
    asked = Constraint(metric=Metric.SIZE_BYTES, goal=Goal.AT_MOST, value=100_000)
    [result] = verdict.judge(of, [asked]).constraints
    assert result.final == 500_000
    assert not result.met


def test_a_packed_file_alone_is_a_gain() -> None:
    assert verdict.judge(report(), []).outcome is Outcome.NOT_IMPROVED
    assert verdict.judge(report(coded=1_000_000), []).outcome is Outcome.NOT_IMPROVED
    assert verdict.judge(report(coded=500_000), []).outcome is Outcome.MET
    asked = Constraint(metric=Metric.CODED_BYTES, goal=Goal.AT_MOST, value=100_000)
    assert verdict.judge(report(coded=500_000), [asked]).outcome is Outcome.BEST_EFFORT
