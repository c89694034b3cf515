"""Where detecting models marked what they found, beside the findings of a result."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column("result", sa.Column("detection", sa.JSON(none_as_null=True), nullable=True))
