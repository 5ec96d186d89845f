"""The life of a job as transitions: each is one guarded UPDATE with its event, in one transaction.

    queued ---claim---> running ---finish--> succeeded | failed | expired
      |  ^                |  |
      |  +-lost, drained,-+  +--cancel--> cancelling ---> cancelled
      |    to be retried
      +--cancel---> cancelled, --pending limit--> expired

Whoever holds a job knows its fence, a number that grows with each claim. A write names the states and the fence
it expects and changes nothing where the row has moved on: a worker that was slow, paused or cut off is answered
None, and stops. Leases are written and judged by the database's clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from types import MappingProxyType
from typing import Any

from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.orm import Session

from app import broker, catalogue, claims, db, errors, events, failures, sensitivities, settings
from app.accounts import Principal
from app.claims import Beat, Claim, StoredFile
from app.tables import Attempt, Job
from modelpress.spec.inspection import DatasetInspection, ModelInspection
from modelpress.spec.progress import Progress
from modelpress.spec.report import Report
from modelpress.spec.sensitivity import Sensitivity
from modelpress.spec.state import TERMINAL, Failure, FailureClass, JobState

HELD = (JobState.RUNNING, JobState.CANCELLING)
MEMORY_CODES = frozenset({"memory_limit", "out_of_memory"})
MAX_MEMORY_FAILURES = 2
RETRY_FIRST_S, RETRY_MOST_S = 5.0, 300.0

_FRESH = {"synchronize_session": False, "populate_existing": True}


def enqueue(session: Session, job: Job) -> None:
    """Inserts a job and, once that has committed, nudges a worker."""
    now = db.now(session)
    job.created_at = job.run_after = job.dispatched_at = now
    job.pending_until = now + timedelta(seconds=claims.limits_of(job).max_pending_s)
    job.state, job.attempt = JobState.QUEUED.value, 0
    session.add(job)
    session.flush()
    events.state(session, job)
    db.on_commit(session, partial(broker.send, job.queue, broker.TASK, job.id))


def claim(session: Session, job_id: str, *, owner: str, sandbox: str) -> Claim | None:
    """Takes a waiting job for a worker; None where it is not waiting, as when a message came twice.

    `owner` names the worker, `sandbox` the level of its fence.
    """
    now = db.now(session)
    job = _move(
        session,
        job_id,
        (Job.state == JobState.QUEUED, Job.run_after <= now),
        state=JobState.RUNNING,
        attempt=Job.attempt + 1,
        fence=Job.fence + 1,
        owner=owner,
        sandbox=sandbox,
        lease_until=now + _lease(),
        started_at=func.coalesce(Job.started_at, now),
    )
    if job is None:
        return None
    session.add(
        Attempt(job_id=job.id, number=job.fence, worker=owner, sandbox=sandbox, started_at=now)
    )
    return Claim(job, job.fence)


def heartbeat(session: Session, claim: Claim) -> Beat | None:
    """Renews the lease; None where the job is no longer this worker's."""
    return _write(session, claim)


def look(session: Session, claim: Claim) -> Beat | None:
    """Whether the job is still this worker's and should go on, without a write."""
    return _beat(session.scalar(select(Job.state).where(*_held_by(claim))))


def record_progress(
    session: Session, claim: Claim, progress: Progress, *, is_news: bool = True
) -> Beat | None:
    """Stores where the job is, with an event if that is news; None where the job is no longer this worker's."""
    beat = _write(session, claim, progress=progress.model_dump(mode="json"))
    if beat is not None and is_news:
        events.progress(session, claim.job, progress)
    return beat


def record_report(session: Session, claim: Claim, report: Report, *, known: int) -> Beat | None:
    """Stores a partial report, with an event for each stage after the first `known`."""
    beat = _write(session, claim, **_measured(report))
    if beat is not None:
        for index, stage in enumerate(report.stages[known:], start=known):
            events.stage(session, claim.job, index, stage)
    return beat


def finish_succeeded(
    session: Session,
    claim: Claim,
    report: Report,
    files: Sequence[StoredFile],
    found: Sequence[Sensitivity] = (),
) -> JobState | None:
    """Ends a job whose artifacts are stored and verified, even if someone asked to cancel it meanwhile.

    `found` is what it measured of its model for other jobs to use.

    Like every ending: answers the job's new state, or None where the job is no longer this worker's.
    """
    job = _lock(session, claim)
    if job is None:
        return None
    values = _measured(report) | {"outcome": report.outcome}
    session.add_all(file.row(job) for file in files)
    session.add_all(sensitivities.row(job, table) for table in found)
    return _end(session, job, JobState.SUCCEEDED, ended="succeeded", values=values)


def finish_inspected(
    session: Session,
    claim: Claim,
    found: ModelInspection | DatasetInspection,
    *,
    converted: StoredFile | None = None,
) -> JobState | None:
    """Ends an inspection and opens the model or dataset to jobs, which use `converted` where it is given."""
    job = _lock(session, claim)
    if job is None:
        return None
    catalogue.record_inspection(session, job, found, converted=converted)
    return _end(session, job, JobState.SUCCEEDED, ended="succeeded")


