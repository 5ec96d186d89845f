"""Faults of every kind, at random, while jobs run: none is lost, none succeeds twice.

By default a short run with a fixed seed; MODELPRESS_CHAOS=faults,jobs,seed makes it longer: '200,500,3'.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable

import pytest
import redis
from sqlalchemy import func, select, text

from app import broker, db, events, jobs
from app.accounts import Principal
from app.tables import Artifact, Job
from tests import making
from tests.e2e.crew import Crew, children, pool_process, state, wait_for_end

pytestmark = pytest.mark.e2e

FAULTS, JOBS, SEED = (
    int(word) for word in os.environ.get("MODELPRESS_CHAOS", "10,12,1").split(",")
)
ACT_S = 1.0


class Chaos:
    """What can go wrong, to one of the crew or to a server."""

    def __init__(self, crew: Crew, redis_url: str, job_ids: list[str]) -> None:
        self.crew, self.redis_url, self.job_ids = crew, redis_url, job_ids
        self.random = random.Random(SEED)
        self.faults: list[Callable[[], object]] = [
            self.kill_worker,
            self.kill_pool_process,
            self.kill_child,
            self.stop_worker,
            self.pause_worker,
            self.flush_broker,
            self.send_twice,
            self.cut_connections,
        ]

    def strike(self) -> str:
        fault = self.random.choice(self.faults)
        fault()
        return fault.__name__

    def kill_worker(self) -> None:
        self.random.choice(self.crew.complete().workers).kill()

    def kill_pool_process(self) -> None:
        kill(pool_process(self.random.choice(self.crew.complete().workers)))

    def kill_child(self) -> None:
        if running := [pid for job_id in self.job_ids for pid in children(job_id)]:
            kill(self.random.choice(running))

    def stop_worker(self) -> None:
        self.random.choice(self.crew.complete().workers).process.terminate()

    def pause_worker(self) -> None:
        """Longer than its lease."""
        worker = self.random.choice(self.crew.complete().workers)
        os.killpg(worker.pid, signal.SIGSTOP)
        time.sleep(5)
        os.killpg(worker.pid, signal.SIGCONT)

    def flush_broker(self) -> None:
        redis.Redis.from_url(self.redis_url).flushall()

    def send_twice(self) -> None:
        for job_id in self.job_ids:
            broker.send("cpu", broker.TASK, job_id)

    def cut_connections(self) -> None:
        """As a Postgres does that is restarted."""
        with db.transaction() as session:
            session.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            )


def kill(pid: int) -> None:
    """Kills a process, if there still is one."""
    with contextlib.suppress(ProcessLookupError):
        if pid:
            os.kill(pid, signal.SIGKILL)


def test_no_fault_loses_a_job_or_makes_it_succeed_twice(
    crew: Crew, me: Principal, redis_url: str
) -> None:
    job_ids = [making.job(me, act=f"sleep {ACT_S}", seed=number) for number in range(JOBS)]
    chaos = Chaos(crew, redis_url, job_ids)
    struck = []
    for _ in range(FAULTS):
        struck.append(chaos.strike())
        time.sleep(chaos.random.uniform(0.2, 1.5))
    crew.complete()
    wait_for_end(*job_ids, timeout_s=60 + 10 * JOBS)
    assert {job_id: state(job_id) for job_id in job_ids} == dict.fromkeys(job_ids, "succeeded"), (
        struck
    )
    for job_id in job_ids:
        assert_succeeded_once(job_id)


def assert_succeeded_once(job_id: str) -> None:
    with db.transaction() as session:
        job = session.get_one(Job, job_id)
        ends = [attempt.ended for attempt in jobs.attempts(session, job)]
        told = [e.data["state"] for e in events.page(session, job_id) if e.type == "state"]
        files = select(func.count()).where(Artifact.job_id == job_id)
        assert session.scalar(files) == 1
    assert ends.count("succeeded") == told.count("succeeded") == 1
    assert ends[-1] == told[-1] == "succeeded"
    assert None not in ends
