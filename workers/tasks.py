"""The Celery process: takes job ids and performs them, one at a time. It never imports torch.

    celery -A workers.tasks:celery worker

A message is acknowledged before the work begins and carries an id only. A worker that is killed loses its lease and
nothing else; the sweep gives the job to another.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import structlog
from celery import Task, signals

from app import broker, db, logs, settings
from workers import attempt, drain, performing, sandbox, staging

EXIT_UNFENCED = 97
ENGINE: Sequence[str] = attempt.ENGINE

celery = broker.make_celery()
celery.conf.update(worker_concurrency=1, worker_max_tasks_per_child=50)
celery.amqp.queues.select(
    [queue for queue in broker.QUEUES if settings.get().worker_queues in ("all", queue)]
)


@celery.task(name=broker.TASK, bind=True)
def run(self: Task, job_id: str) -> None:
    """Performs a job, if it still waits for a worker."""
    with structlog.contextvars.bound_contextvars(job_id=job_id):
        performing.perform(job_id, owner=f"{self.request.hostname}:{os.getpid()}", engine=ENGINE)


@signals.setup_logging.connect
def _log(**_: Any) -> None:
    logs.configure(json=settings.get().log_json)


@signals.worker_init.connect
def _require_fence(**_: Any) -> None:
    """Refuses to start where children can't be confined, before any message is taken."""
    try:
        level = sandbox.level()
    except sandbox.SandboxMissing as e:
        print(f"the worker does not start: {e}", file=sys.stderr, flush=True)  # noqa: T201
        raise SystemExit(EXIT_UNFENCED) from e
    structlog.get_logger(__name__).info("the fence of this worker", sandbox=level)


@signals.worker_ready.connect
def _tidy(**_: Any) -> None:
    staging.remove_orphans()


@signals.worker_process_init.connect
def _begin_process(**_: Any) -> None:
    """Starts a pool's child clean: without its parent's connections, and giving its job back when it is told to end."""
    db.forget_engine()
    signal.signal(signal.SIGTERM, _leave)


def _leave(_number: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + signal.SIGTERM)


@signals.worker_shutting_down.connect
def _drain(**_: Any) -> None:
    drain.begin()
