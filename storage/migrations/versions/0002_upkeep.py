"""What holds a study back, and how often a destination was asked for what it accepted."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column(
        "study",
        sa.Column("patient_mismatch_count", sa.Integer(), server_default="0", nullable=False),
    )
    op.add_column("study", sa.Column("purged_instance_count", sa.Integer(), nullable=True))
    # A study removed before this migration is measured by what it had, too.
    op.execute(
        "UPDATE study SET purged_instance_count = instance_count WHERE purged_at IS NOT NULL"
    )
    op.add_column(
        "delivery", sa.Column("confirm_misses", sa.Integer(), server_default="0", nullable=False)
    )
    op.add_column("delivery", sa.Column("confirm_next_at", sa.DateTime(), nullable=True))
