"""Whether the database has the tables of this version; told without Alembic, whose import takes the API a quarter of a second."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from sqlalchemy import Connection, inspect, text

import migrations

_REVISION = re.compile(r'^(revision|down_revision) = "(.+)"$', re.MULTILINE)


def is_current(connection: Connection) -> bool:
    """Whether the database has the newest tables."""
    if not inspect(connection).has_table("alembic_version"):
        return False
    return bool(connection.scalar(text("SELECT version_num FROM alembic_version")) == newest())


@cache
def newest() -> str:
    """The revision that `migrate.upgrade` ends at: the one that no other follows."""
    versions = Path(migrations.__file__).parent / "versions"
    named = [pair for path in versions.glob("*.py") for pair in _REVISION.findall(path.read_text())]
    followed = {revision for field, revision in named if field == "down_revision"}
    [last] = {revision for field, revision in named if field == "revision"} - followed
    return str(last)
