"""What Prometheus reads: requests of this process, and the state of the service as the database has it now."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app import db
from app.tables import Attempt, Job, Model, Upload
from modelpress.spec.state import JobState

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_registry = CollectorRegistry()
_requests = Histogram(
    "modelpress_http_request_seconds",
    "Time from a request's first byte to its answer's last, by route template.",
    ["method", "route", "status"],
    registry=_registry,
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60, 600),
)


def observe_request(method: str, route: str, status: int, seconds: float) -> None:
    """Counts one answered request."""
    _requests.labels(method, route, str(status)).observe(seconds)


def render() -> bytes:
    """Everything in Prometheus' text format; the database is asked now."""
    return generate_latest(_registry)


class _Database(Collector):
    def describe(self) -> list[Metric]:
        return []  # so that registering it asks the database nothing

    def collect(self) -> Iterator[Metric]:
        with db.transaction() as session:
            yield _jobs(session)
            yield _failures(session)
            yield from _queues(session)
            yield _leases(session)
            yield _seconds(session)
            yield _attempts(session)
            yield _uploads(session)
            yield _stored(session)


_registry.register(_Database())


def _jobs(session: Session) -> Metric:
    family = GaugeMetricFamily("modelpress_jobs", "Jobs.", labels=["kind", "state"])
    rows = session.execute(select(Job.kind, Job.state, func.count()).group_by(Job.kind, Job.state))
    for kind, state, count in rows:
        family.add_metric([kind, state], count)
    return family


def _failures(session: Session) -> Metric:
    family = GaugeMetricFamily(
        "modelpress_failed_jobs", "Failed jobs, by failure.", labels=["class", "code"]
    )
    class_, code = Job.failure["class"].as_string(), Job.failure["code"].as_string()
    rows = session.execute(
        select(class_, code, func.count())
        .where(Job.state == JobState.FAILED)
        .group_by(class_, code)
    )
    for name, cause, count in rows:
        family.add_metric([name, cause], count)
    return family


def _queues(session: Session) -> Iterator[Metric]:
    depth = GaugeMetricFamily("modelpress_queue_jobs", "Jobs that wait.", labels=["queue"])
    age = GaugeMetricFamily(
        "modelpress_queue_oldest_seconds", "Age of the job that waits longest.", labels=["queue"]
    )
    now = db.now(session)
    rows = session.execute(
        select(Job.queue, func.count(), func.min(Job.created_at))
        .where(Job.state == JobState.QUEUED)
        .group_by(Job.queue)
    )
    for queue, count, oldest in rows:
        depth.add_metric([queue], count)
        age.add_metric([queue], (now - oldest).total_seconds())
    yield depth
    yield age


def _leases(session: Session) -> Metric:
    family = GaugeMetricFamily(
        "modelpress_expired_leases",
        "Jobs whose worker fell silent and that no sweep has taken yet.",
    )
    expired = select(func.count()).where(Job.lease_until < db.now(session))
    family.add_metric([], session.execute(expired).scalar_one())
    return family


def _seconds(session: Session) -> Metric:
    family = SummaryMetricFamily(
        "modelpress_job_seconds", "Running time of ended jobs, all attempts.", labels=["kind"]
    )
    rows = session.execute(
        select(Job.kind, func.count(), func.sum(Job.running_s))
        .where(Job.finished_at.is_not(None))
        .group_by(Job.kind)
    )
    for kind, count, seconds in rows:
        family.add_metric([kind], count, seconds)
    return family


def _attempts(session: Session) -> Metric:
    family = GaugeMetricFamily(
        "modelpress_attempts",
        "Attempts, by how they ended; 'lost' ones had a worker fall silent.",
        labels=["ended"],
    )
    ended = func.coalesce(Attempt.ended, "running")
    for how, count in session.execute(select(ended, func.count()).group_by(ended)):
        family.add_metric([how], count)
    return family


def _uploads(session: Session) -> Metric:
    family = GaugeMetricFamily("modelpress_uploads", "Uploads.", labels=["state"])
    for state, count in session.execute(select(Upload.state, func.count()).group_by(Upload.state)):
        family.add_metric([state], count)
    return family


def _stored(session: Session) -> Metric:
    family = GaugeMetricFamily("modelpress_model_bytes", "Bytes of all uploaded models.")
    family.add_metric([], session.execute(select(func.sum(Model.size_bytes))).scalar_one() or 0)
    return family
