"""Events of jobs: read in order while others write, in pages, and as server-sent events over real HTTP."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest

from app import db, events, jobs, live
from app.accounts import Principal
from app.api import events as endpoint
from app.claims import Claim
from modelpress import _events
from modelpress.spec.progress import Progress
from tests import making, servers
from tests.app.conftest import Api

SSE = {"Accept": "text/event-stream"}


@pytest.fixture
def served(
    configure: Callable[..., None], database_url: str, serve: Callable[[], str]
) -> Iterator[tuple[httpx.Client, Principal]]:
    configure(database_url=database_url, sweep_in_api=False)
    me, key = making.keyed()
    with Api(serve(), me.project_id, key).client() as client:
        yield client, me


@pytest.fixture
def client(served: tuple[httpx.Client, Principal]) -> httpx.Client:
    return served[0]


@pytest.fixture
def me(served: tuple[httpx.Client, Principal]) -> Principal:
    return served[1]


def take(job_id: str) -> Claim:
    with db.transaction() as session:
        taken = jobs.claim(session, job_id, owner="w", sandbox="none")
        assert taken is not None
        return taken


def tell(taken: Claim, fraction: float) -> None:
    progress = Progress(stage=0, stages=3, name="baseline", fraction=fraction)
    with db.transaction() as session:
        assert jobs.record_progress(session, taken, progress)


def end(taken: Claim) -> None:
    with db.transaction() as session:
        jobs.finish_failed(session, taken, making.failure())


@contextmanager
def stream(
    client: httpx.Client, job_id: str, *, last: int | None = None
) -> Iterator[Iterator[_events.Frame]]:
    headers = SSE if last is None else {**SSE, "Last-Event-ID": str(last)}
    with client.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["Content-Type"].startswith("text/event-stream")
        assert response.headers["Cache-Control"] == "no-store"
        yield _events.parse(response.iter_lines())


def fractions(frames: Iterator[_events.Frame]) -> list[float]:
    told = [json.loads(frame.data) for frame in frames if frame.event == "progress"]
    return [event["data"]["fraction"] for event in told]


def test_page_holds_what_happened_oldest_first(client: httpx.Client, me: Principal) -> None:
    job_id = making.job(me)
    taken = take(job_id)
    for fraction in (0.1, 0.2, 0.3):
        tell(taken, fraction)
    first = client.get(f"/v1/jobs/{job_id}/events", params={"limit": 3}).json()
    assert [event["type"] for event in first["items"]] == ["state", "state", "progress"]
    assert first["items"][1]["data"] == {
        "state": "running",
        "attempt": 1,
        "outcome": None,
        "failure": None,
    }
    after = {"after": first["next_cursor"]}
    second = client.get(f"/v1/jobs/{job_id}/events", params=after).json()
    assert [event["data"]["fraction"] for event in second["items"]] == [0.2, 0.3]
    assert second["next_cursor"] is None


def test_stream_of_an_ended_job_replays_it_and_ends(client: httpx.Client, me: Principal) -> None:
    job_id = making.job(me)
    taken = take(job_id)
    tell(taken, 0.5)
    end(taken)
    with stream(client, job_id) as frames:
        told = list(frames)
    assert [frame.event for frame in told] == ["state", "state", "progress", "state"]
    last = json.loads(told[-1].data)
    assert last["data"]["failure"]["code"] == "made"
    assert [int(frame.id) for frame in told] == sorted(int(frame.id) for frame in told)
    assert last["id"] == int(told[-1].id)


def test_stream_goes_on_after_the_last_event_seen(client: httpx.Client, me: Principal) -> None:
    job_id = making.job(me)
    taken = take(job_id)
    tell(taken, 0.1)
    seen = client.get(f"/v1/jobs/{job_id}/events").json()["items"][-1]["id"]
    tell(taken, 0.2)
    end(taken)
    with stream(client, job_id, last=seen) as frames:
        told = list(frames)
    assert [frame.event for frame in told] == ["progress", "state"]


def test_stream_after_the_last_event_of_an_ended_job_has_nothing_to_say(
    client: httpx.Client, me: Principal
) -> None:
    job_id = making.job(me)
    end(take(job_id))
    last = client.get(f"/v1/jobs/{job_id}/events").json()["items"][-1]["id"]
    headers = {**SSE, "Last-Event-ID": str(last)}
    assert client.get(f"/v1/jobs/{job_id}/events", headers=headers).status_code == 204


@pytest.mark.parametrize("last", ["-1", "x", "1.5", "9" * 40])
def test_last_event_id_that_is_none_is_refused(
    client: httpx.Client, me: Principal, last: str
) -> None:
    headers = {**SSE, "Last-Event-ID": last}
    answer = client.get(f"/v1/jobs/{making.job(me)}/events", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")


def test_stream_tells_what_happens_while_it_is_open(client: httpx.Client, me: Principal) -> None:
    job_id = making.job(me)
    taken = take(job_id)
    with stream(client, job_id) as frames:
        assert [next(frames).event for _ in range(2)] == ["state", "state"]
        for fraction in (0.1, 0.2):
            tell(taken, fraction)
            event = json.loads(next(frames).data)
            assert event["data"]["fraction"] == fraction
        end(taken)
        assert next(frames).event == "state"
        assert list(frames) == []


def test_many_streams_of_many_jobs_each_get_everything_once(
    client: httpx.Client, me: Principal
) -> None:
    job_ids = [making.job(me) for _ in range(4)]
    claims = [take(job_id) for job_id in job_ids]
    steps = [number / 20 for number in range(20)]

    def write() -> None:
        for fraction in steps:
            for taken in claims:
                tell(taken, fraction)
        for taken in claims:
            end(taken)

    def read(job_id: str) -> list[float]:
        with stream(client, job_id) as frames:
            return fractions(frames)

    with ThreadPoolExecutor(21) as pool:
        reading = [pool.submit(read, job_id) for job_id in job_ids * 5]
        pool.submit(write)
        assert [task.result() for task in reading] == [steps] * 20


def test_stream_that_falls_behind_loses_nothing(
    client: httpx.Client, me: Principal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "WAITING_EVENTS", 2)
    job_id = making.job(me)
    taken = take(job_id)
    with stream(client, job_id) as frames:
        next(frames)
        for number in range(20):
            tell(taken, number / 20)
        end(taken)
        assert fractions(frames) == [number / 20 for number in range(20)]


def test_silent_stream_is_kept_alive(
    client: httpx.Client, me: Principal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "KEEP_ALIVE_S", 0.05)
    url = f"/v1/jobs/{making.job(me)}/events"
    with client.stream("GET", url, headers=SSE) as response:
        lines = response.iter_lines()
        assert next(line for line in lines if line.startswith(":")) == ": nothing new"


def test_stream_ends_after_its_time_and_goes_on_with_another(
    client: httpx.Client, me: Principal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "MAX_STREAM_S", 0.0)
    job_id = making.job(me)
    taken = take(job_id)
    told, last = [], 0
    while not told or told[-1] != "failed":
        with stream(client, job_id, last=last) as frames:
            for frame in frames:
                last = int(frame.id)
                told.append(json.loads(frame.data)["data"]["state"])
        if told[-1] == "running":
            end(taken)
    assert told == ["queued", "running", "failed"]


def test_streams_leave_no_poller_behind(client: httpx.Client, me: Principal) -> None:
    job_id = making.job(me)
    with stream(client, job_id) as frames:
        next(frames)
        [poller] = [poller for poller in live._pollers.values() if poller._followers]
    servers.until(lambda: not poller._followers)
    servers.until(lambda: poller._task is not None and poller._task.done())


def test_events_of_one_job_are_committed_in_the_order_of_their_ids(
    configure: Callable[..., None], postgres_database_url: str
) -> None:
    """Worker and canceller write at once: a reader that asks for 'after the last I saw' must miss none."""
    configure(database_url=postgres_database_url)
    me = making.principal()
    job_id = making.job(me)
    taken, seen, done = take(job_id), [], threading.Event()

    def read() -> None:
        while not done.is_set() or unread():
            seen.extend(unread())
            time.sleep(0.001)

    def unread() -> list[int]:
        with db.transaction() as session:
            last = seen[-1] if seen else 0
            return [event.id for event in events.page(session, job_id, after=last)]

    reader = threading.Thread(target=read)
    reader.start()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: tell(taken, number / 100), range(100)))
    done.set()
    reader.join()
    with db.transaction() as session:
        assert seen == [event.id for event in events.page(session, job_id)]
