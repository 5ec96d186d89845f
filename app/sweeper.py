"""Looks after jobs and uploads that nobody else does: `python -m app.sweeper`, and a thread in each API process.

Any number of sweepers may run at once, and one that dies in the middle leaves nothing half done: each deed is
its own transaction, rows that another sweeper has locked are passed over, and every transition is guarded.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta

import structlog
from sqlalchemy import ColumnElement, select, update
from sqlalchemy.orm import Session

from app import blobs, broker, db, events, jobs, logs, settings, uploads
from app.claims import Claim
from app.tables import Job
from modelpress.spec.state import JobState

BATCH = 100
RESEND_MOST_S = 300.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Swept:
    """What one sweep did to jobs (lost by silent workers, expired, sent), and how much of what it removed: uploads, stale
    messages, files that nothing names, old progress events.
    """

    lost: int = 0
    expired: int = 0
    sent: int = 0
    uploads: int = 0
    messages: int = 0
    orphans: int = 0
    progress: int = 0


def sweep() -> Swept:
    """Takes jobs from silent workers, expires what waited too long, and nudges workers for the rest."""
    return Swept(
        lost=_take_from_silent(),
        expired=_expire_waiting(),
        sent=_send_due(),
        uploads=_expire_uploads(),
        messages=broker.prune(),
        orphans=blobs.remove() if settings.get().orphans_after_s else 0,
        progress=_forget_progress(),
    )


def _take_from_silent() -> int:
    return _each(lambda now: Job.state.in_(jobs.HELD) & (Job.lease_until < now), _take)


def _take(session: Session, job: Job) -> None:
    worker, attempt = job.owner, job.attempt
    state = jobs.lose(session, Claim(job, job.fence))
    log.warning("a worker fell silent", job_id=job.id, worker=worker, attempt=attempt, now=state)


def _expire_waiting() -> int:
    return _each(
        lambda now: (Job.state == JobState.QUEUED) & (Job.pending_until < now),
        jobs.give_up_waiting,
    )


def _each(
    matches: Callable[[datetime], ColumnElement[bool]], act: Callable[[Session, Job], object]
) -> int:
    """Acts on up to BATCH jobs, each in a transaction of its own; one that fails does not keep the others waiting."""
    tried: list[str] = []
    while len(tried) < BATCH:
        with db.transaction() as session:
            job = session.scalars(
                select(Job)
                .where(matches(db.now(session)), Job.id.not_in(tried))
                .limit(1)
                .with_for_update(skip_locked=True)
            ).first()
            if job is None:
                break
            tried.append(job.id)
            try:
                with session.begin_nested():
                    act(session, job)
            except Exception:
                log.exception("a job can't be swept", job_id=job.id)
    return len(tried)


def _expire_uploads() -> int:
    with db.transaction() as session:
        return uploads.expire(session)


def _forget_progress() -> int:
    kept_s = settings.get().progress_kept_s
    if not kept_s:
        return 0
    with db.transaction() as session:
        return events.forget_progress(session, kept=timedelta(seconds=kept_s), limit=events.PAGE)


def _send_due() -> int:
    """Sends the ids of waiting jobs whose message was lost, or never sent; stops where the broker is away."""
    with db.transaction() as session:
        due = _mark_due(session)
    sent = 0
    for queue, job_id in due:
        if not broker.send(queue, broker.TASK, job_id):
            _unmark([unsent for _, unsent in due[sent:]])
            break
        sent += 1
    return sent


def _mark_due(session: Session) -> list[tuple[str, str]]:
    """The jobs to send now, of those at the head of each queue: the others' turn is not near."""
    now = db.now(session)
    due: list[tuple[str, str]] = []
    for queue in broker.QUEUES:
        waiting = (Job.state == JobState.QUEUED) & (Job.queue == queue) & (Job.run_after <= now)
        head = session.execute(
            select(Job.id, Job.run_after, Job.dispatched_at)
            .where(waiting)
            .order_by(Job.run_after)
            .limit(BATCH)
            .with_for_update(skip_locked=True)
        )
        due += [
            (queue, id_)
            for id_, run_after, dispatched_at in head
            if _is_due(run_after, dispatched_at, now)
        ]
    marked = update(Job).where(Job.id.in_([id_ for _, id_ in due])).values(dispatched_at=now)
    session.execute(marked, execution_options={"synchronize_session": False})
    return due


def _is_due(run_after: datetime, dispatched_at: datetime | None, now: datetime) -> bool:
    """Whether a message may be missing: the longer a job has waited, the rarer it is sent again."""
    if dispatched_at is None:
        return True
    waited_s = (now - run_after).total_seconds()
    pause_s = max(settings.get().resend_s, min(waited_s / 2, RESEND_MOST_S))
    return dispatched_at <= now - timedelta(seconds=pause_s)


def _unmark(job_ids: list[str]) -> None:
    with db.transaction() as session:
        session.execute(
            update(Job)
            .where(Job.id.in_(job_ids), Job.state == JobState.QUEUED)
            .values(dispatched_at=None),
            execution_options={"synchronize_session": False},
        )


class Sweeper:
    """Sweeps every `settings.sweep_s` seconds in a thread, from `start` to `stop`; the first time at once. The store, which may
    be large, is looked through every `settings.orphans_scan_s`, the first time after a 24th of that.
    """

    def __init__(self) -> None:
        self._scan_at = time.monotonic() + settings.get().orphans_scan_s / 24
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sweeper", daemon=True)

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """Ends after the present sweep."""
        self._stopped.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            try:
                swept = sweep()
                self._scan()
            except Exception as e:  # the database may be away: the next sweep tries again
                log.warning("a sweep failed", error=repr(e))
            else:
                if swept != Swept():
                    log.info("swept", **asdict(swept))
            if self._stopped.wait(settings.get().sweep_s):
                return

    def _scan(self) -> None:
        values = settings.get()
        if values.orphans_after_s and time.monotonic() >= self._scan_at:
            self._scan_at = time.monotonic() + values.orphans_scan_s
            log.info("looked for files that nothing names", new=blobs.mark())


def main() -> None:
    """Sweeps until SIGTERM or SIGINT."""
    logs.configure(json=settings.get().log_json)
    sweeper = Sweeper()
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    sweeper.start()
    stopped.wait()
    sweeper.stop()


if __name__ == "__main__":
    main()
