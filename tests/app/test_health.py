"""Health, metrics and version, which need no key."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

import modelpress
from app import db, ids, schema, tables
from modelpress.spec.state import JobState
from tests import servers
from tests.app.conftest import Api

HEAVY = ("torch", "numpy", "onnx", "onnx_ir", "onnxruntime", "PIL", "workers")


@pytest.fixture
def migrated(api: Api) -> Api:
    """An API whose database was made by migrations, as ready asks."""
    with db.engine().begin() as connection:
        connection.exec_driver_sql("CREATE TABLE alembic_version (version_num VARCHAR(32))")
        head = schema.newest()
        connection.exec_driver_sql(f"INSERT INTO alembic_version VALUES ('{head}')")
    return api


def test_living_process_says_so_without_a_key(api: Api) -> None:
    with api.client(key="") as client:
        assert client.get("/health/live").json() == {"status": "ok"}


def test_version_is_told(api: Api) -> None:
    with api.client(key="") as client:
        assert client.get("/version").json()["version"] == modelpress.__version__


def test_whole_service_is_ready(migrated: Api) -> None:
    with migrated.client(key="") as client:
        ready = client.get("/health/ready")

    assert ready.status_code == 200
    assert ready.json() == {"status": "ok", "database": True, "storage": True, "broker": True}


def test_database_without_the_newest_tables_is_not_ready(api: Api) -> None:
    with api.client(key="") as client:
        ready = client.get("/health/ready")

    assert (ready.status_code, ready.json()["database"]) == (503, False)


def test_without_a_broker_the_service_is_degraded(
    configure: Callable[..., None], migrated: Api, sqlite_database_url: str
) -> None:
    configure(database_url=sqlite_database_url, broker_url="redis://127.0.0.1:9/0")
    with migrated.client(key="") as client:
        ready = client.get("/health/ready")

    assert ready.status_code == 200
    assert (ready.json()["status"], ready.json()["broker"]) == ("degraded", False)


def test_job_is_accepted_while_the_broker_is_away(
    configure: Callable[..., None], api: Api, sqlite_database_url: str
) -> None:
    configure(database_url=sqlite_database_url, broker_url="redis://127.0.0.1:9/0")
    with api.client() as client:
        upload = client.post("/v1/uploads", content=b"bytes").json()["id"]
        assert client.post("/v1/models", json={"upload": upload}).status_code == 201
        assert client.get("/v1/jobs?kind=inspect_model").json()["items"][0]["state"] == "queued"


def test_metrics_tell_requests_by_route(api: Api) -> None:
    with api.client() as client:
        for _ in range(2):
            client.get("/v1/models/mdl_none")
        client.get("/v1/none")
        samples = _samples(client)

    counted = "modelpress_http_request_seconds_count"
    labels = {"method": "GET", "route": "/v1/models/{model_id}", "status": "404"}
    assert samples[counted, frozenset(labels.items())] >= 2
    routes = {dict(names).get("route", "") for name, names in samples if name == counted}
    assert "none" in routes
    assert not [route for route in routes if "mdl_none" in route]


def test_metrics_tell_jobs_as_the_database_has_them(api: Api) -> None:
    failure = {"class": "resource", "code": "memory_limit", "message": "m"}
    with db.transaction() as session:
        for state in (JobState.QUEUED, JobState.QUEUED, JobState.FAILED):
            failed = state is JobState.FAILED
            session.add(
                tables.Job(
                    id=ids.new("job"),
                    project_id=api.project_id,
                    request={},
                    request_sha256="0" * 64,
                    state=state.value,
                    failure=failure if failed else None,
                    finished_at=tables.now() if failed else None,
                    running_s=2.5,
                )
            )
    with api.client(key="") as client:
        samples = _samples(client)

    def value(name: str, **labels: str) -> float:
        return samples[name, frozenset(labels.items())]

    assert value("modelpress_jobs", kind="compress", state="queued") == 2
    assert value("modelpress_queue_jobs", queue="cpu") == 2
    assert value("modelpress_queue_oldest_seconds", queue="cpu") >= 0
    failed_jobs = {"class": "resource", "code": "memory_limit"}
    assert value("modelpress_failed_jobs", **failed_jobs) == 1
    assert value("modelpress_job_seconds_sum", kind="compress") == 2.5
    assert value("modelpress_expired_leases") == 0


def _samples(client: httpx.Client) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    response = client.get("/metrics")
    assert response.status_code == 200
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def test_api_process_is_light() -> None:
    """It never imports what runs models, and so starts at once."""
    code = (
        "import sys, app.main, app.admin, app.migrate; "
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=servers.ROOT, capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == "[]"


def test_help_names_every_metric(api: Api) -> None:
    with api.client(key="") as client:
        text = client.get("/metrics").text

    named = set(re.findall(r"^# HELP (\S+)", text, re.M))
    assert {name for name in named if not name.startswith("modelpress_")} == set()
    assert len(named) >= 8
