"""Streams of events: whoever follows a job first gets what is stored, then what comes, each event once and in order.

One poller for each event loop reads for all followers, so a job that a hundred people watch costs one query each
half second. A follower that can't keep up loses its place in the queue, never an event: it reads from the table again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from weakref import WeakKeyDictionary

import structlog
from sqlalchemy import func, select

from app import db, events
from app.tables import Event, Job
from modelpress.spec.state import TERMINAL

POLL_S = 0.5
KEEP_ALIVE_S = 15.0
WAITING_EVENTS = 256

log = structlog.get_logger(__name__)


async def follow(job_id: str, after: int) -> AsyncIterator[Event | None]:
    """The events of a job with ids above `after`, up to the one that ends it; None in each KEEP_ALIVE_S without any."""
    newest = await asyncio.to_thread(_newest, job_id)
    with _poller().following(job_id, newest) as follower:
        last = after
        while (batch := await follower.next(last)) is not None:
            if not batch:
                yield None
            for event in batch:
                yield event
                last = event.id
                if is_last(event):
                    return


def is_last(event: Event) -> bool:
    """Whether no event of the job can follow."""
    return event.type == "state" and event.data["state"] in TERMINAL


class Follower:
    """One stream's place: a queue that the poller fills, and whether the table has something that is not in it."""

    def __init__(self, job_id: str) -> None:
        self.job_id, self.behind = job_id, True
        self._queue: asyncio.Queue[Event] = asyncio.Queue(WAITING_EVENTS)

    def offer(self, event: Event) -> None:
        """Adds an event, or notes that the follower must read the table."""
        try:
            self._queue.put_nowait(event)
        except asyncio.QueueFull:
            self.behind = True

    async def next(self, last: int) -> Sequence[Event] | None:
        """Events after `last`: some, or none after KEEP_ALIVE_S of silence; null where none can come any more."""
        while True:
            if self.behind:
                self.behind = False
                over, found = await asyncio.to_thread(_read, self.job_id, last)
                self.behind |= bool(found)
                if over or found:
                    return found or None
            try:
                event = await asyncio.wait_for(self._queue.get(), KEEP_ALIVE_S)
            except TimeoutError:
                self.behind = True  # so that nothing the queue lost stays lost
                return ()
            if event.id > last:
                return (event,)


def _newest(job_id: str) -> int:
    with db.transaction() as session:
        return session.scalar(select(func.max(Event.id)).where(Event.job_id == job_id)) or 0


def _read(job_id: str, last: int) -> tuple[bool, Sequence[Event]]:
    """Whether the job has ended or is gone, and what came after `last`. The state first: events come with it."""
    with db.transaction() as session:
        state = session.scalar(select(Job.state).where(Job.id == job_id))
        return state is None or state in TERMINAL, events.page(session, job_id, after=last)


class Poller:
    """Reads new events of all followed jobs, as long as there are any."""

    def __init__(self) -> None:
        self._followers: dict[str, set[Follower]] = defaultdict(set)
        self._seen: dict[str, int] = {}
        self._task: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def following(self, job_id: str, newest: int) -> Iterator[Follower]:
        """A follower of a job whose newest event is `newest`; it starts behind, for the table may have more."""
        follower = Follower(job_id)
        self._followers[job_id].add(follower)
        self._seen.setdefault(job_id, newest)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        try:
            yield follower
        finally:
            self._followers[job_id].discard(follower)
            if not self._followers[job_id]:
                del self._followers[job_id], self._seen[job_id]

    async def _run(self) -> None:
        while self._followers:
            try:
                found = await asyncio.to_thread(_since, dict(self._seen))
            except Exception as e:  # the database may be away: followers are kept waiting
                log.warning("events can't be read", error=repr(e))
                found = []
            for event in found:
                self._hand_out(event)
            if len(found) < events.PAGE:
                await asyncio.sleep(POLL_S)

    def _hand_out(self, event: Event) -> None:
        if event.job_id in self._seen:
            self._seen[event.job_id] = max(self._seen[event.job_id], event.id)
        for follower in self._followers.get(event.job_id, ()):
            follower.offer(event)


def _since(seen: dict[str, int]) -> Sequence[Event]:
    with db.transaction() as session:
        return events.since(session, seen)


_pollers: WeakKeyDictionary[asyncio.AbstractEventLoop, Poller] = WeakKeyDictionary()


def _poller() -> Poller:
    return _pollers.setdefault(asyncio.get_running_loop(), Poller())
