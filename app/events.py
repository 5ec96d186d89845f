"""What happened to jobs: appended in the transaction that made it true, read in pages, replayed to streams. Progress goes after
a while: each event of it is made void by the next one.

The ids of one job's events are committed in their order, so a reader of that job misses none by asking for
"after the last one I saw". This holds because whoever appends has first locked the job's row by updating it.
It does not hold across jobs: there, a smaller id may be committed later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import and_, delete, or_, select
from sqlalchemy.orm import Session

from app import db
from app.tables import Event, Job
from modelpress.spec.progress import Progress
from modelpress.spec.report import Stage

PAGE = 500
_UNSEEN = {"synchronize_session": False}


def state(session: Session, job: Job) -> None:
    """Notes where a job is now; the caller has inserted or updated its row in this transaction."""
    data = {
        "state": job.state,
        "attempt": job.attempt,
        "outcome": job.outcome,
        "failure": job.failure,
    }
    _append(session, job, "state", data)


def progress(session: Session, job: Job, at: Progress) -> None:
    """Notes how far a job is; the caller has updated its row in this transaction."""
    _append(session, job, "progress", at.model_dump(mode="json"))


def stage(session: Session, job: Job, index: int, measured: Stage) -> None:
    """Notes the figures of a finished stage that people watch for; the report has the rest."""
    quality = measured.quality
    data = {
        "index": index,
        "name": measured.name,
        "step": measured.step,
        "seconds": measured.seconds,
        "size_bytes": measured.size.file_bytes,
        "latency_p50_ms": measured.latency.p50_ms,
        "latency_ratio": measured.latency.ratio,
        "macs": measured.cost.macs,
        "accuracy": quality.accuracy if quality else None,
        "agreement": quality.agreement if quality else None,
    }
    _append(session, job, "stage", data)


def _append(session: Session, job: Job, type_: str, data: dict[str, Any]) -> None:
    session.add(Event(project_id=job.project_id, job_id=job.id, type=type_, data=data))


def forget_progress(session: Session, *, kept: timedelta, limit: int) -> int:
    """Removes up to `limit` of the progress events that are older than `kept`, and answers how many."""
    old = select(Event.id).where(
        Event.type == "progress", Event.created_at < db.now(session) - kept
    )
    oldest = session.scalars(old.order_by(Event.created_at).limit(limit)).all()
    session.execute(delete(Event).where(Event.id.in_(oldest)), execution_options=_UNSEEN)
    return len(oldest)


def page(session: Session, job_id: str, *, after: int = 0, limit: int = PAGE) -> Sequence[Event]:
    """The first `limit` events of a job with ids above `after`, in order."""
    return since(session, {job_id: after}, limit=limit)


def since(session: Session, seen: Mapping[str, int], *, limit: int = PAGE) -> Sequence[Event]:
    """The first `limit` events of several jobs, for each job those with ids above the one last seen."""
    if not seen:
        return []
    unseen = or_(*(and_(Event.job_id == job, Event.id > last) for job, last in seen.items()))
    return session.scalars(select(Event).where(unseen).order_by(Event.id).limit(limit)).all()
