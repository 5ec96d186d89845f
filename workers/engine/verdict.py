"""Whether a job reached what was asked of it. Pure arithmetic on its report."""

from __future__ import annotations

from collections.abc import Sequence

from modelpress.spec import constraint
from modelpress.spec.constraint import Constraint, ConstraintResult, Metric
from modelpress.spec.report import Report, Stage
from modelpress.spec.state import Outcome

FASTER_BELOW = 0.98
"""A higher latency ratio is no gain: medians of interleaved runs differ by that much."""
SMALLER_BELOW = 0.99
"""A higher ratio of file sizes is no gain: writing a model anew changes names and metadata by that much."""


def judge(report: Report, constraints: Sequence[Constraint]) -> Report:
    """The report with each constraint beside what was measured, and the outcome."""
    original, final = report.stages[0], report.stages[-1]
    results = tuple(_result(asked, original, final) for asked in constraints)
    outcome = _outcome(report, results)
    return report.model_copy(update={"constraints": results, "outcome": outcome})


def measured(stage: Stage, metric: Metric) -> float | None:
    """The metric of a stage; None where it was not measured."""
    match metric:
        case Metric.ACCURACY:
            return stage.quality.accuracy if stage.quality else None
        case Metric.AGREEMENT:
            return stage.quality.agreement if stage.quality else None
        case Metric.SIZE_BYTES:
            return float(stage.size.file_bytes)
        case Metric.CODED_BYTES:
            coded = stage.size.coded_bytes
            return None if coded is None else float(coded)
        case Metric.LATENCY_P50_MS:
            return stage.latency.p50_ms
        case Metric.MACS:
            return float(stage.cost.macs)


def _result(asked: Constraint, original: Stage, final: Stage) -> ConstraintResult:
    before = measured(original, asked.metric)
    if asked.metric is Metric.LATENCY_P50_MS:
        before = final.latency.original_p50_ms  # of the same interleaved runs
    elif asked.metric is Metric.CODED_BYTES:
        before = float(original.size.file_bytes)  # an upload is not packed
    return constraint.judge(asked, before, measured(final, asked.metric))


def _outcome(report: Report, results: Sequence[ConstraintResult]) -> Outcome:
    original, final = report.stages[0], report.stages[-1]
    smallest = min(final.size.file_bytes, final.size.coded_bytes or final.size.file_bytes)
    smaller = smallest < SMALLER_BELOW * original.size.file_bytes
    faster = final.latency.ratio < FASTER_BELOW
    if not smaller and not faster and not report.recipe.only_analyzes:
        return Outcome.NOT_IMPROVED
    return Outcome.MET if all(result.met for result in results) else Outcome.BEST_EFFORT
