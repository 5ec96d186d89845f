"""The Celery process: what it loads, where it refuses to start, and what it leaves on the disk."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from app import settings
from tests import servers
from workers import staging, tasks


def start_unfenced(home: Path, **values: object) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "celery", "-A", "tests.unfenced:celery", "worker"]
    env = servers.environment(home=home, **values)
    return subprocess.run(
        argv, cwd=servers.ROOT, env=env, capture_output=True, text=True, timeout=60
    )


def test_worker_that_can_not_fence_its_children_does_not_start(tmp_path: Path) -> None:
    done = start_unfenced(tmp_path)
    assert done.returncode == tasks.EXIT_UNFENCED == 97
    assert "ALLOW_UNSANDBOXED=1" in done.stderr
    assert "Traceback" not in done.stderr


def test_worker_without_a_fence_starts_where_that_is_allowed(tmp_path: Path) -> None:
    with servers.worker(tmp_path, module="tests.unfenced", allow_unsandboxed=1) as worker:
        assert "sandbox=none" in worker.text()
        assert worker.terminate() == 0


def test_worker_serves_the_queues_it_is_set_to(tmp_path: Path) -> None:
    script = "from workers import tasks; print(*sorted(tasks.celery.amqp.queues.consume_from))"
    for asked, served in (("all", "cpu gpu ingest"), ("gpu", "gpu")):
        env = servers.environment(home=tmp_path, worker_queues=asked)
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=servers.ROOT,
            env=env,
            capture_output=True,
            text=True,
        )
        assert done.stdout.split() == served.split(), done.stderr


@pytest.fixture
def work_dir(configure: Callable[..., None]) -> Path:
    configure()
    path = settings.get().resolved_work_dir
    path.mkdir()
    return path


def left(work_dir: Path, name: str, *, age_s: float) -> Path:
    path = work_dir / name
    (path / "output").mkdir(parents=True)
    (path / "output" / "file").write_text("content")
    os.utime(path, times=(time.time() - age_s,) * 2)
    return path


def test_directories_of_killed_workers_are_removed(work_dir: Path) -> None:
    left(work_dir, "job_a-1", age_s=100)
    assert staging.remove_orphans() == 1
    assert list(work_dir.iterdir()) == []


def test_directory_in_use_is_kept(work_dir: Path) -> None:
    path = left(work_dir, "job_a-1", age_s=100)
    lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert staging.remove_orphans() == 0
    assert (path / "output" / "file").exists()
    os.close(lock)


def test_young_directory_and_what_is_none_of_ours_are_kept(work_dir: Path) -> None:
    left(work_dir, "job_a-1", age_s=0)
    left(work_dir, "something", age_s=100)
    assert staging.remove_orphans() == 0
    assert len(list(work_dir.iterdir())) == 2
