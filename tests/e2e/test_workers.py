"""Two real worker processes, a sweeper, Postgres and Valkey; a stand-in for the engine inside the real fence."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pytest
import redis

from app import db, jobs, settings
from app.accounts import Principal
from modelpress.spec.state import TERMINAL
from tests import making, servers

pytestmark = pytest.mark.e2e

SHORT = {
    "lease_s": 4,
    "heartbeat_s": 0.5,
    "sweep_s": 0.5,
    "resend_s": 2,
    "drain_s": 0.5,
}


class Crew:
    """Two workers and a sweeper that all tests share; who was killed in one is replaced for the next."""

    def __init__(self, home: Path, values: Mapping[str, object], stack: ExitStack) -> None:
        self.home, self.values, self._stack = home, values, stack
        self.workers: list[servers.Running] = []
        self.sweeper = stack.enter_context(self._sweeper())

    def complete(self) -> Crew:
        """Starts who is missing, both at the same time."""
        self.workers = [worker for worker in self.workers if worker.alive()]
        with ThreadPoolExecutor() as starting:
            missing = range(2 - len(self.workers))
            self.workers += starting.map(
                lambda _: self._stack.enter_context(self._worker()), missing
            )
        return self

    def holder(self, job_id: str) -> servers.Running:
        """The worker that runs a job; its owner's name ends with the id of the process in the pool."""
        pid = int(making.row(job_id).owner.rpartition(":")[2])
        [found] = [worker for worker in self.workers if pool_process(worker) == pid]
        return found

    def _worker(self) -> AbstractContextManager[servers.Running]:
        return servers.worker(self.home, module="tests.acting", **self.values)

    def _sweeper(self) -> AbstractContextManager[servers.Running]:
        argv = [sys.executable, "-m", "app.sweeper"]
        env = servers.environment(home=self.home, **self.values)
        return servers.process(argv, log=self.home / "sweeper.log", env=env)


def pool_process(worker: servers.Running) -> int:
    """The forked process of a worker that performs its jobs; 0 between two of them."""
    listed = Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text().split()
    return int(listed[0]) if listed else 0


@pytest.fixture(scope="module")
def standing_crew(
    shared_postgres_url: str, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Crew]:
    values = {"database_url": shared_postgres_url, "broker_url": redis_url, **SHORT}
    with ExitStack() as stack:
        yield Crew(tmp_path_factory.mktemp("crew"), values, stack)


@pytest.fixture
def crew(standing_crew: Crew, configure: Callable[..., None]) -> Crew:
    configure(home=standing_crew.home, **standing_crew.values)
    return standing_crew.complete()


@pytest.fixture
def me(crew: Crew, request: pytest.FixtureRequest) -> Principal:
    someone = making.principal(request.node.name)
    making.store(someone, crew.home / "scratch")
    return someone


def state(job_id: str) -> str:
    return making.row(job_id).state


def wait_for(job_id: str, *wanted: str) -> None:
    servers.until(lambda: state(job_id) in wanted, what=lambda: f"{job_id} is {state(job_id)}")


def wait_for_end(*job_ids: str) -> None:
    servers.until(
        lambda: all(state(job_id) in TERMINAL for job_id in job_ids),
        what=lambda: str([state(job_id) for job_id in job_ids]),
    )


def wait_until_child_acts(job_id: str) -> int:
    """Answers the process id of the child, once it has said something."""
    servers.until(lambda: making.row(job_id).progress is not None and children(job_id))
    return children(job_id)[0]


def children(job_id: str) -> list[int]:
    """The processes that work in a directory of the job."""
    return [pid for pid in _processes() if f"/{job_id}-" in _command(pid)]


def _processes() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    return ""


def ends(job_id: str) -> list[str | None]:
    with db.transaction() as session:
        return [attempt.ended for attempt in jobs.attempts(session, making.row(job_id))]


def test_twenty_jobs_run_exactly_once_each(crew: Crew, me: Principal) -> None:
    made = [making.job(me, seed=seed) for seed in range(20)]
    wait_for_end(*made)
    assert {job_id: ends(job_id) for job_id in made} == {job_id: ["succeeded"] for job_id in made}
    with db.transaction() as session:
        holders = {jobs.attempts(session, making.row(job_id))[0].worker for job_id in made}
    assert len(holders) == 2
    assert list(settings.get().resolved_work_dir.iterdir()) == []


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
