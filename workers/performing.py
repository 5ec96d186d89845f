"""One job in this process: claimed, run as an attempt in a directory of its own, and its end written down."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import structlog
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.orm import Session

from app import blobs, claims, db, errors, failures, jobs, settings, storage
from app.claims import Claim, StoredFile
from modelpress.spec.job import Limits
from modelpress.spec.state import Failure, JobState
from workers import attempt, drain, sandbox, staging
from workers.attempt import Ended
from workers.keeper import Keeper
from workers.outputs import Artifact

PATIENCE_S = 300.0  # how long a database that is away is offered the end of an attempt

T = TypeVar("T")
log = structlog.get_logger(__name__)


def perform(job_id: str, *, owner: str, engine: Sequence[str]) -> JobState | None:
    """Runs a job if it still waits for a worker: a message may come late, twice, or after a cancel.

    Answers the job's state after the attempt; None where there was nothing to do, or another worker has the job.

    Raises:
        SandboxMissing: children can't be confined here; the job goes on waiting.
    """
    if drain.is_on():
        return None
    level = sandbox.level()
    with db.transaction() as session:
        claim = jobs.claim(session, job_id, owner=owner, sandbox=level)
    if claim is None:
        return None
    log.info("attempt begins", kind=claim.job.kind, attempt=claim.job.attempt, fence=claim.fence)
    with Keeper(claim, must_drain=_must_drain) as keeper:
        state = _attempt(claim, keeper, engine, level)
    log.info("attempt ended", fence=claim.fence, state=state)
    return state


def _must_drain() -> bool:
    return drain.seconds() > settings.get().drain_s


def _attempt(claim: Claim, keeper: Keeper, engine: Sequence[str], level: str) -> JobState | None:
    try:
        with staging.directory(claim) as directory:
            staging.stage(claim, directory, sandbox=level)
            ended = attempt.run(
                directory,
                limits=_limits(claim),
                on_progress=keeper.tell_progress,
                on_stage=keeper.tell_report,
                should_stop=keeper.should_stop,
                engine=engine,
            )
            keeper.flush()
            return _end(claim, ended)
    except SystemExit:  # the pool ends this process; its child is dead already
        _persist(partial(jobs.release, claim=claim))
        raise
    except Exception as e:
        log.exception("an attempt broke")
        return _persist(partial(jobs.finish_failed, claim=claim, failure=_failure(e)))


def _limits(claim: Claim) -> Limits:
    """What this attempt may take: the runtime that those before it have left."""
    left_s = max(1, math.ceil(claim.seconds_left))
    return claims.limits_of(claim.job).model_copy(update={"max_runtime_s": left_s})


def _end(claim: Claim, ended: Ended) -> JobState | None:
    """Writes down how an attempt ended. A worker that was fenced off has nothing to say."""
    if ended.how == "fenced":
        return None
    return blobs.stored(partial(_write_end, claim, ended))


def _write_end(claim: Claim, ended: Ended) -> JobState | None:
    files = _store(claim, ended)
    write = _ending(claim, ended, files)

    def named(session: Session) -> JobState | None:
        state = write(session)
        if state is not None:
            blobs.hold(session, claim.job.project_id, *(file.sha256 for file in files))
        return state

    return _persist(named)


def _ending(
    claim: Claim, ended: Ended, files: Sequence[StoredFile]
) -> Callable[[Session], JobState | None]:
    report, log_tail = ended.report, ended.log_tail
    match ended.how:
        case "succeeded" if report is not None:
            return partial(
                jobs.finish_succeeded,
                claim=claim,
                report=report,
                files=files,
                found=ended.sensitivities,
            )
        case "succeeded":
            assert ended.inspection is not None
            converted = next(iter(files), None)
            return partial(
                jobs.finish_inspected, claim=claim, found=ended.inspection, converted=converted
            )
        case "expired":
            return partial(jobs.finish_expired, claim=claim, report=report, log_tail=log_tail)
        case "cancelled":
            return partial(jobs.finish_cancelled, claim=claim, log_tail=log_tail)
        case "drained":
            return partial(jobs.release, claim=claim)
    assert ended.failure is not None
    return partial(
        jobs.finish_failed, claim=claim, failure=ended.failure, report=report, log_tail=log_tail
    )


def _store(claim: Claim, ended: Ended) -> list[StoredFile]:
    """Stores what a job made: its artifacts, or the ONNX file that an inspection made of an upload in another format.

    Named by hash, a file that no row comes to name is overwritten by its like, or removed after a while.
    """
    formats = {} if ended.report is None else {i.name: i.format for i in ended.report.artifacts}
    return [_put(claim, made, formats.get(made.name, "onnx")) for made in ended.artifacts]


def _put(claim: Claim, made: Artifact, format_: str) -> StoredFile:
    storage.get().put_file(storage.blob_key(claim.job.project_id, made.sha256), made.path)
    return StoredFile(made.name, format_, made.sha256, made.size_bytes)


def _failure(error: Exception) -> Failure:
    if isinstance(error, storage.Damaged | errors.NotFound):
        return failures.damaged(error)
    if isinstance(error, errors.AppError | DBAPIError | OSError):
        return failures.interrupted(error)
    return failures.defect(error)


def _persist(write: Callable[[Session], T]) -> T:
    """Commits `write`, trying again while the database is away: its guard makes a second commit change nothing.

    Raises:
        DBAPIError: the database was away for PATIENCE_S; the lease will expire.
    """
    until, pause_s = time.monotonic() + PATIENCE_S, 0.2
    while True:
        try:
            with db.transaction() as session:
                return write(session)
        except (OperationalError, InterfaceError) as e:
            if time.monotonic() > until:
                raise
            log.warning("the end of an attempt can't be written yet", error=str(e).splitlines()[0])
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 5.0)
