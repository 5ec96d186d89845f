"""Two real worker processes, a sweeper, Postgres and Valkey: killed, paused, drained, flushed, one at a time."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import redis

from app import db, jobs, settings
from app.accounts import Principal
from tests import making, servers
from tests.e2e.crew import (
    Crew,
    children,
    ends,
    pool_process,
    state,
    wait_for,
    wait_for_end,
    wait_until_child_acts,
)

pytestmark = pytest.mark.e2e


def test_twenty_jobs_run_exactly_once_each(crew: Crew, me: Principal) -> None:
    made = [making.job(me, seed=seed) for seed in range(20)]
    wait_for_end(*made)
    assert {job_id: ends(job_id) for job_id in made} == {job_id: ["succeeded"] for job_id in made}
    with db.transaction() as session:
        holders = {jobs.attempts(session, making.row(job_id))[0].worker for job_id in made}
    assert len(holders) == 2
    assert list(settings.get().resolved_work_dir.iterdir()) == []


def test_process_of_a_worker_has_not_loaded_torch(crew: Crew, me: Principal) -> None:
    wait_for_end(*(making.job(me) for _ in crew.workers))
    for worker in crew.workers:
        for pid in (worker.pid, pool_process(worker)):
            mapped = Path(f"/proc/{pid}/maps").read_text()
            assert "/celery" in mapped or "/python" in mapped
            assert not any(f"/{name}/" in mapped for name in ("torch", "onnx", "numpy"))


def test_cancelled_job_ends_with_its_child(crew: Crew, me: Principal) -> None:
    job_id = making.job(me, act="sleep 60")
    wait_until_child_acts(job_id)
    with db.transaction() as session:
        jobs.cancel(session, me, job_id)
    wait_for(job_id, "cancelled")
    servers.until(lambda: not children(job_id))


def test_job_whose_child_is_killed_runs_again(crew: Crew, me: Principal) -> None:
    job_id = making.job(me, act="sleep 2")
    os.kill(wait_until_child_acts(job_id), signal.SIGKILL)
    wait_for_end(job_id)
    assert state(job_id) == "succeeded"
    assert ends(job_id) == ["failed", "succeeded"]


def test_job_whose_pool_process_is_killed_runs_again(crew: Crew, me: Principal) -> None:
    job_id = making.job(me, act="sleep 2")
    wait_until_child_acts(job_id)
    os.kill(pool_process(crew.holder(job_id)), signal.SIGKILL)
    wait_for_end(job_id)
    assert state(job_id) == "succeeded"
    assert ends(job_id) == ["lost", "succeeded"]


def test_job_of_a_killed_worker_runs_again(crew: Crew, me: Principal) -> None:
    job_id = making.job(me, act="sleep 2")
    wait_until_child_acts(job_id)
    crew.holder(job_id).kill()
    wait_for_end(job_id)
    assert state(job_id) == "succeeded"
    assert ends(job_id) == ["lost", "succeeded"]
    servers.until(lambda: not children(job_id))


def test_worker_told_to_stop_hands_its_job_over_uncharged(crew: Crew, me: Principal) -> None:
    job_id = making.job(me, act="sleep 4")
    wait_until_child_acts(job_id)
    assert crew.holder(job_id).terminate() == 0
    wait_for_end(job_id)
    assert state(job_id) == "succeeded"
    assert ends(job_id) == ["drained", "succeeded"]
    assert making.row(job_id).attempt == 1


def test_whole_process_group_told_to_stop_hands_its_job_over_too(crew: Crew, me: Principal) -> None:
    """As a terminal or a container runtime does it: the pool's process gets the signal with its parent."""
    job_id = making.job(me, act="sleep 4")
    wait_until_child_acts(job_id)
    holder = crew.holder(job_id)
    os.killpg(holder.pid, signal.SIGTERM)
    holder.process.wait(30)
    wait_for_end(job_id)
    assert ends(job_id) == ["drained", "succeeded"]


def test_worker_paused_longer_than_its_lease_is_fenced_off(crew: Crew, me: Principal) -> None:
    job_id = making.job(me, act="sleep 6")
    wait_until_child_acts(job_id)
    paused = crew.holder(job_id)
    os.killpg(paused.pid, signal.SIGSTOP)
    servers.until(lambda: making.row(job_id).fence == 2)
    os.killpg(paused.pid, signal.SIGCONT)
    servers.until(lambda: len(children(job_id)) == 1)
    wait_for_end(job_id)
    assert state(job_id) == "succeeded"
    assert ends(job_id) == ["lost", "succeeded"]
    assert paused.alive()


def test_jobs_whose_messages_were_flushed_are_sent_again(
    crew: Crew, me: Principal, redis_url: str
) -> None:
    busy = [making.job(me, act="sleep 2") for _ in crew.workers]
    for job_id in busy:
        wait_until_child_acts(job_id)
    waiting = [making.job(me) for _ in range(3)]
    redis.Redis.from_url(redis_url).flushall()
    wait_for_end(*busy, *waiting)
    assert [ends(job_id) for job_id in [*busy, *waiting]] == [["succeeded"]] * 5
