"""find orphans

Stored files that no row names are noted, to be removed after a while. Old progress events are found by their time.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from app.tables import UtcDateTime

revision = "20261124_find_orphans"
down_revision = "20261124_keep_architectures"
branch_labels = None
depends_on = None

PROGRESS = sa.text("type = 'progress'")


def upgrade() -> None:
    op.create_table(
        "orphan",
        sa.Column("project_id", sa.String(length=40), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("found_at", UtcDateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("project_id", "sha256", name=op.f("pk_orphan")),
    )
    op.create_index(op.f("ix_orphan_found_at"), "orphan", ["found_at"])
    op.create_index(
        "ix_event_progress",
        "event",
        ["created_at"],
        postgresql_where=PROGRESS,
        sqlite_where=PROGRESS,
    )


def downgrade() -> None:
    op.drop_index("ix_event_progress", table_name="event")
    op.drop_index(op.f("ix_orphan_found_at"), table_name="orphan")
    op.drop_table("orphan")
