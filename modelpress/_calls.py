"""The connection that the client's methods share: requests, and pages of answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

from pydantic import BaseModel

from modelpress import _connection, _transport
from modelpress.resources import Identified, Model, Page

DAY_S = 86_400.0

Told = Callable[[int, int], None]
M = TypeVar("M", bound=BaseModel)


class Calls:
    """A connection to a ModelPress server; close it, or use it in a `with` block."""

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout_s: float = 60,
        retries: int = 4,
        retry_pause_s: float = 0.2,
        poll_s: float = 0.5,
        patience_s: float = 120,
    ) -> None:
        """Opens nothing yet.

        Args:
            url: Address of the server.
            api_key: Key of a project.
            timeout_s: Longest silence of the server within one request.
            retries: How often a request is repeated when that is safe.
            retry_pause_s: Pause before the first repetition; it doubles with each.
            poll_s: Pause between questions while waiting for the server's workers.
            patience_s: How long `wait` bears a server that can't be reached.

        Raises:
            Unreachable: no server is known.
        """
        server = _connection.find(url, api_key)
        self.url, self.poll_s, self.patience_s = server.url, poll_s, patience_s
        self._http = _transport.Transport(
            server, timeout_s=timeout_s, retries=retries, pause_s=retry_pause_s
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def _get(self, path: str, kind: type[M]) -> M:
        return _transport.read(self._http.request("GET", path), kind)

    def _post(
        self, path: str, kind: type[M], body: Any, *, headers: Mapping[str, str] | None = None
    ) -> M:
        response = self._http.request("POST", path, json=body, headers=headers)
        return _transport.read(response, kind)

    def _list(self, path: str, kind: type[M], filters: Mapping[str, str | None]) -> Iterator[M]:
        cursor: str | None = None
        while True:
            response = self._http.request("GET", path, params={**filters, "cursor": cursor})
            page = _transport.read(response, Page[kind])  # type: ignore[valid-type]
            yield from page.items
            cursor = page.next_cursor
            if cursor is None:
                return


def nobody(done_bytes: int, size_bytes: int) -> None:
    """Hears nothing."""


def id_of(thing: str | Identified) -> str:
    """The id of a thing, safe to put into a path."""
    return quote(thing if isinstance(thing, str) else thing.id, safe="")


def ids(things: Mapping[str, str | Model] | None) -> dict[str, str]:
    """Those of things that have roles."""
    return {role: id_of(thing) for role, thing in (things or {}).items()}


def id_or_none(thing: str | Identified | None) -> str | None:
    """The id of what may be left out."""
    return None if thing is None else id_of(thing)
