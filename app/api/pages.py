"""Lists come in pages: items, and a cursor to what follows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Protocol, TypeVar

from fastapi import Query
from pydantic import Field


class _Row(Protocol):
    @property
    def id(self) -> Any: ...


Row = TypeVar("Row", bound=_Row)

Cursor = Annotated[
    str,
    Query(max_length=64, description="`next_cursor` of the page before; empty: the first page."),
]
Limit = Annotated[int, Query(ge=1, le=200, description="Most items in the page.")]
NEXT: Any = Field(description="Pass as `cursor` to get the next page; null at the end.")
WHOLE: Any = Field(default=None, description="Always null: the list is whole.")


def split(rows: Sequence[Row], limit: int) -> tuple[Sequence[Row], str | None]:
    """The first `limit` rows and the cursor to the others; who asks for a row more than that learns whether there are."""
    shown = rows[:limit]
    return shown, shown[-1].id if len(rows) > limit else None
