"""What the result must satisfy, in units that can't be mistaken."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field


class Metric(StrEnum):
    """A measured quantity of a stage that a constraint may bound."""

    ACCURACY = "accuracy"
    AGREEMENT = "agreement"
    SIZE_BYTES = "size_bytes"
    CODED_BYTES = "coded_bytes"
    LATENCY_P50_MS = "latency_p50_ms"
    MACS = "macs"


class Goal(StrEnum):
    """How the value bounds the metric."""

    AT_LEAST = "at_least"  # final >= value
    AT_MOST = "at_most"  # final <= value
    MAX_DROP = "max_drop"  # original - final <= value, in the metric's own unit
    MAX_RATIO = "max_ratio"  # final / original <= value


class Constraint(BaseModel):
    """One bound on the final artifact."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    metric: Metric = Field(
        description="What is bounded; accuracy and agreement are fractions, sizes are bytes."
    )
    goal: Goal = Field(description="How it is bounded.")
    value: float = Field(
        ge=0,
        allow_inf_nan=False,
        description="The bound, in the metric's unit; a fraction, never a percentage.",
    )


class ConstraintResult(BaseModel):
    """A constraint beside what was measured."""

    model_config = ConfigDict(frozen=True)

    constraint: Constraint = Field(description="What was asked.")
    original: float | None = Field(
        description="The metric of the uploaded model; null where it was not measured."
    )
    final: float | None = Field(
        description="The metric of the artifact; null where it was not measured."
    )
    met: bool = Field(description="Whether it holds; false where the metric was not measured.")


def judge(constraint: Constraint, original: float | None, final: float | None) -> ConstraintResult:
    """Compares what was measured with what was asked."""
    met = final is not None and _holds(constraint, original, final)
    return ConstraintResult(constraint=constraint, original=original, final=final, met=met)


def _holds(constraint: Constraint, original: float | None, final: float) -> bool:
    value = constraint.value
    if constraint.goal is Goal.AT_LEAST:
        return final >= value
    if constraint.goal is Goal.AT_MOST:
        return final <= value
    if original is None:
        return False
    if constraint.goal is Goal.MAX_DROP:
        return original - final <= value + 1e-12
    return final <= value * original
