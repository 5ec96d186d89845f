"""What a child tells the process that started it: lines of progress, a report after each stage, why it failed.

Files appear whole or not at all.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TextIO

from pydantic import BaseModel, TypeAdapter

from modelpress.spec import order
from modelpress.spec.progress import Progress
from modelpress.spec.report import Report
from modelpress.spec.state import Failure

_QUIET_S = 0.25
_STEP_SHARE = 8
"""How much longer a step is taken to last than the baseline or the verification."""

_ORDER: TypeAdapter[order.Order] = TypeAdapter(order.Order)


def clear(jobdir: Path) -> None:
    """Removes what an earlier run of this job left."""
    for name in (order.REPORT, order.FAILURE):
        (jobdir / name).unlink(missing_ok=True)


def read_order(jobdir: Path) -> order.Order:
    """The order in a job directory.

    Raises:
        ValueError: the file is no order.
    """
    return _ORDER.validate_json((jobdir / order.ORDER).read_bytes())


def read_compress_order(jobdir: Path) -> order.CompressOrder:
    """The order in a job directory, which must be to run a recipe.

    Raises:
        ValueError: the file is no such order.
    """
    found = read_order(jobdir)
    if not isinstance(found, order.CompressOrder):
        raise ValueError(f"the order is to {found.task}, not to compress")
    return found


def read_report(jobdir: Path) -> Report:
    """The report as it was written last."""
    return Report.model_validate_json((jobdir / order.REPORT).read_bytes())


def write_report(jobdir: Path, report: Report) -> None:
    """Puts the report in the place of the one before."""
    write(jobdir / order.REPORT, report)


def write_failure(jobdir: Path, failure: Failure) -> None:
    """Says why the child ends."""
    write(jobdir / order.FAILURE, failure)


def write(path: Path, content: BaseModel) -> None:
    """Writes a model as JSON, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(content.model_dump_json(by_alias=True, indent=1), encoding="utf-8")
    os.replace(unfinished, path)


class Teller:
    """Says on standard output where the job is, a few times a second at most; starts and ends of stages always."""

    def __init__(self, stages: int, *, stream: TextIO | None = None) -> None:
        self._stages, self._stream = stages, stream or sys.stdout
        self._stage, self._name = 0, ""
        self._quiet_until = 0.0

    def start(self, stage: int, name: str, message: str) -> None:
        """Stage `stage` begins."""
        self._stage, self._name = stage, name
        self._tell("stage_started", 0.0, message)

    def tell(self, fraction: float, message: str) -> None:
        """This fraction of the stage is done."""
        if time.monotonic() >= self._quiet_until:
            self._quiet_until = time.monotonic() + _QUIET_S
            self._tell("progress", fraction, message)

    def part(self, begin: float, end: float) -> Callable[[float, str], None]:
        """A `tell` for a part of the stage, from `begin` to `end` of it."""

        def tell(fraction: float, message: str) -> None:
            self.tell(begin + (end - begin) * fraction, message)

        return tell

    def done(self, message: str) -> None:
        """The stage ends; its report was written."""
        self._tell("stage_done", 1.0, message)

    def _tell(
        self,
        event: Literal["progress", "stage_started", "stage_done"],
        fraction: float,
        message: str,
    ) -> None:
        said = Progress(
            event=event,
            stage=self._stage,
            stages=self._stages,
            name=self._name,
            fraction=self._overall(min(max(fraction, 0.0), 1.0)),
            message=message[:500],
        )
        self._stream.write(f"{said.model_dump_json()}\n")
        self._stream.flush()

    def _overall(self, fraction: float) -> float:
        """Done of the whole job: steps weigh `_STEP_SHARE`, the baseline before and the verification after them 1."""
        last = self._stages - 1
        weights = [1 if stage in (0, last) else _STEP_SHARE for stage in range(self._stages)]
        done = sum(weights[: self._stage]) + weights[self._stage] * fraction
        return done / sum(weights)
