"""Lists come in pages: items, and a cursor to what follows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Generic, Protocol, TypeVar

from fastapi import Query
from pydantic import BaseModel, Field

Item = TypeVar("Item")


class _HasId(Protocol):
    @property
    def id(self) -> str: ...


Row = TypeVar("Row", bound=_HasId)

Cursor = Annotated[
    str,
    Query(max_length=64, description="`next_cursor` of the page before; empty: the first page."),
]
Limit = Annotated[int, Query(ge=1, le=200, description="Most items of the page.")]


class Page(BaseModel, Generic[Item]):
    """Some of a list, the newest first."""

    items: list[Item] = Field(description="The items.")
    next_cursor: str | None = Field(
        description="Pass it as `cursor` to get what follows; null at the end."
    )


def page(rows: Sequence[Row], limit: int, show: Callable[[Row], Item]) -> Page[Item]:
    """A page of the first `limit` rows; one row more than that tells that there is a next page."""
    shown = rows[:limit]
    following = shown[-1].id if len(rows) > limit else None
    return Page(items=[show(row) for row in shown], next_cursor=following)
