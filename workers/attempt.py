"""One attempt at an order: its engine children run in the fence, then their outputs are checked and their end explained.

compress: a child runs the recipe; a second, fresh one verifies what the first exported, and one between them unpacks what it packed.
inspect: one child.
Nothing of the service is known here: a Celery task and the command line run the same attempt.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

from modelpress.spec import order
from modelpress.spec.job import Limits
from modelpress.spec.progress import Progress
from modelpress.spec.report import Report
from modelpress.spec.sensitivity import Sensitivity
from modelpress.spec.state import Failure, FailureClass
from workers import explain, outputs, sandbox
from workers.jobdir import HostileOutput
from workers.listener import Listener

ENGINE = (sys.executable, "-m", "workers.engine")
GPU_NODE = "/dev/nvidiactl"
LOG_TAIL_CHARACTERS = 64 << 10

How = Literal["succeeded", "failed", "expired", "cancelled", "drained", "fenced"]
ShouldStop = Callable[[], sandbox.Stop | None]

_ORDER: TypeAdapter[order.Order] = TypeAdapter(order.Order)


@dataclass(frozen=True)
class Ended:
    """How an attempt ended.

    `artifacts` of an inspection is the ONNX file that an upload in another format became.
    `failure` is set for 'failed' and 'expired'. `report` may be partial, unless 'succeeded'. 'cancelled', 'drained'
    and 'fenced' say what `should_stop` answered.
    """

    how: How
    failure: Failure | None
    report: Report | None
    inspection: outputs.Inspection | None
    artifacts: tuple[outputs.Artifact, ...]
    sensitivities: tuple[Sensitivity, ...]
    log_tail: str
    seconds: float
    peak_memory_bytes: int
    sandbox: str


def run(
    jobdir: Path,
    *,
    limits: Limits,
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_stage: Callable[[Report], None] = lambda _: None,
    should_stop: ShouldStop = lambda: None,
    engine: Sequence[str] = ENGINE,
) -> Ended:
    """Runs the order in JOBDIR/order.json to its end.

    Args:
        jobdir: absolute, with order.json and input/; work/ and output/ are made where missing.
        limits: max_runtime_s is what this attempt may take, all its children together.
        on_progress: hears of changes, at most about twice a second.
        on_stage: gets the partial report after each stage, also when the job fails later.
        should_stop: asked about ten times a second.
        engine: the program, to which the task and the job directory are added.

    Raises:
        SandboxMissing: children can't be confined here.
    """
    for name in (order.WORK, order.OUTPUT):
        (jobdir / name).mkdir(mode=0o700, exist_ok=True)
    asked = _ORDER.validate_json((jobdir / order.ORDER).read_bytes())
    listener = Listener(jobdir, asked, on_progress, on_stage)
    children = _Children(jobdir, asked, limits, listener, should_stop, engine)
    if isinstance(asked, order.InspectOrder):
        return _inspect(children, asked)
    return _compress(children, asked)


def _inspect(children: _Children, asked: order.InspectOrder) -> Ended:
    if ended := children.run("inspect"):
        return ended
    try:
        found = outputs.inspection(children.jobdir, asked)
        limit = children.limits.max_disk_bytes
        made = outputs.converted(children.jobdir, found, max_bytes=limit)
        return children.succeeded(inspection=found, artifacts=made)
    except HostileOutput as e:
        return children.failed(explain.bad_output(e, children.listener.stage))


def _compress(children: _Children, asked: order.CompressOrder) -> Ended:
    unpack = ("unpack",) if asked.recipe.packs else ()
    for task in ("compress", *unpack, "verify"):
        if ended := children.run(task):
            return ended
    try:
        report = outputs.finished_report(children.jobdir, asked)
        limit = children.limits.max_disk_bytes
        artifacts = outputs.artifacts(children.jobdir, report, max_bytes=limit)
        tables = outputs.sensitivities(children.jobdir, asked, report)
        return children.succeeded(report=report, artifacts=artifacts, sensitivities=tables)
    except HostileOutput as e:
        return children.failed(explain.bad_output(e, children.listener.stage))


class _Children:
    """The engine children of one attempt, one after the other; they share its time."""

    def __init__(
        self,
        jobdir: Path,
        asked: order.Order,
        limits: Limits,
        listener: Listener,
        should_stop: ShouldStop,
        engine: Sequence[str],
    ) -> None:
        self.jobdir, self.limits, self.listener = jobdir, limits, listener
        self._asked, self._should_stop, self._engine = asked, should_stop, engine
        self._started = time.monotonic()
        self._exits: list[sandbox.Exit] = []

    def run(self, task: str) -> Ended | None:
        """Runs a child; None when it says that it succeeded."""
        ended = sandbox.run(
            [*self._engine, task, str(self.jobdir)],
            self.jobdir,
            self._bounds(),
            on_line=self.listener,
            should_stop=self._should_stop,
        )
        self._exits.append(ended)
        if ended.stop is not None:
            return self._ended(ended.stop)
        failure = explain.failure(ended, self.limits, self.jobdir, self.listener.stage)
        return None if failure is None else self.failed(failure)

    def _bounds(self) -> sandbox.Bounds:
        spent = time.monotonic() - self._started
        return sandbox.Bounds(
            writable=(order.WORK, order.OUTPUT),
            wall_s=max(self.limits.max_runtime_s - spent, 0),
            memory_bytes=self.limits.max_memory_bytes,
            disk_bytes=self.limits.max_disk_bytes,
            gpu=_wants_gpu(self._asked),
        )

    def succeeded(
        self,
        *,
        report: Report | None = None,
        inspection: outputs.Inspection | None = None,
        artifacts: tuple[outputs.Artifact, ...] = (),
        sensitivities: tuple[Sensitivity, ...] = (),
    ) -> Ended:
        """The attempt is over, and this is what it made."""
        return self._ended(
            "succeeded",
            report=report,
            inspection=inspection,
            artifacts=artifacts,
            sensitivities=sensitivities,
        )

    def failed(self, failure: Failure) -> Ended:
        """The attempt is over; what it measured until then is kept."""
        how: How = "expired" if failure.class_ is FailureClass.DEADLINE else "failed"
        return self._ended(how, failure=failure, report=self._partial_report())

    def _partial_report(self) -> Report | None:
        if isinstance(self._asked, order.InspectOrder):
            return None
        try:
            return outputs.report(self.jobdir, self._asked)
        except HostileOutput:
            return None

    def _ended(
        self,
        how: How,
        *,
        failure: Failure | None = None,
        report: Report | None = None,
        inspection: outputs.Inspection | None = None,
        artifacts: tuple[outputs.Artifact, ...] = (),
        sensitivities: tuple[Sensitivity, ...] = (),
    ) -> Ended:
        return Ended(
            how=how,
            failure=failure,
            report=report,
            inspection=inspection,
            artifacts=artifacts,
            sensitivities=sensitivities,
            log_tail="".join(ended.log_tail for ended in self._exits)[-LOG_TAIL_CHARACTERS:],
            seconds=time.monotonic() - self._started,
            peak_memory_bytes=max((ended.peak_memory_bytes for ended in self._exits), default=0),
            sandbox=self._exits[-1].level,
        )


def _wants_gpu(asked: order.Order) -> bool:
    """Whether the child gets at the devices: there is one, and the order does not rule it out."""
    if isinstance(asked, order.InspectOrder) or asked.device == "cpu":
        return False
    return os.path.exists(GPU_NODE)
