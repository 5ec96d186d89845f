"""Ctrl-C while a job is watched."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelpress._ended import Exit
from modelpress.client import Client
from modelpress.resources import Job
from tests import examples, servers
from tests.conftest import Service

pytestmark = pytest.mark.e2e

ENDLESS = {"steps": [{"kind": "prune.magnitude", "sparsity": 0.5, "fine_tune": {"epochs": 1000}}]}


@pytest.fixture(scope="module")
def inputs(service: Service, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    model, data = examples.digits(tmp_path_factory.mktemp("inputs"))
    with Client(service.url, service.key) as client:
        return client.upload_model(model).id, client.upload_dataset(data).id


@pytest.fixture
def job(service: Service, inputs: tuple[str, str]) -> Iterator[Job]:
    """A job that does not end by itself."""
    with Client(service.url, service.key) as client:
        made = client.submit(inputs[0], ENDLESS, data=inputs[1])
        yield made
        if not client.job(made).ended:
            client.cancel(made)
            client.wait(made, check=False)


def watch(service: Service, job: Job, **streams: int) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", "modelpress", "watch", job.id]
    environment = servers.environment(home=service.home)
    return subprocess.Popen(argv, env=environment, start_new_session=True, **streams)


def heard(descriptor: int, wanted: bytes) -> bytes:
    """What is written, up to `wanted`."""
    text = b""
    while wanted not in text:
        text += os.read(descriptor, 4096)
    return text


def test_without_a_terminal_the_job_goes_on(service: Service, job: Job) -> None:
    process = watch(service, job, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    assert b"baseline" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == Exit.INTERRUPTED
    assert f"modelpress watch {job.id}" in said.decode()
    with Client(service.url, service.key) as client:
        assert not client.job(job).ended


@pytest.mark.parametrize(("answer", "state"), [(b"n\n", "running"), (b"y\n", "cancelled")])
def test_on_a_terminal_the_user_is_asked(
    service: Service, job: Job, answer: bytes, state: str, tmp_path: Path
) -> None:
    ours, theirs = pty.openpty()
    process = watch(service, job, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    try:
        heard(ours, b"prune.magnitude")
        process.send_signal(signal.SIGINT)
        heard(ours, b"Cancel the job?")
        os.write(ours, answer)
        heard(ours, b"job " + job.id.encode())
        assert process.wait(60) == Exit.INTERRUPTED
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    with Client(service.url, service.key) as client:
        assert client.job(job).state == state
