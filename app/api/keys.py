"""API keys: what opens a project."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Self

from fastapi import APIRouter, Path, Response
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from app import accounts, errors, tables
from app.accounts import Principal
from app.api import pages
from app.api.deps import Db, Me
from app.api.pages import Cursor, Limit

router = APIRouter(prefix="/api-keys", tags=["keys"])


class NewKey(BaseModel):
    """A key to make."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=100, description="A name for people.")
    admin: bool = Field(
        default=False,
        description="Whether it may make projects, and keys of any project; only an administrator can give that.",
    )
    expires_at: AwareDatetime | None = Field(
        default=None, description="When it stops to count; null: never."
    )
    project: str | None = Field(
        default=None,
        max_length=64,
        description="Id of the project it opens; null: your own. Only an administrator can name another.",
    )


class KeyBody(BaseModel):
    """A key, without its secret."""

    id: str = Field(description="Id of the key.")
    project: str = Field(description="Id of the project it opens.")
    name: str = Field(description="A name for people.")
    admin: bool = Field(description="Whether it may make projects, and keys of any project.")
    created_at: datetime = Field(description="When it was made.")
    expires_at: datetime | None = Field(description="When it stops to count; null: never.")
    revoked_at: datetime | None = Field(description="When it was revoked; null: it was not.")
    last_used_at: datetime | None = Field(description="When it was last used, to the minute.")

    @classmethod
    def of(cls, key: tables.ApiKey) -> Self:
        """The answer for a row."""
        return cls(
            id=key.id,
            project=key.project_id,
            name=key.name,
            admin=key.admin,
            created_at=key.created_at,
            expires_at=key.expires_at,
            revoked_at=key.revoked_at,
            last_used_at=key.last_used_at,
        )


class CreatedKey(KeyBody):
    """A new key, with its secret."""

    secret: str = Field(
        description="The key itself, `mp_...`. It is shown here and never again: only its hash is kept."
    )


class KeyPage(BaseModel):
    """Some of the project's keys, the newest first."""

    items: list[KeyBody] = Field(description="The keys.")
    next_cursor: str | None = pages.NEXT


@router.post("", status_code=201)
def create_key(body: NewKey, session: Db, me: Me, response: Response) -> CreatedKey:
    """Makes a key. The answer is the only place where its secret is ever shown."""
    project = accounts.get_project(session, _project(body, me))
    key, secret = accounts.create_key(
        session, project.id, body.name, admin=body.admin, expires_at=body.expires_at
    )
    response.headers["Cache-Control"] = "no-store"
    return CreatedKey(**KeyBody.of(key).model_dump(), secret=secret)


def _project(body: NewKey, me: Principal) -> str:
    asked = body.project or me.project_id
    if not me.admin and (body.admin or asked != me.project_id):
        raise errors.Forbidden(
            "only an administrator's key can make administrators' keys, or keys of other projects"
        )
    return asked


@router.get("")
def list_keys(session: Db, me: Me, cursor: Cursor = "", limit: Limit = 50) -> KeyPage:
    """Lists the project's keys, also expired and revoked ones, the newest first."""
    rows = accounts.keys(session, me.project_id, cursor=cursor, limit=limit + 1)
    shown, next_cursor = pages.split(rows, limit)
    return KeyPage(items=[KeyBody.of(row) for row in shown], next_cursor=next_cursor)


@router.delete("/{key_id}", status_code=204, responses={204: {"description": "Revoked."}})
def revoke_key(
    key_id: Annotated[str, Path(max_length=64, description="Id of the key.")], session: Db, me: Me
) -> Response:
    """Makes a key worthless, at once and for good."""
    accounts.revoke_key(session, me.project_id, key_id)
    return Response(status_code=204)
