"""Around every request: ids, body limits, and errors as problems."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy.exc import OperationalError

from app import errors, main, settings
from app.api import problems, requests
from modelpress.spec.errors import ErrorBody
from modelpress.spec.problem import Problem, Refused
from tests.app.conftest import Api

PROBLEM = "application/problem+json"


def test_every_answer_has_the_id_of_its_request(client: httpx.Client) -> None:
    first, second = client.get("/version"), client.get("/v1/nothing")

    assert first.headers["X-Request-Id"].startswith("req_")
    assert first.headers["X-Request-Id"] != second.headers["X-Request-Id"]


def test_clients_own_id_is_kept_where_it_is_harmless(client: httpx.Client) -> None:
    kept = client.get("/version", headers={"X-Request-Id": "trace-1.a_B"})
    replaced = client.get("/version", headers={"X-Request-Id": "a b" * 100})

    assert kept.headers["X-Request-Id"] == "trace-1.a_B"
    assert replaced.headers["X-Request-Id"].startswith("req_")


def test_body_over_the_limit_is_refused_by_its_length(client: httpx.Client) -> None:
    limit = settings.get().max_body_bytes

    refused = client.post(
        "/v1/models", content=b" " * (limit + 1), headers={"Content-Type": "application/json"}
    )

    assert (refused.status_code, refused.json()["code"]) == (413, "too_large")
    assert refused.json()["limit_bytes"] == limit
    assert str(limit) in refused.json()["detail"]


def test_chunked_body_over_the_limit_is_refused_while_it_comes(client: httpx.Client) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(40):
            yield b" " * 65_536

    refused = client.post(
        "/v1/models", content=chunks(), headers={"Content-Type": "application/json"}
    )

    assert (refused.status_code, refused.json()["code"]) == (413, "too_large")


def test_body_at_the_limit_is_read(client: httpx.Client) -> None:
    body = b'{"upload": "none"}'.ljust(settings.get().max_body_bytes)

    response = client.post("/v1/models", content=body, headers={"Content-Type": "application/json"})

    assert response.status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "not_found"),
        ("GET", "/", 404, "not_found"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
    ],
)
def test_unknown_routes_are_problems(
    client: httpx.Client, method: str, path: str, status: int, code: str
) -> None:
    response = client.request(method, path)

    assert response.headers["Content-Type"] == PROBLEM
    body = ErrorBody.model_validate_json(response.content)
    assert (response.status_code, body.status, body.code) == (status, status, code)


def test_body_that_is_not_json_is_a_problem(client: httpx.Client) -> None:
    refused = client.post(
        "/v1/models", content=b'{"upload": ', headers={"Content-Type": "application/json"}
    )

    assert refused.status_code == 422
    [problem] = refused.json()["problems"]
    assert (problem["pointer"], problem["code"]) == ("", "not_json")


def test_wrong_parameter_is_named(client: httpx.Client) -> None:
    refused = client.get("/v1/models?limit=0")

    assert refused.status_code == 422
    assert "query parameter 'limit'" in refused.json()["detail"]
    assert "'0'" in refused.json()["detail"]


def _raising(error: Exception) -> FastAPI:
    app = FastAPI()
    problems.register(app)

    @app.get("/raise")
    def fail() -> None:
        raise error

    app.add_middleware(requests.Traced)
    return app


def _answer(error: Exception) -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(_raising(error), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://t") as client:
            return await client.get("/raise")

    return asyncio.run(ask())


@pytest.mark.parametrize("kind", errors.AppError.__subclasses__(), ids=lambda k: k.__name__)
def test_every_error_is_answered_with_its_status(kind: type[errors.AppError]) -> None:
    response = _answer(kind("what", hint="how", extra={"limit_bytes": 5}, headers={"X-A": "b"}))

    body = ErrorBody.model_validate_json(response.content)
    assert (response.status_code, body.status) == (kind.status, kind.status)
    assert (body.code, body.detail, body.hint) == (kind.code, "what", "how")
    assert body.title
    assert response.json()["limit_bytes"] == 5
    assert response.headers["X-A"] == "b"


def test_every_error_is_drawn_in_the_tree() -> None:
    for kind in errors.AppError.__subclasses__():
        assert f"{kind.__name__:19}  {kind.status}" in (errors.__doc__ or ""), kind


def test_refused_request_lists_its_problems() -> None:
    response = _answer(Refused([Problem(pointer="/a", code="c", reason="r", hint="h")] * 2))

    assert response.status_code == 422
    assert response.json()["detail"] == "/a: r (and 1 more)"
    assert len(response.json()["problems"]) == 2


def test_database_away_is_unavailable_and_tells_no_secret() -> None:
    error = OperationalError("SELECT secret", {"p": "password"}, Exception("host=db password=x"))

    response = _answer(error)

    assert (response.status_code, response.headers["Retry-After"]) == (503, "5")
    assert "password" not in response.text


def test_defect_tells_its_request_and_no_detail() -> None:
    response = _answer(ZeroDivisionError("secret"))

    assert response.status_code == 500
    assert response.json()["code"] == "internal"
    assert response.json()["request_id"] == response.headers["X-Request-Id"]
    assert "secret" not in response.text


def test_failed_commit_is_no_success(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """The transaction ends before the answer leaves, so what could not be written is not called created."""

    def fail(*_: object) -> None:
        raise OperationalError("COMMIT", {}, Exception("disk full"))

    with api.client() as client:
        client.get("/v1/project")
        with monkeypatch.context() as patched:
            patched.setattr("sqlalchemy.orm.Session.commit", fail)
            patched.setattr("sqlalchemy.orm.SessionTransaction.commit", fail)
            refused = client.post("/v1/api-keys", json={"name": "never"})
        names = [key["name"] for key in client.get("/v1/api-keys").json()["items"]]

    assert refused.status_code == 503
    assert names == ["tests"]


def test_limits_are_those_of_the_settings(
    configure: Callable[..., None], sqlite_database_url: str
) -> None:
    configure(database_url=sqlite_database_url, max_body_bytes=10)

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(main.create_app())
        async with httpx.AsyncClient(transport=transport, base_url="http://t") as client:
            return await client.post("/v1/models", json={"upload": "long enough"})

    assert asyncio.run(ask()).json()["limit_bytes"] == 10
