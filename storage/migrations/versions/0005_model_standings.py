"""What a person decided about model versions, and the runs of shadows."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    _create_standings()
    _create_shadow_runs()
    _create_shadow_tensors()


def _create_standings() -> None:
    op.create_index("ix_study_prepared_at", "study", ["prepared_at"], unique=False)
    op.create_table(
        "model_standing",
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("version", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("state_since", sa.DateTime(), nullable=False),
        sa.Column("manifest_sha256", sa.String(length=64), nullable=False),
        sa.Column("weights_sha256", sa.String(length=64), nullable=False),
        sa.Column("decided_by", sa.Text(), server_default="", nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.PrimaryKeyConstraint("name", "version", name=op.f("pk_model_standing")),
    )
    op.create_index(
        "ix_model_standing_admitted",
        "model_standing",
        ["name"],
        unique=True,
        sqlite_where=sa.text("state = 'admitted'"),
    )


def _create_shadow_runs() -> None:
    op.create_table(
        "shadow_run",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("instance_set_digest", sa.String(length=64), nullable=False),
        sa.Column("model_name", sa.String(length=128), nullable=False),
        sa.Column("model_version", sa.String(length=64), nullable=False),
        sa.Column("weights_sha256", sa.String(length=64), nullable=False),
        sa.Column("preprocessing_digest", sa.String(length=64), nullable=False),
        sa.Column("series_instance_uid", sa.String(length=64), server_default="", nullable=False),
        sa.Column("sop_instance_uids", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("state_since", sa.DateTime(), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("available_at", sa.DateTime(), nullable=False),
        sa.Column("lease_owner", sa.String(length=128), nullable=True),
        sa.Column("lease_until", sa.DateTime(), nullable=True),
        sa.Column("findings", sa.JSON(), nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("claimed_at", sa.DateTime(), nullable=False),
        sa.Column("finished_at", sa.DateTime(), nullable=True),
        sa.ForeignKeyConstraint(
            ["study_instance_uid"],
            ["study.study_instance_uid"],
            name=op.f("fk_shadow_run_study_instance_uid"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_shadow_run")),
        sa.UniqueConstraint(
            "study_instance_uid",
            "model_name",
            "model_version",
            "instance_set_digest",
            name="uq_shadow_run_key",
        ),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_shadow_run_state", "shadow_run", ["state", "model_name", "model_version"], unique=False
    )


def _create_shadow_tensors() -> None:
    op.create_table(
        "shadow_tensor",
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("dtype", sa.String(length=16), nullable=False),
        sa.Column("shape", sa.JSON(), nullable=False),
        sa.Column("axes", sa.JSON(), nullable=False),
        sa.Column("spacing_mm", sa.JSON(), nullable=True),
        sa.Column("notes", sa.JSON(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id"], ["shadow_run.id"], name=op.f("fk_shadow_tensor_run_id")
        ),
        sa.PrimaryKeyConstraint("run_id", name=op.f("pk_shadow_tensor")),
    )
