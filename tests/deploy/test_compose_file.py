"""docker-compose.yml and Dockerfile: valid, locked down, and naming only what exists. No container is run."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from app import settings
from tests import servers
from tests.deploy import compose

SCHEMA = json.loads(Path(__file__).with_name("compose-spec.json").read_text())
SERVICES = compose.services(dict.fromkeys(compose.required(), "s3cret"))
OURS = {n: s for n, s in SERVICES.items() if s.spec["image"].startswith("modelpress-")}
ONCE = {"migrate", "bucket"}
DOCKERFILE = (servers.ROOT / "Dockerfile").read_text()
EXAMPLE = (servers.ROOT / ".env.example").read_text()


def variables_of_settings() -> set[str]:
    fields = settings.Settings.model_fields.items()
    return {str(f.validation_alias or f"MODELPRESS_{name.upper()}") for name, f in fields}


def test_file_follows_the_compose_specification() -> None:
    jsonschema.Draft202012Validator(SCHEMA).validate(compose.raw())


def test_schema_would_notice_a_misspelt_key() -> None:
    document = compose.raw()
    document["services"]["api"]["comand"] = ["x"]
    with pytest.raises(jsonschema.ValidationError, match="comand"):
        jsonschema.Draft202012Validator(SCHEMA).validate(document)


def test_every_part_of_the_service_is_there() -> None:
    assert {"postgres", "redis", "store", "migrate", "api", "worker", "sweeper"} <= set(SERVICES)


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_every_setting_in_an_environment_exists(name: str) -> None:
    given = {v for v in SERVICES[name].environment if v.startswith("MODELPRESS_")}
    assert given <= variables_of_settings()


def test_every_setting_in_the_dockerfile_exists() -> None:
    assert set(re.findall(r"MODELPRESS_\w+", DOCKERFILE)) <= variables_of_settings()


@pytest.mark.parametrize("name", sorted(OURS))
def test_environment_of_a_service_is_accepted_by_our_settings(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in SERVICES[name].environment.items():
        monkeypatch.setenv(variable, value)
    accepted = settings.Settings()
    assert accepted.database_url.startswith("postgresql+psycopg://")
    assert accepted.broker_url.startswith("redis://")
    assert accepted.storage_url.startswith("s3://")
    assert not accepted.sweep_in_api


def test_every_queue_has_a_worker() -> None:
    taken = {s.environment.get("MODELPRESS_WORKER_QUEUES") for s in OURS.values()} - {None}
    assert taken == {"cpu", "gpu", "ingest"}


def test_gpu_worker_is_started_only_when_asked_for() -> None:
    gpu = SERVICES["worker-gpu"].spec
    assert gpu["profiles"] == ["gpu"]
    (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_service_restarts_and_is_limited(name: str) -> None:
    spec = SERVICES[name].spec
    assert spec["restart"] == ("on-failure" if name in ONCE else "unless-stopped")
    assert spec["mem_limit"]
    assert spec["pids_limit"] > 0


@pytest.mark.parametrize("name", sorted(set(SERVICES) - ONCE))
def test_service_that_stays_has_a_health_check(name: str) -> None:
    assert SERVICES[name].spec["healthcheck"]["test"]


@pytest.mark.parametrize("name", sorted(OURS))
def test_our_containers_can_do_nothing_they_need_not(name: str) -> None:
    spec = SERVICES[name].spec
    assert spec["cap_drop"] == ["ALL"]
    assert spec["security_opt"] == ["no-new-privileges:true"]
    assert spec["read_only"] is True
    assert "privileged" not in spec


@pytest.mark.parametrize("name", sorted(set(SERVICES) - {"api"}))
def test_only_the_api_is_reachable_from_outside(name: str) -> None:
    assert SERVICES[name].spec["networks"] == ["inside"]
    assert "ports" not in SERVICES[name].spec


def test_api_listens_on_this_host_only_unless_told() -> None:
    assert SERVICES["api"].spec["ports"] == ["127.0.0.1:8765:8765"]
    assert compose.raw()["networks"]["inside"] == {"internal": True}


def test_worker_has_longer_to_stop_than_a_child_to_drain() -> None:
    for name in ("worker", "worker-gpu", "inspector"):
        grace_s = int(SERVICES[name].spec["stop_grace_period"].removesuffix("s"))
        assert grace_s >= settings.Settings.model_fields["drain_s"].default + 30


def test_redis_keeps_what_it_is_given() -> None:
    command = " ".join(SERVICES["redis"].command)
    assert "--appendonly yes" in command
    assert "--maxmemory-policy noeviction" in command


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_foreign_images_are_pinned_to_a_version(name: str) -> None:
    image: str = SERVICES[name].spec["image"]
    if name not in OURS:
        assert re.search(r":\d+(\.\d+)*$", image)


def test_secrets_have_no_default() -> None:
    secrets = {v for v in compose.required() | compose.optional() if re.search("PASSWORD|KEY", v)}
    assert secrets == compose.required()


def test_example_of_the_environment_names_every_variable() -> None:
    filled = set(re.findall(r"^(\w+)=$", EXAMPLE, re.MULTILINE))
    commented = set(re.findall(r"^# (\w+)=", EXAMPLE, re.MULTILINE))
    assert filled == compose.required()
    assert commented == compose.optional()


def stage_text(stage: str) -> str:
    """The instructions of a stage of the Dockerfile, each on one line."""
    stages = re.split(r"^FROM ", DOCKERFILE.replace("\\\n", ""), flags=re.MULTILINE)
    (text,) = [s for s in stages if s.split("\n", 1)[0].endswith(f" AS {stage}")]
    return text


def instruction(stage: str, word: str) -> list[str]:
    """The words of CMD, or of the command of HEALTHCHECK."""
    (text,) = re.findall(rf"^{word}.*?(\[.*\])$", stage_text(stage), re.MULTILINE)
    words: list[str] = json.loads(text)
    return words


@pytest.mark.parametrize("stage", ["api", "worker"])
def test_image_alone_runs_what_compose_runs(stage: str) -> None:
    assert instruction(stage, "CMD") == SERVICES[stage].command
    assert instruction(stage, "HEALTHCHECK") == SERVICES[stage].health


def test_images_run_as_a_user_without_rights() -> None:
    runtime = DOCKERFILE[DOCKERFILE.index("AS runtime") :]
    assert re.search(r"^USER modelpress$", runtime, re.MULTILINE)
    assert not re.search(r"^USER root", runtime, re.MULTILINE)


def test_api_image_is_installed_without_torch() -> None:
    (extra,) = re.findall(
        r"pip install -c constraints.txt '\.\[(\w+)\]'", stage_text("api-install")
    )
    project = tomllib.loads((servers.ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["optional-dependencies"][extra]
    assert not [w for w in wanted if re.match("modelpress|torch|onnx|numpy", w)]


def test_build_context_holds_all_that_is_copied() -> None:
    ignore = (servers.ROOT / ".dockerignore").read_text().split()
    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE):
        for path in shlex.split(line)[:-1]:
            assert f"!{path}" in ignore, path
            assert (servers.ROOT / path).exists()


@pytest.mark.parametrize("name", sorted(OURS))
def test_command_names_modules_that_exist(name: str) -> None:
    words: list[Any] = SERVICES[name].command + SERVICES[name].spec.get("healthcheck", {}).get(
        "test", []
    )
    text = " ".join(words)
    named = re.findall(r"-m ([\w.]+)|\b((?:app|workers)\.\w+):", text)
    for module in (a or b for a, b in named):
        assert importlib.util.find_spec(module), module
