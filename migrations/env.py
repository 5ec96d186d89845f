"""What Alembic runs. The connection comes from app.migrate, so that a test can migrate any database."""

from __future__ import annotations

from typing import Any, Literal

from alembic import context

from app import tables


def render(kind: str, item: Any, _autogenerate: Any) -> str | Literal[False]:
    """Writes our own column types by the names that script.py.mako defines: a revision never imports app."""
    if kind != "type":
        return False
    if isinstance(item, tables.UtcDateTime):
        return "Moment"
    return "Json" if item is tables.Json else False


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=tables.Table.metadata,
    render_as_batch=True,
    render_item=render,
    compare_type=True,
    compare_server_default=True,
    transactional_ddl=True,
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
