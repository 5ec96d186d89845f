"""keep sensitivities

What jobs measured of each layer of a model is kept for other jobs.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from app.tables import UtcDateTime

revision = "20261124_keep_sensitivities"
down_revision = "20261124_find_orphans"
branch_labels = None
depends_on = None

Json = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    op.create_table(
        "sensitivity",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("project_id", sa.String(length=40), nullable=False),
        sa.Column("model_id", sa.String(length=40), nullable=False),
        sa.Column("job_id", sa.String(length=40), nullable=True),
        sa.Column("model_sha256", sa.String(length=64), nullable=False),
        sa.Column("methods", Json, nullable=False),
        sa.Column("layers", sa.Integer(), nullable=False),
        sa.Column("samples", sa.Integer(), nullable=False),
        sa.Column("content", Json, nullable=False),
        sa.Column("created_at", UtcDateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["project_id"],
            ["project.id"],
            name=op.f("fk_sensitivity_project_id_project"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["model_id"],
            ["model.id"],
            name=op.f("fk_sensitivity_model_id_model"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["job_id"], ["job.id"], name=op.f("fk_sensitivity_job_id_job"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sensitivity")),
    )
    op.create_index(op.f("ix_sensitivity_project_id"), "sensitivity", ["project_id"])
    op.create_index(op.f("ix_sensitivity_model_id"), "sensitivity", ["model_id"])


def downgrade() -> None:
    op.drop_index(op.f("ix_sensitivity_model_id"), table_name="sensitivity")
    op.drop_index(op.f("ix_sensitivity_project_id"), table_name="sensitivity")
    op.drop_table("sensitivity")
