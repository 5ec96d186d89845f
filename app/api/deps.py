"""What endpoints ask for: `Db`, a transaction that commits before the answer leaves, and `Me`, who is asking."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy.orm import Session

from app import accounts, db, errors

_bearer = HTTPBearer(
    auto_error=False,
    bearerFormat="mp_<id>_<secret>",
    description="An API key of a project, as POST /v1/api-keys showed it once.",
)


def get_session() -> Iterator[Session]:
    """One transaction for the request; an exception rolls it back."""
    with db.transaction() as session:
        yield session


Db = Annotated[Session, Depends(get_session, scope="function")]


def principal(
    credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
) -> accounts.Principal:
    """Who is asking, found in a transaction of its own: uploads and event streams outlive any transaction."""
    with db.transaction() as session:
        return accounts.authenticate(session, credentials.credentials if credentials else "")


Me = Annotated[accounts.Principal, Depends(principal)]


def administrator(me: Me) -> accounts.Principal:
    """Who is asking, if that is an administrator.

    Raises:
        Forbidden: the key has no administrator's rights.
    """
    if not me.admin:
        raise errors.Forbidden(
            "this needs an administrator's key",
            hint="make one with: python -m app.admin create-key --project NAME --admin",
        )
    return me


Admin = Annotated[accounts.Principal, Depends(administrator)]
