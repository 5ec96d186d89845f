"""Hears what an engine child says of its progress, and believes only what fits the order."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from modelpress.spec import order
from modelpress.spec.progress import Progress
from modelpress.spec.report import Report
from workers import outputs, text
from workers.jobdir import HostileOutput

PROGRESS_EVERY_S = 0.5


class Listener:
    """Takes the lines that are progress of this order and passes them on; all other lines are log.

    A chatty child is heard twice a second, and each start and end of a stage once, so that nothing it prints can
    drown those who listen. The fraction never falls.
    """

    def __init__(
        self,
        jobdir: Path,
        asked: order.Order,
        on_progress: Callable[[Progress], None],
        on_stage: Callable[[Report], None],
    ) -> None:
        self._jobdir, self._asked = jobdir, asked
        self._on_progress, self._on_stage = on_progress, on_stage
        self._heard: set[tuple[str, int]] = set()
        self._fraction = 0.0
        self._stages_reported = 0
        self._quiet_until = 0.0
        self.stage = ""  # the last one heard of, as failures name it

    def __call__(self, line: str) -> bool:
        """Whether the line was progress."""
        try:
            heard = Progress.model_validate_json(line)
        except ValidationError:
            return False
        if not self._fits(heard):
            return False
        self.stage = self._name(heard.stage)
        self._fraction = max(self._fraction, heard.fraction)
        if self._is_news(heard):
            message = text.printable(heard.message)
            self._on_progress(
                heard.model_copy(update={"fraction": self._fraction, "message": message})
            )
            self._report_stage(heard)
        return True

    def _fits(self, heard: Progress) -> bool:
        if isinstance(self._asked, order.InspectOrder):
            return heard.stage < heard.stages <= 16 and heard.name.isprintable()
        names = ["baseline", *(step.kind for step in self._asked.recipe.steps), "verify"]
        return (
            heard.stages == len(names)
            and heard.stage < len(names)
            and heard.name == names[heard.stage]
        )

    def _name(self, stage: int) -> str:
        if isinstance(self._asked, order.InspectOrder):
            return "inspect"
        if stage == 0:
            return "baseline"
        return f"steps/{stage - 1}" if stage <= len(self._asked.recipe.steps) else "verify"

    def _is_news(self, heard: Progress) -> bool:
        now, change = time.monotonic(), (heard.event, heard.stage)
        told_before = heard.event == "progress" or change in self._heard
        if told_before and now < self._quiet_until:
            return False
        self._heard.add(change)
        self._quiet_until = now + PROGRESS_EVERY_S
        return True

    def _report_stage(self, heard: Progress) -> None:
        """Passes on the report once it holds a stage more than the last one did."""
        if heard.event != "stage_done" or isinstance(self._asked, order.InspectOrder):
            return
        try:
            report = outputs.report(self._jobdir, self._asked)
        except HostileOutput:
            return  # judged when the child has ended
        if len(report.stages) > self._stages_reported:
            self._stages_reported = len(report.stages)
            self._on_stage(report)
