"""Digests of contents that name their algorithm; those of before stay as they are."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.add_column(
        "study",
        sa.Column(
            "content_algorithm", sa.String(length=16), server_default="sha256", nullable=False
        ),
    )
    # Renaming alone would leave the column too narrow, and SQLite widens none in place.
    for name in ("instance", "instance_conflict"):
        with op.batch_alter_table(name) as table:
            table.alter_column(
                "sha256",
                new_column_name="content_digest",
                existing_type=sa.String(length=64),
                type_=sa.String(length=80),
                existing_nullable=False,
            )
    # By itself: together with the renaming Alembic would leave the new constraint out.
    with op.batch_alter_table("instance_conflict") as table:
        table.drop_constraint(
            op.f("uq_instance_conflict_study_instance_uid_sop_instance_uid_sha256"), type_="unique"
        )
        table.create_unique_constraint(
            op.f("uq_instance_conflict_content"),
            ["study_instance_uid", "sop_instance_uid", "content_digest"],
        )
