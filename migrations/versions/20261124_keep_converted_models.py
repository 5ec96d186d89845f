"""keep converted models

Models that were uploaded in another format than ONNX have the file that a worker made of them.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "20261124_keep_converted_models"
down_revision = "20261124_create_first_tables"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("model") as batch:
        batch.add_column(sa.Column("onnx_sha256", sa.String(length=64), nullable=True))
        batch.add_column(sa.Column("onnx_size_bytes", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("model") as batch:
        batch.drop_column("onnx_size_bytes")
        batch.drop_column("onnx_sha256")
