"""How a compression ended, on a server or here: what the CLI prints and what its exit status says."""

from __future__ import annotations

from enum import IntEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from modelpress.spec.report import Report
from modelpress.spec.state import Failure, JobState


class Exit(IntEnum):
    """What the exit status of the CLI means."""

    OK = 0
    FAILED = 1  # the job failed, expired or was cancelled; or the service did not run
    USAGE = 2  # the command line, a local file or the recipe is wrong
    UNREACHABLE = 3  # no server is known, or it can't be reached
    REFUSED = 4  # the server refused the request or an uploaded file
    UNMET = 5  # the job succeeded, but a constraint does not hold
    INTERRUPTED = 130  # Ctrl-C


class Ended(BaseModel):
    """The end of a job; `job` is null for one that ran here."""

    model_config = ConfigDict(frozen=True)

    job: str | None = None
    state: JobState
    failure: Failure | None = None
    report: Report | None = None
    files: tuple[Path, ...] = ()

    @property
    def exit(self) -> Exit:
        """The exit status."""
        if self.state is not JobState.SUCCEEDED:
            return Exit.FAILED
        constraints = self.report.constraints if self.report else ()
        return Exit.OK if all(result.met for result in constraints) else Exit.UNMET