def finish_failed(
    session: Session,
    claim: Claim,
    failure: Failure,
    *,
    report: Report | None = None,
    log_tail: str = "",
) -> JobState | None:
    """Ends an attempt that failed; the job waits to be run again where that may help, and fails otherwise.

    `report` has what was measured before, and the job keeps it.
    """
    job = _lock(session, claim)
    if job is None:
        return None
    memory_failures = job.oom_count + (failure.code in MEMORY_CODES)
    again = _worth_retrying(job, failure, memory_failures)
    return _end(
        session,
        job,
        JobState.QUEUED if again else JobState.FAILED,
        ended="failed",
        failure=failure,
        log_tail=log_tail,
        pause=timedelta(seconds=min(RETRY_FIRST_S * 4 ** (job.attempt - 1), RETRY_MOST_S)),
        values={"oom_count": memory_failures, **_measured(report)},
    )


def _worth_retrying(job: Job, failure: Failure, memory_failures: int) -> bool:
    if _is_exhausted(job):
        return False
    if failure.code in MEMORY_CODES:
        return memory_failures < MAX_MEMORY_FAILURES
    return failure.class_ is FailureClass.TRANSIENT


def _is_exhausted(job: Job) -> bool:
    """Whether this was the last attempt. A job asked to stop gets no other one either, but is cancelled for it."""
    return job.state == JobState.RUNNING and job.attempt >= settings.get().max_attempts


def finish_cancelled(session: Session, claim: Claim, *, log_tail: str = "") -> JobState | None:
    """Ends a job that was asked to stop; None also where nobody asked."""
    job = _lock(session, claim, Job.state == JobState.CANCELLING)
    if job is None:
        return None
    return _end(session, job, JobState.CANCELLED, ended="cancelled", log_tail=log_tail)


def finish_expired(
    session: Session, claim: Claim, *, report: Report | None = None, log_tail: str = ""
) -> JobState | None:
    """Ends a job that has used up its runtime; it keeps what it measured."""
    job = _lock(session, claim)
    if job is None:
        return None
    values = _measured(report)
    return _end(session, job, JobState.EXPIRED, ended="expired", log_tail=log_tail, values=values)


def _measured(report: Report | None) -> dict[str, Any]:
    return {} if report is None else {"report": report.model_dump(mode="json")}


def release(session: Session, claim: Claim) -> JobState | None:
    """Gives a job back because its worker shuts down; the attempt is not charged."""
    job = _lock(session, claim)
    if job is None:
        return None
    uncharged = {"attempt": Job.attempt - 1}
    return _end(session, job, JobState.QUEUED, ended="drained", values=uncharged)


def lose(session: Session, claim: Claim) -> JobState | None:
    """Takes a job from a worker that was silent for longer than its lease; None where it was not."""
    job = _lock(session, claim, Job.lease_until < db.now(session))
    if job is None:
        return None
    return _end(
        session,
        job,
        JobState.FAILED if _is_exhausted(job) else JobState.QUEUED,
        ended="lost",
        failure=failures.worker_lost(job.attempt, job.owner),
    )


def give_up_waiting(session: Session, job: Job) -> JobState | None:
    """Expires a job that no worker took before its pending limit; None where one did."""
    now = db.now(session)
    failure = failures.pending_limit(claims.limits_of(job).max_pending_s)
    late = (Job.state == JobState.QUEUED, Job.pending_until < now)
    ended = {"state": JobState.EXPIRED, "finished_at": now, "failure": _json(failure)}
    if _move(session, job.id, late, **ended) is None:
        return None
    _close_inspection(session, job, failure)
    return JobState.EXPIRED


def cancel(session: Session, principal: Principal, job_id: str) -> Job:
    """Stops a job: at once where it waits, else its worker stops it. Asking again is no error.

    Raises:
        NotFound: the project has no such job.
        Conflict: the job has ended otherwise.
    """
    job = get(session, principal, job_id, lock=True)
    now, before = db.now(session), (Job.state == job.state,)
    if job.state == JobState.QUEUED:
        ended = {"state": JobState.CANCELLED, "finished_at": now, "cancel_requested_at": now}
        _move(session, job_id, before, **ended)
        _close_inspection(session, job, None)
    elif job.state == JobState.RUNNING:
        _move(session, job_id, before, state=JobState.CANCELLING, cancel_requested_at=now)
    elif job.state not in (JobState.CANCELLING, JobState.CANCELLED):
        raise errors.Conflict(
            f"job {job_id!r} can't be cancelled: it has {job.state} at {job.finished_at:%Y-%m-%d %H:%M:%S} UTC",
            code="already_finished",
        )
    return job


def get(session: Session, principal: Principal, job_id: str, *, lock: bool = False) -> Job:
    """A job of the project; with `lock`, nobody else changes it before this transaction ends.

    Raises:
        NotFound: the project has no such job.
    """
    mine = select(Job).where(Job.id == job_id, Job.project_id == principal.project_id)
    mine = mine.with_for_update() if lock else mine
    job = session.scalars(mine, execution_options=_FRESH).one_or_none()
    if job is None:
        raise errors.NotFound(f"there is no job {job_id[:64]!r}")
    return job


