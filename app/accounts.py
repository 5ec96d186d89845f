"""Projects and the keys that open them."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app import errors, ids, tables
from app.tables import ApiKey, Project

_KEY = re.compile(r"mp_([0-9a-z]{26})_([A-Za-z0-9_-]{43})")
_USE_NOTED_EVERY = timedelta(minutes=1)


@dataclass(frozen=True)
class Principal:
    """Who is asking."""

    project_id: str
    key_id: str
    admin: bool


def authenticate(session: Session, key: str) -> Principal:
    """Finds who holds a key, and notes its use once a minute.

    Raises:
        Unauthorized: the key is missing, malformed, unknown, expired or revoked.
    """
    match = _KEY.fullmatch(key)
    row = session.get(ApiKey, f"key_{match[1]}") if match else None
    if match is None or row is None or not _is_secret(row, match[2]):
        raise _refused("the API key is missing or not known")
    now = tables.now()
    if row.revoked_at is not None:
        raise _refused(f"the API key {row.name!r} was revoked")
    if row.expires_at is not None and row.expires_at <= now:
        raise _refused(f"the API key {row.name!r} expired at {row.expires_at:%Y-%m-%d %H:%M} UTC")
    if row.last_used_at is None or now - row.last_used_at > _USE_NOTED_EVERY:
        row.last_used_at = now
    return Principal(project_id=row.project_id, key_id=row.id, admin=row.admin)


def _is_secret(row: ApiKey, secret: str) -> bool:
    return hmac.compare_digest(row.secret_sha256, _digest(secret))


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _refused(detail: str) -> errors.Unauthorized:
    return errors.Unauthorized(
        detail,
        hint="send 'Authorization: Bearer mp_...'; an administrator makes keys with POST /v1/api-keys",
        headers={"WWW-Authenticate": "Bearer"},
    )


def create_project(session: Session, name: str) -> Project:
    """Makes an empty project.

    Raises:
        Conflict: the name is taken.
    """
    project = Project(id=ids.new("prj"), name=name)
    try:
        with session.begin_nested():
            session.add(project)
    except IntegrityError as e:
        raise errors.Conflict(
            f"there is a project named {name!r} already", hint="choose another name"
        ) from e
    return project


def find_project(session: Session, name: str) -> Project | None:
    """The project of that name."""
    return session.scalars(select(Project).where(Project.name == name)).one_or_none()


def get_project(session: Session, project_id: str) -> Project:
    """A project by id.

    Raises:
        NotFound: there is none.
    """
    project = session.get(Project, project_id)
    if project is None:
        raise errors.NotFound(f"there is no project {project_id!r}")
    return project


def create_key(
    session: Session,
    project_id: str,
    name: str,
    *,
    admin: bool = False,
    expires_at: datetime | None = None,
) -> tuple[ApiKey, str]:
    """Makes a key and returns it with its text, which is kept nowhere and can't be shown again."""
    secret = secrets.token_urlsafe(32)
    row = ApiKey(
        id=ids.new("key"),
        project_id=project_id,
        name=name,
        secret_sha256=_digest(secret),
        admin=admin,
        expires_at=expires_at,
    )
    session.add(row)
    session.flush()
    return row, f"mp_{row.id.removeprefix('key_')}_{secret}"


def get_key(session: Session, project_id: str, key_id: str) -> ApiKey:
    """A key of a project.

    Raises:
        NotFound: the project has no such key.
    """
    row = session.get(ApiKey, key_id)
    if row is None or row.project_id != project_id:
        raise errors.NotFound(f"there is no API key {key_id!r}")
    return row


def revoke_key(session: Session, project_id: str, key_id: str) -> None:
    """Makes a key worthless from now on; again is no error.

    Raises:
        NotFound: the project has no such key.
    """
    row = get_key(session, project_id, key_id)
    row.revoked_at = row.revoked_at or tables.now()


def projects(session: Session, *, cursor: str = "", limit: int = 50) -> Sequence[Project]:
    """All projects, the newest first; with `cursor`, those after the one of that id."""
    found = select(Project)
    if cursor:
        found = found.where(Project.id < cursor)
    return session.scalars(found.order_by(Project.id.desc()).limit(limit)).all()


def keys(
    session: Session, project_id: str, *, cursor: str = "", limit: int = 50
) -> Sequence[ApiKey]:
    """A project's keys, the newest first; with `cursor`, those after the one of that id."""
    found = select(ApiKey).where(ApiKey.project_id == project_id)
    if cursor:
        found = found.where(ApiKey.id < cursor)
    return session.scalars(found.order_by(ApiKey.id.desc()).limit(limit)).all()
