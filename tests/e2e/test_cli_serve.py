"""`modelpress serve`: what it starts, what it survives, what it leaves."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelpress import _serve, embedded
from modelpress.client import Client
from modelpress.spec.progress import Progress
from tests import examples, servers
from tests.conftest import Service

pytestmark = pytest.mark.e2e

PATIENCE_S = 120.0
LONG = {
    "steps": [
        {"kind": "prune.magnitude", "sparsity": 0.5, "rounds": 2, "fine_tune": {"epochs": 10}}
    ]
}


def processes(home: Path) -> dict[int, str]:
    """The processes of a service by id: whoever has its home in the environment."""
    wanted, found = f"MODELPRESS_HOME={home}\0".encode(), {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if wanted in (entry / "environ").read_bytes() + b"\0":
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                if command:
                    found[int(entry.name)] = command
    return found


def leader(home: Path, part: str) -> int:
    """The process of the service whose command holds `part` and that leads its own session."""
    return next(
        pid for pid, command in processes(home).items() if part in command and os.getsid(pid) == pid
    )


def until(true: object, what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not true():  # type: ignore[operator]
        assert time.monotonic() < end, f"{what} did not happen within {PATIENCE_S:g} s"
        time.sleep(0.1)


@contextlib.contextmanager
def serving(home: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    argv = [sys.executable, "-m", "modelpress", "serve", "--home", str(home), *options]
    process = subprocess.Popen(
        argv, env=servers.environment(), stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def said(process: subprocess.Popen[str], wanted: str) -> str:
    """The first line on standard error that holds `wanted`."""
    assert process.stderr is not None
    return next(line for line in process.stderr if wanted in line)


def test_killed_worker_is_started_again_and_its_job_ends(service: Service, tmp_path: Path) -> None:
    model, data = examples.digits(tmp_path)
    killed: list[int] = []

    def kill_once(at: Progress) -> None:
        if at.name == "prune.magnitude" and not killed:
            killed.append(leader(service.home, "worker-1@"))
            os.kill(killed[0], signal.SIGKILL)

    with Client(service.url, service.key) as client:
        uploaded = client.upload_model(model)
        job = client.submit(uploaded, LONG, data=client.upload_dataset(data))
        ended = client.wait(job, on_progress=kill_once, timeout_s=600)
        attempts = client.attempts(job)
    assert killed
    assert ended.state == "succeeded"
    assert ended.attempt == 2
    assert {attempt.ended for attempt in attempts} == {"lost", "succeeded"}
    assert leader(service.home, "worker-1@") != killed[0]


def test_killed_api_is_started_again(service: Service) -> None:
    killed = leader(service.home, "app.main")
    os.kill(killed, signal.SIGKILL)
    with Client(service.url, service.key, retries=10) as client:
        assert client.project().name == "default"
    assert leader(service.home, "app.main") != killed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_service_is_stopped_with_all_its_processes(tmp_path: Path, number: int) -> None:
    home = tmp_path / "home"
    with serving(home, "--port", "0") as process:
        said(process, "is ready at")
        assert len(processes(home)) >= 3
        process.send_signal(number)
        assert process.wait(60) == 0
    assert processes(home) == {}


def test_nothing_outlives_a_service_killed_with_9(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with serving(home, "--port", "0") as process:
        said(process, "is ready at")
        process.kill()
        until(lambda: not processes(home), "the end of all processes")


def test_key_file_is_for_its_owner_alone(service: Service) -> None:
    assert (service.home / "key.json").stat().st_mode & 0o777 == 0o600
    assert service.home.stat().st_mode & 0o777 == 0o700


def test_one_home_has_one_service(service: Service) -> None:
    with serving(service.home, "--port", "0") as process:
        assert process.wait(60) == 1
        assert process.stderr is not None
        assert "another `modelpress serve` uses" in process.stderr.read().replace("\n", " ")


def test_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with serving(tmp_path / "home", "--port", port) as process:
            assert process.wait(60) == 1
            assert process.stderr is not None
            assert f"127.0.0.1:{port} can't be listened on" in process.stderr.read()


def test_child_that_does_not_start_is_shown_by_the_end_of_its_log(tmp_path: Path) -> None:
    settings = {"MODELPRESS_DATABASE_URL": "sqlite:////nowhere/at/all.db"}
    with (
        pytest.raises(embedded.errors.Unreachable, match=r"migrate \|.*unable to open"),
        embedded.server(tmp_path / "home", settings=settings),
    ):
        raise AssertionError("it started")


def test_service_without_workers_only_answers(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with serving(home, "--port", "0", "--no-worker") as process:
        said(process, "is ready at")
        assert not any("celery" in command for command in processes(home).values())


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::1", "http://[::1]:80"),
        ("::", "http://127.0.0.1:80"),
    ],
)
def test_address_people_can_use_is_told(host: str, url: str) -> None:
    assert _serve.Plan(host, 80, Path("/"), 1).url == url
