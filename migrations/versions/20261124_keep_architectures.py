"""keep architectures

Models that were uploaded as weights alone have the name of the network that these belong to.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "20261124_keep_architectures"
down_revision = "20261124_keep_converted_models"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("model") as batch:
        batch.add_column(sa.Column("architecture", sa.String(length=128), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("model") as batch:
        batch.drop_column("architecture")
