"""What happened to a job: a page of JSON, or a stream of server-sent events for who accepts one."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from app import errors, events, jobs, live
from app.api.deps import Db, Me
from app.api.jobs import JobId
from app.tables import Event
from modelpress.spec.state import TERMINAL

router = APIRouter(tags=["jobs"])

STREAM_TYPE = "text/event-stream"
MAX_STREAM_S = 3600.0  # then the client comes back with Last-Event-ID, and its key is judged anew
MAX_ID = 2**63 - 1


class EventBody(BaseModel):
    """Something that happened to a job."""

    id: int = Field(description="Grows with each event of the job; the Last-Event-ID of a stream.")
    type: Literal["state", "progress", "stage"] = Field(
        description="'state': the job moved; 'progress': how far it is; 'stage': a stage was measured."
    )
    data: dict[str, Any] = Field(
        description="state: state, attempt, outcome, failure. progress: as in the job. stage: index, name, step, "
        "seconds, size_bytes, latency_p50_ms, latency_ratio, macs, accuracy, agreement."
    )
    created_at: datetime = Field(description="When it happened.")

    @classmethod
    def of(cls, event: Event) -> Self:
        """The answer for a row."""
        return cls.model_validate(event, from_attributes=True)


class EventPage(BaseModel):
    """Part of the events of a job."""

    items: list[EventBody] = Field(description="The events, oldest first.")
    next_cursor: str | None = Field(
        description="Pass as `after` to get the next part; null where there is none yet."
    )


@router.get(
    "/jobs/{job_id}/events",
    response_model=EventPage,
    responses={
        200: {
            "description": "A page of JSON; with `Accept: text/event-stream` a stream whose `data` is an item of it, "
            "which ends with the job.",
            "content": {STREAM_TYPE: {"schema": {"type": "string"}}},
        },
        204: {"description": "To a stream: the job has ended and all its events were seen."},
    },
)
def list_events(
    job_id: JobId,
    me: Me,
    session: Db,
    after: Annotated[
        int, Query(ge=0, le=MAX_ID, description="Only events with ids above this one.")
    ] = 0,
    limit: Annotated[int, Query(ge=1, le=500, description="Most events in the page.")] = 100,
    accept: Annotated[str, Header(description="What the client can read.")] = "",
    last_event_id: Annotated[
        str, Header(description="Of a stream: the last event that was seen; wins over `after`.")
    ] = "",
) -> Response | EventPage:
    """What happened to a job, from the beginning or after an event."""
    job = jobs.get(session, me, job_id)
    if STREAM_TYPE not in accept:
        return _page(events.page(session, job.id, after=after, limit=limit + 1), limit)
    seen = _seen(last_event_id) if last_event_id else after
    if job.state in TERMINAL and not events.page(session, job.id, after=seen, limit=1):
        return Response(status_code=204)
    return StreamingResponse(
        _stream(job.id, seen),
        media_type=STREAM_TYPE,
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


def _page(found: Sequence[Event], limit: int) -> EventPage:
    shown = [EventBody.of(event) for event in found[:limit]]
    more = len(found) > limit
    return EventPage(items=shown, next_cursor=str(shown[-1].id) if more else None)


def _seen(last_event_id: str) -> int:
    if re.fullmatch(r"[0-9]{1,18}", last_event_id):
        return int(last_event_id)
    raise errors.BadRequest(
        f"Last-Event-ID {last_event_id[:64]!r} is no id of an event",
        hint="send the id of the last event that you saw, a whole number",
    )


async def _stream(job_id: str, after: int) -> AsyncIterator[str]:
    ends = time.monotonic() + MAX_STREAM_S
    yield "retry: 2000\n\n"
    async for event in live.follow(job_id, after):
        yield ": nothing new\n\n" if event is None else _frame(event)
        if time.monotonic() > ends:
            return


def _frame(event: Event) -> str:
    data = EventBody.of(event).model_dump_json()
    return f"id: {event.id}\nevent: {event.type}\ndata: {data}\n\n"
