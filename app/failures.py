"""Why a job ended without a result where no engine is there to say so."""

from __future__ import annotations

from modelpress.spec.state import Failure, FailureClass


def worker_lost(attempts: int, worker: str | None) -> Failure:
    """Every attempt ended in silence."""
    return Failure(
        **{"class": FailureClass.INTERNAL},
        code="worker_lost",
        message=f"{attempts} attempts ended without a word from the worker, the last one on {worker or 'unknown'}",
        hint="look at that worker's log and at the memory of its machine, then submit the job again",
    )


def runtime_limit(limit_s: int, running_s: float) -> Failure:
    """All attempts together ran longer than the job may."""
    return Failure(
        **{"class": FailureClass.DEADLINE},
        code="runtime_limit",
        message=f"the job ran for {running_s:.0f} s, all attempts together; its limit is {limit_s} s",
        hint="raise limits.max_runtime_s, or ask for fewer epochs, rounds or samples",
    )


def pending_limit(limit_s: int) -> Failure:
    """No worker came in time."""
    return Failure(
        **{"class": FailureClass.DEADLINE},
        code="pending_limit",
        message=f"no worker took the job within its limit of {limit_s} s",
        hint="start more workers, or raise limits.max_pending_s",
    )


def inspection_cancelled() -> Failure:
    """Someone cancelled the job that was to look into the file."""
    return Failure(
        **{"class": FailureClass.USER_INPUT},
        code="cancelled",
        message="the inspection of the file was cancelled",
        hint="upload the file again",
    )


def interrupted(error: Exception) -> Failure:
    """Something around the engine failed that may work the next time: the store, the database, the disk."""
    return Failure(
        **{"class": FailureClass.TRANSIENT},
        code="interrupted",
        message=f"the worker could not go on: {error}"[:4000],
        hint="the job is run again by itself while it has attempts left",
    )


def damaged(error: Exception) -> Failure:
    """The store has lost or changed a file."""
    return Failure(
        **{"class": FailureClass.INTERNAL},
        code="damaged_file",
        message=f"a stored file can't be used: {error}"[:4000],
        hint="upload it again, and look at the disk or bucket of the service",
    )


def defect(error: Exception) -> Failure:
    """The worker itself is wrong."""
    return Failure(
        **{"class": FailureClass.INTERNAL},
        code="worker_defect",
        message=f"{type(error).__name__} in the worker: {error}"[:4000],
        hint="please report it, with the worker's log",
    )
