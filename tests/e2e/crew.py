"""Two real workers and a sweeper on Postgres and Valkey, whose engine is the stand-in of `tests.actor`, and a look at them."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

from app import db, jobs
from modelpress.spec.state import TERMINAL
from tests import making, servers

SHORT = {
    "lease_s": 4,
    "heartbeat_s": 0.5,
    "sweep_s": 0.5,
    "resend_s": 2,
    "drain_s": 0.5,
    "max_attempts": 25,
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


def state(job_id: str) -> str:
    return making.row(job_id).state


def wait_for(job_id: str, *wanted: str) -> None:
    servers.until(lambda: state(job_id) in wanted, what=lambda: f"{job_id} is {state(job_id)}")


def wait_for_end(*job_ids: str, timeout_s: float = servers.PATIENCE_S) -> None:
    servers.until(
        lambda: all(state(job_id) in TERMINAL for job_id in job_ids),
        timeout_s,
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