def attempts(session: Session, job: Job) -> Sequence[Attempt]:
    """Every try of a job, in order."""
    return session.scalars(select(Attempt).filter_by(job_id=job.id).order_by(Attempt.number)).all()


def _lease() -> timedelta:
    return timedelta(seconds=settings.get().lease_s)


def _held_by(claim: Claim) -> tuple[ColumnElement[bool], ...]:
    return (Job.id == claim.job.id, Job.fence == claim.fence, Job.state.in_(HELD))


def _lock(session: Session, claim: Claim, *also: ColumnElement[bool]) -> Job | None:
    """The job as it is now; nobody else changes it before this transaction ends."""
    held = select(Job).where(*_held_by(claim), *also).with_for_update()
    return session.scalars(held, execution_options=_FRESH).one_or_none()


def _write(session: Session, claim: Claim, **values: Any) -> Beat | None:
    """Every write of the worker is a sign of life."""
    lease_until = db.now(session) + _lease()
    changed = update(Job).where(*_held_by(claim)).values(lease_until=lease_until, **values)
    changed = changed.returning(Job.state)
    return _beat(session.scalar(changed, execution_options=_FRESH))


def _beat(state: str | None) -> Beat | None:
    return None if state is None else Beat(cancel=state == JobState.CANCELLING)


def _move(
    session: Session, job_id: str, guard: Sequence[ColumnElement[bool]], **values: Any
) -> Job | None:
    """The one way a job changes its state: an UPDATE that finds the row as expected, and an event."""
    moved = update(Job).where(Job.id == job_id, *guard).values(values).returning(Job)
    job = session.scalars(moved, execution_options=_FRESH).one_or_none()
    if job is not None:
        events.state(session, job)
    return job


def _end(
    session: Session,
    job: Job,
    to: JobState,
    *,
    ended: str,
    failure: Failure | None = None,
    log_tail: str = "",
    pause: timedelta = timedelta(),
    values: Mapping[str, Any] = MappingProxyType({}),
) -> JobState:
    """Ends the attempt that holds a locked job, and moves the job to `to` or where the rules lead instead."""
    now = db.now(session)
    attempt = session.get_one(Attempt, (job.id, job.fence))
    running_s = job.running_s + _ran_s(job, attempt, ended, now)
    to, failure = _ruled(job, to, failure, running_s)
    attempt.finished_at, attempt.ended = now, ended
    attempt.failure = _json(failure)
    attempt.log_tail = log_tail.replace("\0", "\ufffd") or None
    changes = {**values, "state": to, "running_s": running_s, "owner": None, "lease_until": None}
    if to is JobState.QUEUED:
        changes |= _waiting(job, now + pause)
    else:
        changes |= {"finished_at": now, "failure": _json(failure)}
    held = (Job.fence == job.fence, Job.state == job.state)
    moved = _move(session, job.id, held, **changes)
    assert moved is not None, f"{job.id} moved although its row was locked"
    if to in TERMINAL and to is not JobState.SUCCEEDED:
        _close_inspection(session, moved, failure)
    return to


def _ruled(
    job: Job, to: JobState, failure: Failure | None, running_s: float
) -> tuple[JobState, Failure | None]:
    """Where an ending leads: a job asked to stop is not run again, nor is one without runtime left."""
    if to is JobState.CANCELLED or (
        job.state == JobState.CANCELLING and to in (JobState.QUEUED, JobState.EXPIRED)
    ):
        return JobState.CANCELLED, None
    limit_s = claims.limits_of(job).max_runtime_s
    if to is JobState.EXPIRED or (to is JobState.QUEUED and running_s >= limit_s):
        return JobState.EXPIRED, failures.runtime_limit(limit_s, running_s)
    return to, failure


def _ran_s(job: Job, attempt: Attempt, ended: str, now: datetime) -> float:
    """Seconds the attempt ran: a lost one until the last renewal of its lease."""
    if ended == "lost" and job.lease_until is not None:
        now = job.lease_until - _lease()
    return max(0.0, (now - attempt.started_at).total_seconds())


def _waiting(job: Job, run_after: datetime) -> dict[str, Any]:
    """Back in the queue, to be sent by the first sweep after `run_after`."""
    pending = timedelta(seconds=claims.limits_of(job).max_pending_s)
    return {
        "run_after": run_after,
        "pending_until": run_after + pending,
        "dispatched_at": None,
        "progress": None,
    }


def _close_inspection(session: Session, job: Job, failure: Failure | None) -> None:
    """Rejects the model or dataset of an inspection that ended without a result: it will get no other."""
    if job.kind != "compress":
        catalogue.record_inspection(session, job, failure or failures.inspection_cancelled())


def _json(failure: Failure | None) -> dict[str, Any] | None:
    return None if failure is None else failure.model_dump(mode="json", by_alias=True)
