from __future__ import annotations

import json
import re

import pytest

from modelpress import _events, errors
from modelpress.client import Client
from modelpress.spec.progress import Progress
from tests.client import little

PROGRESS = {"stage": 1, "stages": 4, "name": "prune.magnitude", "fraction": 0.5}


def event(number: int, type_: str = "progress", **data: object) -> dict[str, object]:
    return {"id": number, "type": type_, "data": data or PROGRESS, "created_at": None}


def stream(*events: dict[str, object], rest: str = "") -> little.Answer:
    text = "".join(f"id: {e['id']}\nevent: {e['type']}\ndata: {json.dumps(e)}\n\n" for e in events)
    return little.Answer(200, (text + rest).encode(), {"Content-Type": "text/event-stream"})


def job(state: str) -> little.Answer:
    failure = {"class": "resource", "code": "memory_limit", "message": "8 GiB were not enough"}
    return little.of(
        {"id": "job_1", "state": state, "failure": failure if state == "failed" else None}
    )


class Service:
    """Answers questions for events in turn, and says that the job has ended after the last of them."""

    def __init__(self, *events: little.Answer, end: str = "succeeded") -> None:
        self.events, self.end = list(events), end
        self.asked: list[little.Request] = []

    def __call__(self, request: little.Request) -> little.Answer:
        if "/events" not in request.path:
            return job("running" if self.events else self.end)
        self.asked.append(request)
        return self.events.pop(0) if self.events else little.of({"items": []})


def client(url: str, **options: float) -> Client:
    return Client(url, "k", retries=0, poll_s=0.001, **options)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_stream_is_read_as_the_standard_says(newline: str) -> None:
    text = ": ping\nid: 7\nevent: state\ndata: a\ndata:b\n\nretry: 5\n\ndata: c\n\nid: 9\ndata: cut"
    frames = list(_events.parse(text.replace("\n", newline).splitlines()))
    assert frames == [("7", "state", "a\nb"), ("7", "message", "c")]


def test_progress_is_told_as_it_comes() -> None:
    heard: list[Progress] = []
    service = Service(stream(event(1, "state", state="running"), event(2), event(3, fraction=1)))
    service.events[0] = stream(event(1, "state", state="running"), event(2))
    with little.serving(service) as server, client(server.url) as c:
        assert c.wait("job_1", on_progress=heard.append).state == "succeeded"
    assert heard == [Progress.model_validate(PROGRESS)]


def test_broken_stream_goes_on_after_the_last_event_and_tells_none_twice() -> None:
    heard: list[Progress] = []
    service = Service(stream(event(4), rest="id: 5\nda"), stream(event(4), event(5)))
    with little.serving(service) as server, client(server.url) as c:
        c.wait("job_1", on_progress=heard.append)
    assert [r.headers.get("Last-Event-ID") for r in service.asked] == [None, "4"]
    assert len(heard) == 2


def test_without_a_stream_events_are_asked_for() -> None:
    heard: list[Progress] = []
    page = little.of({"items": [event(1), event(2)], "next_cursor": None})
    service = Service(page, page, little.of({"items": [event(3)]}))
    with little.serving(service) as server, client(server.url) as c:
        c.wait("job_1", on_progress=heard.append)
    assert len(heard) == 3
    assert [re.sub(".*events", "", r.path) for r in service.asked] == ["", "?after=0", "?after=2"]


def test_streams_that_bring_nothing_are_given_up_for_asking() -> None:
    service = Service(*[stream()] * _events.PATIENCE, little.of({"items": [event(1)]}))
    heard: list[Progress] = []
    with little.serving(service) as server, client(server.url) as c:
        c.wait("job_1", on_progress=heard.append)
    assert len(heard) == 1


def test_job_that_failed_is_an_error_that_says_why() -> None:
    with (
        little.serving(Service(end="failed")) as server,
        client(server.url) as c,
        pytest.raises(errors.JobFailed, match=r"job_1 failed: 8 GiB were not enough \[resource"),
    ):
        c.wait("job_1")


def test_job_that_failed_is_an_answer_when_asked_so() -> None:
    with little.serving(Service(end="failed")) as server, client(server.url) as c:
        assert c.wait("job_1", check=False).state == "failed"


def test_waiting_ends_when_its_time_is_up() -> None:
    with (
        little.serving(Service(end="running")) as server,
        client(server.url) as c,
        pytest.raises(errors.WaitTimeout, match=r"job_1 has not ended within 0\.01 s"),
    ):
        c.wait("job_1", timeout_s=0.01)


def test_server_that_is_away_for_a_moment_is_waited_for() -> None:
    answers = little.in_turn(little.CUT, little.CUT, stream(event(1)), job("succeeded"))
    with little.serving(answers) as server, client(server.url) as c:
        assert c.wait("job_1").state == "succeeded"


def test_server_that_stays_away_is_given_up() -> None:
    with (
        little.serving(little.in_turn(little.CUT)) as server,
        client(server.url, patience_s=0.01) as c,
        pytest.raises(errors.Unreachable),
    ):
        c.wait("job_1")


def test_unknown_job_ends_the_wait_at_once() -> None:
    with (
        little.serving(little.in_turn(little.problem(404))) as server,
        client(server.url) as c,
        pytest.raises(errors.NotFound),
    ):
        c.wait("job_1")
    assert len(server.requests) == 1


def test_events_are_listed_page_after_page() -> None:
    pages = [[event(1), event(2)], [event(3)], []]
    answers = little.in_turn(*(little.of({"items": page}) for page in pages))
    with little.serving(answers) as server, client(server.url) as c:
        assert [e.id for e in c.events("job_1")] == [1, 2, 3]
