from __future__ import annotations

import socket

import pytest

from modelpress import errors
from modelpress.client import Client
from tests.client import little

VERSION = little.of({"version": "9"})


def client(url: str, *, retries: int = 2) -> Client:
    return Client(url, "mp_key", retries=retries, retry_pause_s=0.001)


def test_key_and_version_go_with_every_request() -> None:
    with little.serving(little.in_turn(VERSION)) as server, client(server.url) as c:
        c.version()
    headers = server.requests[0].headers
    assert headers["Authorization"] == "Bearer mp_key"
    assert headers["User-Agent"].startswith("modelpress/")


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_reading_is_repeated_while_the_server_is_busy(status: int) -> None:
    answers = little.in_turn(little.problem(status), little.problem(status), VERSION)
    with little.serving(answers) as server, client(server.url) as c:
        assert c.version().version == "9"
    assert len(server.requests) == 3


def test_reading_is_repeated_after_a_broken_connection() -> None:
    with little.serving(little.in_turn(little.CUT, VERSION)) as server, client(server.url) as c:
        assert c.version().version == "9"


def test_retries_end() -> None:
    with little.serving(little.in_turn(little.problem(503))) as server, client(server.url) as c:
        with pytest.raises(errors.ServerFailed, match="some_code it is"):
            c.version()
        assert len(server.requests) == 3


def test_making_something_is_not_repeated_after_a_broken_connection() -> None:
    with little.serving(little.in_turn(little.CUT)) as server, client(server.url) as c:
        with pytest.raises(errors.Unreachable):
            c.create_project("p")
        assert len(server.requests) == 1


def test_submitting_is_repeated_under_one_idempotency_key() -> None:
    job = little.of({"id": "job_1", "state": "queued"}, 202)
    answers = little.in_turn(little.CUT, little.problem(503), job)
    with little.serving(answers) as server, client(server.url) as c:
        assert c.submit("mdl_1", "int8-dynamic").id == "job_1"
    assert len({r.headers["Idempotency-Key"] for r in server.requests}) == 1
    assert len(server.requests) == 3


def test_two_submissions_have_two_idempotency_keys() -> None:
    job = little.of({"id": "job_1", "state": "queued"}, 202)
    with little.serving(little.in_turn(job)) as server, client(server.url) as c:
        c.submit("mdl_1", "int8-dynamic")
        c.submit("mdl_1", "int8-dynamic")
    assert len({r.headers["Idempotency-Key"] for r in server.requests}) == 2


def test_server_that_is_not_there_is_named() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    with client(url) as c, pytest.raises(errors.Unreachable, match=url):
        c.version()


@pytest.mark.parametrize("url", ["nonsense", "http://[", "ftp://127.0.0.1", "http://bad host"])
def test_address_that_is_none_is_an_unreachable_server(url: str) -> None:
    with pytest.raises(errors.Unreachable), client(url) as c:
        c.version()


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, errors.Rejected),
        (401, errors.Unauthorized),
        (403, errors.Unauthorized),
        (404, errors.NotFound),
        (409, errors.Conflict),
        (413, errors.TooLarge),
        (422, errors.Invalid),
        (423, errors.Locked),
        (429, errors.TooMany),
        (500, errors.ServerFailed),
        (507, errors.ServerFailed),
    ],
)
def test_error_body_becomes_an_exception(status: int, kind: type[errors.Rejected]) -> None:
    answer = little.problem(status, hint="do this")
    with (
        little.serving(little.in_turn(answer)) as server,
        client(server.url, retries=0) as c,
        pytest.raises(errors.Rejected, match="Hint: do this") as caught,
    ):
        c.version()
    assert type(caught.value) is kind
    assert caught.value.body.code == "some_code"


def test_every_problem_of_a_refused_body_is_in_the_message() -> None:
    problems = [
        {"pointer": "/recipe/steps/0", "code": "a", "reason": "too much", "hint": "less"},
        {"pointer": "/seed", "code": "b", "reason": "below 0"},
    ]
    answer = little.problem(422, problems=problems)
    with (
        little.serving(little.in_turn(answer)) as server,
        client(server.url) as c,
        pytest.raises(errors.Invalid) as caught,
    ):
        c.submit("mdl_1", {"steps": []})
    assert "/recipe/steps/0: too much (less)" in str(caught.value)
    assert "/seed: below 0" in str(caught.value)


def test_answer_of_a_proxy_is_told_by_its_status() -> None:
    answer = little.Answer(404, b"<html>")
    with (
        little.serving(little.in_turn(answer)) as server,
        client(server.url) as c,
        pytest.raises(errors.NotFound, match="GET /version answered 404 Not Found"),
    ):
        c.version()


def test_answer_of_another_version_is_said_to_be_one() -> None:
    answer = little.of({"vers": 1})
    with (
        little.serving(little.in_turn(answer)) as server,
        client(server.url) as c,
        pytest.raises(errors.UnexpectedAnswer, match=r"GET /version answered no Version"),
    ):
        c.version()


def test_fields_of_a_newer_server_are_ignored() -> None:
    answer = little.of({"version": "9", "news": [1]})
    with little.serving(little.in_turn(answer)) as server, client(server.url) as c:
        assert c.version().version == "9"


def test_lists_are_read_to_their_last_page() -> None:
    def answer(request: little.Request) -> little.Answer:
        first = "cursor" not in request.path
        item = {"id": "prj_1" if first else "prj_2", "name": "n"}
        return little.of({"items": [item], "next_cursor": "more" if first else None})

    with little.serving(answer) as server, client(server.url) as c:
        assert [p.id for p in c.projects()] == ["prj_1", "prj_2"]


def test_an_id_can_not_lead_to_another_address() -> None:
    with (
        little.serving(little.in_turn(little.problem(404))) as server,
        client(server.url) as c,
        pytest.raises(errors.NotFound),
    ):
        c.job("../api-keys?x=1")
    assert server.paths() == ["GET /v1/jobs/..%2Fapi-keys%3Fx%3D1"]
