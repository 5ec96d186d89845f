"""What each step of a recipe has of everything that was won and lost. Pure arithmetic on stages.

share of a factor = log(before / after) / log(original / final)        of bytes, multiply-accumulates, time
share of the drop = (before - after) / (original - final)              of accuracy
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

from modelpress.spec.report import Stage, StepShare

SMALLEST_FACTOR = 1.01
"""A recipe that changes less divides nothing: shares would be those of noise."""


def of(stages: Sequence[Stage]) -> Iterator[StepShare]:
    """One for each step, in order; the first stage is the uploaded model."""
    original, final = stages[0], stages[-1]
    for before, after in pairwise(stages):
        assert after.step is not None, "only the baseline has none"
        size = _size(before) / _size(after)
        macs = max(before.cost.macs, 1) / max(after.cost.macs, 1)
        time = before.latency.ratio / after.latency.ratio
        yield StepShare(
            step=after.step,
            name=after.name,
            accuracy_before=_accuracy(before),
            accuracy=_accuracy(after),
            drop_share=_drop_share(before, after, original, final),
            size_factor=size,
            size_share=_share(size, _size(original) / _size(final)),
            macs_factor=macs,
            macs_share=_share(macs, max(original.cost.macs, 1) / max(final.cost.macs, 1)),
            latency_factor=time,
            latency_share=_share(time, original.latency.ratio / final.latency.ratio),
        )


def _size(stage: Stage) -> int:
    """Bytes of the packed file, or of the model where there is none."""
    return stage.size.coded_bytes or stage.size.file_bytes


def _accuracy(stage: Stage) -> float | None:
    return stage.quality.accuracy if stage.quality is not None else None


def _share(factor: float, whole: float) -> float | None:
    if whole < SMALLEST_FACTOR:
        return None
    return math.log(factor) / math.log(whole)


def _drop_share(before: Stage, after: Stage, original: Stage, final: Stage) -> float | None:
    was, now, first, last = (_accuracy(stage) for stage in (before, after, original, final))
    if was is None or now is None or first is None or last is None or first <= last:
        return None
    return (was - now) / (first - last)
