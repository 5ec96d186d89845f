"""What to say where a step finds nothing to change."""

from __future__ import annotations

from modelpress.spec.step import Step
from workers.engine.context import Context
from workers.engine.errors import NothingChanged

_LISTED = 10
_NO_LAYER = "the model has no Conv, Gemm or MatMul with a weight"


def found(what: str, step: Step, ctx: Context) -> NothingChanged:
    """What to raise where a step finds no layer; `what` says so."""
    return NothingChanged(
        f"{what} ({reasons(ctx) or _NO_LAYER})",
        hint="shorten exclude" if step.exclude else "leave this step out for this model",
    )


def reasons(ctx: Context) -> str:
    """Why layers were left alone, up to ten of them, each by what was said of it last; '' where none was."""
    last = {skipped.layer: skipped.reason for skipped in ctx.coverage.skipped}
    return "; ".join(f"{layer}: {reason}" for layer, reason in [*last.items()][:_LISTED])
