"""Following a job: server-sent events with Last-Event-ID, and polling where a stream does not get through."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from pydantic import ValidationError

from modelpress import _transport, errors
from modelpress.resources import Event, Job, Page
from modelpress.spec.progress import Progress

SILENCE_S = 45.0  # the server pings every 15 s
PATIENCE = 3  # streams in a row that bring nothing, then polling
STREAM_TYPE = "text/event-stream"


class Frame(NamedTuple):
    """One server-sent event."""

    id: str
    event: str
    data: str


def parse(lines: Iterable[str]) -> Iterator[Frame]:
    """Reads the lines of an event stream (HTML standard, section 9.2.6); an event cut short is dropped."""
    last_id, event, data = "", "", list[str]()
    for line in lines:
        if not line:
            if data:
                yield Frame(last_id, event or "message", "\n".join(data))
            event, data = "", []
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            data.append(value)
        elif name == "event":
            event = value
        elif name == "id" and "\0" not in value:
            last_id = value


def page(http: _transport.Transport, job_id: str, after: int) -> Page[Event]:
    """The events of a job that come after the given id."""
    response = http.request("GET", f"/v1/jobs/{job_id}/events", params={"after": after})
    return _transport.read(response, Page[Event])


def follow(
    http: _transport.Transport,
    job_id: str,
    *,
    on_progress: Callable[[Progress], None] | None,
    until: float,
    poll_s: float,
    patience_s: float,
) -> Job | None:
    """The job when it has ended; None when `time.monotonic()` has passed `until`.

    Raises:
        Rejected: there is no such job, or the key may not see it.
        Unreachable: the server was away for longer than `patience_s`.
    """
    follower = Follower(http, job_id)
    away_since: float | None = None
    while True:
        try:
            for event in follower.some(until):
                if on_progress and event.type == "progress":
                    on_progress(Progress.model_validate(event.data))
            job = _transport.read(http.request("GET", f"/v1/jobs/{job_id}"), Job)
        except (errors.Unreachable, errors.ServerFailed):
            away_since = away_since or time.monotonic()
            if time.monotonic() > away_since + patience_s:
                raise
        else:
            away_since = None
            if job.ended:
                return job
        if time.monotonic() > until:
            return None
        time.sleep(poll_s)


class Follower:
    """The events of one job, each once and in order, over as many connections as it takes."""

    def __init__(self, http: _transport.Transport, job_id: str) -> None:
        self.http, self.job_id = http, job_id
        self.last_id, self.fruitless = 0, 0

    def some(self, until: float) -> Iterator[Event]:
        """Events until the stream ends or breaks, or `time.monotonic()` passes `until`; a page when polling.

        Raises:
            Rejected: there is no such job, or the key may not see it.
            Unreachable: polling found no server.
        """
        before = self.last_id
        if self.fruitless < PATIENCE:
            yield from self._stream(until)
            self.fruitless = 0 if self.last_id > before else self.fruitless + 1
        else:
            yield from self._new(page(self.http, self.job_id, self.last_id).items)

    def _stream(self, until: float) -> Iterator[Event]:
        headers = {"Accept": STREAM_TYPE}
        if self.last_id:
            headers["Last-Event-ID"] = str(self.last_id)
        path = f"/v1/jobs/{self.job_id}/events"
        silence_s = max(0.1, min(SILENCE_S, until - time.monotonic()))
        try:
            with self.http.stream("GET", path, headers=headers, timeout=silence_s) as response:
                if not response.headers.get("Content-Type", "").startswith(STREAM_TYPE):
                    self.fruitless = PATIENCE
                    return
                lines = _while_time(response.iter_lines(), until)
                yield from self._new(_event(frame) for frame in parse(lines))
        except (errors.Unreachable, errors.ServerFailed):
            return

    def _new(self, events: Iterable[Event]) -> Iterator[Event]:
        for event in events:
            if event.id > self.last_id:
                self.last_id = event.id
                yield event


def _while_time(lines: Iterable[str], until: float) -> Iterator[str]:
    for line in lines:
        yield line
        if time.monotonic() > until:
            return


def _event(frame: Frame) -> Event:
    try:
        return Event.model_validate_json(frame.data)
    except ValidationError as e:
        raise errors.UnexpectedAnswer(f"no event of a job: {frame.data[:200]!r}") from e
