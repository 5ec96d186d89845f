"""The commands of docker-compose.yml as real processes, with its environment and its health checks, on real servers.

No container engine is needed: what differs from Compose is where the servers are, the port, and the image.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelpress.client import Client
from tests import examples, servers
from tests.deploy import compose

SERVICES = compose.services(dict.fromkeys(compose.required(), "s3cret"))
PORT = "8765"


class Deployment:
    """A host on which the services of the compose file can be run."""

    def __init__(self, home: Path, places: dict[str, str]) -> None:
        self.home, self.port = home, str(servers.free_port())
        self.places = places

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def run(self, name: str) -> None:
        """Runs a service that ends, as `migrate` does."""
        subprocess.run(self._here(SERVICES[name].command), env=self.environment(name), check=True)

    @contextlib.contextmanager
    def up(self, name: str) -> Iterator[servers.Running]:
        """Runs a service that stays; it is healthy by its own check when the block begins."""
        argv, log = self._here(SERVICES[name].command), self.home / f"{name}.log"
        with servers.process(argv, log=log, env=self.environment(name)) as service:
            servers.wait(service, lambda: self.healthy(name))
            yield service

    def healthy(self, name: str) -> bool:
        """What the health check of a service says."""
        done = subprocess.run(
            self._here(SERVICES[name].health), env=self.environment(name), capture_output=True
        )
        return done.returncode == 0

    def _here(self, words: list[str]) -> list[str]:
        return [word.replace(PORT, self.port) for word in words]

    def environment(self, name: str) -> dict[str, str]:
        given = SERVICES[name].environment | {"MODELPRESS_PORT": PORT}
        placed = {k: self.places.get(k, v.replace(PORT, self.port)) for k, v in given.items()}
        binaries = Path(sys.executable).parent
        path = {"PATH": f"{binaries}:{os.environ['PATH']}"}
        return servers.environment() | placed | path | {"MODELPRESS_HOME": str(self.home)}


@pytest.fixture
def deployment(
    tmp_path: Path, empty_postgres_url: str, redis_url: str, s3: servers.S3
) -> Deployment:
    places = servers.variables(database_url=empty_postgres_url, broker_url=redis_url, **s3.settings)
    return Deployment(tmp_path, places)


def test_environment_differs_from_compose_only_in_places(deployment: Deployment) -> None:
    """A setting that only this test would give could hide one that the file lacks."""
    given = {k for k in deployment.environment("worker") if k.startswith("MODELPRESS_")}
    added = {"MODELPRESS_HOME", "MODELPRESS_PORT"}
    assert given - added == set(SERVICES["worker"].environment)


@pytest.mark.e2e
def test_a_job_goes_through_the_services_of_the_compose_file(deployment: Deployment) -> None:
    deployment.run("migrate")
    first = (deployment.home / "key.json").read_text()
    deployment.run("migrate")
    assert (deployment.home / "key.json").read_text() == first
    with contextlib.ExitStack() as stack:
        up = {
            n: stack.enter_context(deployment.up(n))
            for n in ("api", "inspector", "worker", "sweeper")
        }
        with Client(deployment.url, json.loads(first)["key"]) as client:
            _compress(client, deployment.home)
        for name, service in up.items():
            assert service.terminate() in (0, -15), f"{name}: {service.text()}"


def _compress(client: Client, directory: Path) -> None:
    network, data = examples.digits(directory)
    model, dataset = client.upload_model(network), client.upload_dataset(data)
    job = client.wait(client.submit(model, "int8", data=dataset), timeout_s=300)
    assert job.state == "succeeded", job.failure
    files = client.fetch(job, directory / "out")
    assert "model.onnx" in {file.name for file in files}


@pytest.mark.e2e
def test_health_check_of_the_api_fails_without_the_api(deployment: Deployment) -> None:
    assert not deployment.healthy("api")


@pytest.mark.e2e
def test_health_check_of_the_worker_fails_without_a_broker(deployment: Deployment) -> None:
    assert deployment.healthy("worker")
    deployment.places["MODELPRESS_BROKER_URL"] = f"redis://127.0.0.1:{servers.free_port()}/0"
    assert not deployment.healthy("worker")
