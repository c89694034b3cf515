"""Jobs in the order in which they are claimed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.drop_index("ix_job_state", table_name="job")
    op.create_index(
        "ix_job_queue",
        "job",
        ["state", "model_name", "model_version", sa.text("priority DESC")],
        unique=False,
    )
