"""One HTTP request: address, key, retries, and errors as exceptions."""

from __future__ import annotations

import random
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from modelpress import __version__, errors
from modelpress._connection import Server
from modelpress.spec.errors import ErrorBody

BUSY = frozenset({429, 502, 503, 504})
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "DELETE"})
MAX_PAUSE_S = 30.0

M = TypeVar("M", bound=BaseModel)


class Transport:
    """A connection to one server. Repeats what is safe to repeat, `retries` times with growing pauses."""

    def __init__(self, server: Server, *, timeout_s: float, retries: int, pause_s: float) -> None:
        headers = {"User-Agent": f"modelpress/{__version__}"}
        if server.api_key:
            headers["Authorization"] = f"Bearer {server.api_key}"
        try:
            self.http = httpx.Client(
                base_url=server.url, headers=headers, timeout=timeout_s, verify=_trust()
            )
        except (httpx.InvalidURL, ValueError) as e:
            raise errors.Unreachable(f"{server.url!r} is no address of a server: {e}") from e
        self.url, self.retries, self.pause_s = server.url, retries, pause_s

    def close(self) -> None:
        """Closes the connections."""
        self.http.close()

    def request(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """Sends a request and answers its successful response.

        A POST is repeated after a broken connection only if it bears an Idempotency-Key.

        Raises:
            Unreachable: no answer, after all retries.
            Rejected: the server answered with an error.
        """
        repeatable = method in SAFE_METHODS or "Idempotency-Key" in (headers or {})
        request = self.http.build_request(
            method, path, json=json, params=_given(params), headers=headers
        )
        for attempt in range(self.retries + 1):
            last = attempt == self.retries
            try:
                response = self.http.send(request)
            except httpx.TransportError as e:
                if last or not (repeatable or _never_arrived(e)):
                    raise self.unreachable(e) from e
                self.pause(attempt)
                continue
            except httpx.InvalidURL as e:
                raise self.unreachable(e) from e
            if response.status_code in BUSY and repeatable and not last:
                self.pause(attempt, response.headers.get("Retry-After"))
                continue
            return checked(response)
        raise AssertionError("the last attempt returns or raises")

    @contextmanager
    def stream(
        self, method: str, path: str, *, follow_redirects: bool = False, **options: Any
    ) -> Iterator[httpx.Response]:
        """Sends a request once and answers a response whose body is yet to be read.

        Raises:
            Unreachable: no answer, or the connection broke inside the block.
            Rejected: the server answered with an error.
        """
        try:
            with self.http.stream(
                method, path, follow_redirects=follow_redirects, **options
            ) as response:
                if not response.is_success:
                    response.read()
                yield checked(response)
        except (httpx.TransportError, httpx.InvalidURL) as e:
            raise self.unreachable(e) from e

    def pause(self, attempt: int, retry_after: str | None = None) -> None:
        """Waits before the next attempt: as long as the server asks, else twice as long each time, with jitter."""
        asked = float(retry_after) if retry_after and retry_after.isdigit() else 0.0
        own = self.pause_s * 2**attempt * random.uniform(0.75, 1.25)
        time.sleep(min(max(asked, own), MAX_PAUSE_S))

    def unreachable(self, cause: Exception) -> errors.Unreachable:
        """The exception for a request that got no answer."""
        reason = str(cause) or type(cause).__name__
        return errors.Unreachable(f"the server {self.url} can't be reached: {reason}")


def read(response: httpx.Response, kind: type[M]) -> M:
    """The body of a response as the given class.

    Raises:
        UnexpectedAnswer: the body is something else.
    """
    try:
        return kind.model_validate_json(response.content)
    except ValidationError as e:
        first = e.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the body"
        raise errors.UnexpectedAnswer(
            f"{response.request.method} {response.request.url.path} answered no {kind.__name__} "
            f"({where}: {first['msg']}); client {__version__} may be too old for this server"
        ) from e


def checked(response: httpx.Response) -> httpx.Response:
    """The response, if it tells of success.

    Raises:
        Rejected: it tells of an error.
    """
    if response.status_code < 400:
        return response
    raise errors.rejected(_error_body(response))


def _error_body(response: httpx.Response) -> ErrorBody:
    """What the server says; or, where a proxy or another service answers, what can be told from the status."""
    try:
        return ErrorBody.model_validate_json(response.content)
    except ValidationError:
        return ErrorBody(
            title=response.reason_phrase,
            status=response.status_code,
            code="http_error",
            detail=f"{response.request.method} {response.request.url.path} answered "
            f"{response.status_code} {response.reason_phrase}",
        )


@cache
def _trust() -> ssl.SSLContext:
    """Which certificates are believed; read once, as it takes a tenth of a second."""
    return httpx.create_ssl_context()


def _never_arrived(error: httpx.TransportError) -> bool:
    return isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)


def _given(params: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (params or {}).items() if value is not None}
