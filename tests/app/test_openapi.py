"""The description of the interface is complete, and no route below /v1 opens without a key."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.openapi.utils import get_openapi

from app import main
from tests.app.conftest import Api, new_project

SCHEMA: dict[str, Any] = main.app.openapi()
OPERATIONS = [
    (method, path, operation)
    for path, item in SCHEMA["paths"].items()
    for method, operation in item.items()
]
PROTECTED = [(m.upper(), p) for m, p, _ in OPERATIONS if p.startswith("/v1/")]


def test_every_operation_is_described() -> None:
    bare = [f"{m} {p}" for m, p, operation in OPERATIONS if not operation.get("description")]

    assert bare == []


def test_every_parameter_is_described() -> None:
    bare = [
        f"{m} {p} {parameter['name']}"
        for m, p, operation in OPERATIONS
        for parameter in operation.get("parameters", [])
        if not parameter.get("description")
    ]

    assert bare == []


def test_every_response_is_described() -> None:
    bare = [
        f"{m} {p} {status}"
        for m, p, operation in OPERATIONS
        for status, response in operation["responses"].items()
        if response.get("description", "Successful Response") == "Successful Response"
        and not response.get("content")
    ]

    assert bare == []


def test_every_field_is_described() -> None:
    bare = [
        f"{name}.{field}"
        for name, schema in SCHEMA["components"]["schemas"].items()
        for field, described in schema.get("properties", {}).items()
        if not _is_described(described) and field != "kind"
    ]

    assert bare == []


def _is_described(field: dict[str, Any]) -> bool:
    """By its own words, or by those of the one schema it refers to."""
    referred = SCHEMA["components"]["schemas"].get(field.get("$ref", "").rpartition("/")[2], {})
    return bool(field.get("description") or referred.get("description"))


def test_every_schema_is_described() -> None:
    bare = [
        name
        for name, schema in SCHEMA["components"]["schemas"].items()
        if not schema.get("description") and "enum" not in schema
    ]

    assert bare == []


def test_errors_are_described_as_problems() -> None:
    for method, path, operation in OPERATIONS:
        if path.startswith("/v1/"):
            assert "application/problem+json" in operation["responses"]["4XX"]["content"], (
                method,
                path,
            )


def test_operations_have_names_of_their_own() -> None:
    names = [operation["operationId"] for _, _, operation in OPERATIONS]

    assert len(set(names)) == len(names)


def test_nothing_is_left_out_of_the_description() -> None:
    """FastAPI's own walk over the routes, with those that hide from the schema."""
    whole = get_openapi(title="", version="", routes=main.app.routes)

    assert set(whole["paths"]) == set(SCHEMA["paths"])


def test_walk_sees_the_routes() -> None:
    assert ("POST", "/v1/jobs") in PROTECTED
    assert ("PATCH", "/v1/uploads/{upload_id}") in PROTECTED
    assert len(PROTECTED) > 30


def test_no_route_opens_without_a_key(api: Api) -> None:
    with api.client(key="") as nobody, api.client(key="mp_" + "0" * 26 + "_" + "x" * 43) as liar:
        for client in (nobody, liar):
            for method, path in PROTECTED:
                response = client.request(method, re.sub(r"{\w+}", "x", path))

                assert response.status_code == 401, (method, path)
                assert response.headers["WWW-Authenticate"] == "Bearer"


def test_foreign_ids_are_not_found(api: Api) -> None:
    ours = _things(api)
    _, foreign_key = new_project("theirs")
    with api.client(foreign_key) as stranger, api.client() as owner:
        for method, path in _with_ids(ours):
            mine, theirs = owner.request(method, path), stranger.request(method, path)

            assert theirs.status_code == 404, (method, path)
            assert mine.status_code != 404 or method == "GET", (method, path)


def _things(api: Api) -> dict[str, str]:
    """One of everything, in our project."""
    with api.client() as client:
        model = client.post("/v1/uploads", content=b"m").json()["id"]
        dataset = client.post("/v1/uploads", content=b"d").json()["id"]
        return {
            "upload_id": client.post("/v1/uploads", content=b"u").json()["id"],
            "model_id": client.post("/v1/models", json={"upload": model}).json()["id"],
            "dataset_id": client.post("/v1/datasets", json={"upload": dataset}).json()["id"],
            "job_id": client.get("/v1/jobs?kind=inspect_model").json()["items"][0]["id"],
            "key_id": client.get("/v1/api-keys").json()["items"][0]["id"],
        }


def _with_ids(things: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Requests that need nothing but an id; those that change something come last."""
    needs_body = {"PATCH", "PUT", "POST"}
    paths = [(m, p) for m, p in PROTECTED if "{" in p and m not in needs_body]
    for method, path in sorted(paths, key=lambda pair: pair[0] == "DELETE"):
        names = re.findall(r"{(\w+)}", path)
        if all(name in things for name in names):
            yield method, path.format(**things)
    yield "POST", "/v1/jobs/{job_id}:cancel".format(**things)


@pytest.mark.parametrize("status", ["401", "422", "5XX"])
def test_shared_errors_are_described_everywhere(status: str) -> None:
    assert all(status in o["responses"] for _, p, o in OPERATIONS if p.startswith("/v1/"))
