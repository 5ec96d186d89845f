"""Around every request: an id, a line in the log, a time in the metrics, and a limit on the body."""

from __future__ import annotations

import re
import time
from typing import Any

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import errors, ids, metrics

STREAMED = "/v1/uploads"
_CLIENTS_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_NOT_LOGGED = frozenset({"/health/live", "/health/ready", "/metrics"})
log = structlog.get_logger("app.request")


class Traced:
    """Names the request, logs how it ended, and counts it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500
        request_id = _request_id(Headers(scope=scope).get("x-request-id", ""))
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self.app(scope, receive, send_named)
            finally:
                _record(scope, status, time.perf_counter() - began)


def _request_id(given: str) -> str:
    return given if _CLIENTS_ID.fullmatch(given) else ids.new("req")


def _record(scope: Scope, status: int, seconds: float) -> None:
    method = scope["method"] if scope["method"] in _METHODS else "other"
    metrics.observe_request(method, route_of(scope), status, seconds)
    if scope["path"] not in _NOT_LOGGED:
        log.info(
            "request",
            method=method,
            path=scope["path"],
            status=status,
            ms=round(seconds * 1000, 1),
        )


def route_of(scope: Scope) -> str:
    """The template of the route that took a request, such as '/v1/jobs/{job_id}'."""
    context: Any = scope.get("fastapi", {}).get("effective_route_context")
    return getattr(context or scope.get("route"), "path", "none")


class BodyTooLarge(HTTPException):
    """FastAPI lets only its own exceptions out of the reading of a body; this one carries ours."""

    def __init__(self, error: errors.TooLarge) -> None:
        super().__init__(error.status, error.detail)
        self.error = error


class Limited:
    """Refuses bodies over a limit, by Content-Length or while they come. Uploads have limits of their own."""

    def __init__(self, app: ASGIApp, limit_bytes: int) -> None:
        self.app, self.limit_bytes = app, limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(STREAMED):
            await self.app(scope, receive, send)
            return
        seen_bytes = 0

        async def receive_some() -> Message:
            nonlocal seen_bytes
            self._judge(_content_length(scope))
            message = await receive()
            seen_bytes += len(message.get("body", b""))
            self._judge(seen_bytes)
            return message

        await self.app(scope, receive_some, send)

    def _judge(self, size_bytes: int) -> None:
        if size_bytes > self.limit_bytes:
            error = errors.TooLarge(
                f"the body has {size_bytes} bytes or more; at most {self.limit_bytes} are taken here",
                hint="files go to /v1/uploads",
                extra={"limit_bytes": self.limit_bytes},
            )
            raise BodyTooLarge(error)


def _content_length(scope: Scope) -> int:
    declared = Headers(scope=scope).get("content-length", "")
    return int(declared) if declared.isascii() and declared.isdigit() else 0
