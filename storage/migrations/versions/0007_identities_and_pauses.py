"""Which weights said a result, and since when a study waits for files that cannot be read."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("study", sa.Column("put_off_since", sa.DateTime(), nullable=True))
    op.add_column("result", sa.Column("model_identity", sa.JSON(none_as_null=True), nullable=True))
    op.execute(
        "UPDATE result SET model_identity ="
        " (SELECT job.model_identity FROM job WHERE job.id = result.job_id)"
    )
