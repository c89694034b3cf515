"""The tables, as SQLAlchemy Core sees them.

Owns names, types and constraints; holds no query. A change here comes with a migration, and a
test compares the two.
"""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import (
    JSON,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class UTCDateTime(TypeDecorator[datetime]):
    """An instant: aware in the program, UTC without offset in the database, microseconds kept."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Turn an aware instant into naive UTC; a naive one is a fault of the program."""
        del dialect
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("an instant without time zone must not be stored: use aware UTC")
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Give the stored instant its zone back."""
        del dialect
        return None if value is None else value.replace(tzinfo=UTC)


_UID = String(64)
_STATE = String(16)
_SHA256 = String(64)


def _text(name: str) -> Column[str]:
    """A text that is empty, never NULL, when absent."""
    return Column(name, Text, nullable=False, default="", server_default="")


def _count(name: str) -> Column[int]:
    return Column(name, Integer, nullable=False, default=0, server_default="0")


def _when(name: str, *, required: bool = False) -> Column[datetime]:
    return Column(name, UTCDateTime, nullable=not required)


def _study_key() -> Column[str]:
    return Column(
        "study_instance_uid", _UID, ForeignKey("study.study_instance_uid"), nullable=False
    )


installation = Table(
    "installation",
    metadata,
    Column("only", Integer, CheckConstraint("only = 1", name="single_row"), primary_key=True),
    Column("uid_namespace", String(36), nullable=False),
    Column("node_id", String(36), nullable=False),
    _when("created_at", required=True),
)

process = Table(
    "process",
    metadata,
    Column("slot", String(64), primary_key=True),
    Column("role", String(32), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("host", String(255), nullable=False),
    Column("state", String(32), nullable=False),
    Column("detail", JSON, nullable=False),
    _when("started_at", required=True),
    _when("heartbeat_at", required=True),
)

association = Table(
    "association",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("slot", String(64), nullable=False),
    _text("calling_ae_title"),
    _text("called_ae_title"),
    _text("address"),
    _when("opened_at", required=True),
    _when("closed_at"),
)
Index("ix_association_open", association.c.slot, sqlite_where=association.c.closed_at.is_(None))

association_study = Table(
    "association_study",
    metadata,
    Column("association_id", String(64), primary_key=True),
    Column("study_instance_uid", _UID, primary_key=True),
    Index("ix_association_study_study", "study_instance_uid"),
)

study = Table(
    "study",
    metadata,
    Column("study_instance_uid", _UID, primary_key=True),
    _text("patient_id"),
    _text("patient_name"),
    _text("accession_number"),
    _text("study_date"),
    _text("study_time"),
    _text("description"),
    Column("modalities", JSON, nullable=False),
    _count("instance_count"),
    _count("conflict_count"),
    Column("expected_instances", Integer),
    Column("state", _STATE, nullable=False),
    _when("state_since", required=True),
    _text("reason"),
    _when("first_instance_at", required=True),
    _when("last_instance_at", required=True),
    _when("completed_at"),
    _when("prepared_at"),
    Column("completion_evidence", JSON),
    Column("instance_set_digest", _SHA256),
    _count("attempts"),
    Column("lease_owner", String(128)),
    _when("lease_until"),
    _when("purged_at"),
    _count("patient_mismatch_count"),
    Column("purged_instance_count", Integer),
    Index("ix_study_state", "state", "state_since"),
    Index("ix_study_last_instance_at", "last_instance_at"),
    Index("ix_study_accession_number", "accession_number"),
    Index("ix_study_prepared_at", "prepared_at"),
)

series = Table(
    "series",
    metadata,
    Column("study_instance_uid", _UID, primary_key=True),
    Column("series_instance_uid", _UID, primary_key=True),
    _text("modality"),
    _text("description"),
    _text("body_part_examined"),
    Column("series_number", Integer),
    ForeignKeyConstraint(["study_instance_uid"], ["study.study_instance_uid"]),
)

instance = Table(
    "instance",
    metadata,
    Column("study_instance_uid", _UID, primary_key=True),
    Column("sop_instance_uid", _UID, primary_key=True),
    Column("series_instance_uid", _UID, nullable=False),
    Column("sop_class_uid", _UID, nullable=False),
    Column("transfer_syntax_uid", _UID, nullable=False),
    Column("instance_number", Integer),
    Column("number_of_frames", Integer, nullable=False),
    Column("rows", Integer, nullable=False),
    Column("columns", Integer, nullable=False),
    Column("path", Text, nullable=False),
    Column("sha256", _SHA256, nullable=False),
    Column("size", Integer, nullable=False),
    _when("received_at", required=True),
    ForeignKeyConstraint(
        ["study_instance_uid", "series_instance_uid"],
        ["series.study_instance_uid", "series.series_instance_uid"],
    ),
    Index("ix_instance_series", "study_instance_uid", "series_instance_uid"),
    # Storage commitment names instances without their study.
    Index("ix_instance_sop", "sop_instance_uid"),
)

instance_conflict = Table(
    "instance_conflict",
    metadata,
    Column("id", Integer, primary_key=True),
    _study_key(),
    Column("sop_instance_uid", _UID, nullable=False),
    Column("sha256", _SHA256, nullable=False),
    Column("path", Text, nullable=False),
    Column("size", Integer, nullable=False),
    _when("received_at", required=True),
    UniqueConstraint("study_instance_uid", "sop_instance_uid", "sha256"),
)

refused_instance = Table(
    "refused_instance",
    metadata,
    Column("id", Integer, primary_key=True),
    _when("at", required=True),
    _text("calling_ae_title"),
    _text("called_ae_title"),
    _text("address"),
    _text("sop_class_uid"),
    _text("sop_instance_uid"),
    Column("status", Integer),
    Column("reason", Text, nullable=False),
    Index("ix_refused_instance_at", "at"),
)

decision = Table(
    "decision",
    metadata,
    Column("id", Integer, primary_key=True),
    _study_key(),
    Column("model_name", String(128), nullable=False),
    Column("model_version", String(64), nullable=False),
    Column("series_instance_uid", _UID),
    Column("chosen", Boolean(create_constraint=False), nullable=False),
    Column("evaluation", JSON, nullable=False),
    _when("at", required=True),
    Index("ix_decision_study", "study_instance_uid"),
)

job = Table(
    "job",
    metadata,
    Column("id", Integer, primary_key=True),
    _study_key(),
    # Empty, not NULL, when no series could be chosen: NULLs would escape the uniqueness below.
    Column("series_instance_uid", _UID, nullable=False),
    Column("model_name", String(128), nullable=False),
    Column("model_version", String(64), nullable=False),
    Column("model_identity", JSON, nullable=False),
    Column("instance_set_digest", _SHA256, nullable=False),
    Column("preprocessing_digest", _SHA256, nullable=False),
    Column("sop_instance_uids", JSON, nullable=False),
    _count("priority"),
    Column("state", _STATE, nullable=False),
    _when("state_since", required=True),
    Column("run", Integer, nullable=False, default=1, server_default="1"),
    _count("attempts"),
    _count("crashes"),
    _when("available_at", required=True),
    Column("lease_owner", String(128)),
    _when("lease_until"),
    _text("reason"),
    _when("enqueued_at", required=True),
    _when("claimed_at"),
    _when("finished_at"),
    UniqueConstraint(
        "study_instance_uid",
        "series_instance_uid",
        "model_name",
        "model_version",
        "instance_set_digest",
        "preprocessing_digest",
        name="uq_job_key",
    ),
    Index("ix_job_state", "state", "model_name", "model_version"),
    sqlite_autoincrement=True,
)

tensor = Table(
    "tensor",
    metadata,
    Column("job_id", Integer, ForeignKey("job.id"), primary_key=True),
    Column("dtype", String(16), nullable=False),
    Column("shape", JSON, nullable=False),
    Column("axes", JSON, nullable=False),
    Column("spacing_mm", JSON),
    Column("notes", JSON, nullable=False),
    Column("data", LargeBinary, nullable=False),
)

result = Table(
    "result",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("job_id", Integer, ForeignKey("job.id"), nullable=False),
    Column("run", Integer, nullable=False),
    _study_key(),
    Column("model_name", String(128), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("findings", JSON, nullable=False),
    _text("refusal_reason"),
    _text("refusal_message"),
    Column("result_digest", _SHA256, nullable=False),
    _when("analysis_started_at", required=True),
    _when("finished_at", required=True),
    _when("composed_at"),
    Column("version_number", Integer, nullable=False),
    Column("predecessor_result_id", Integer, ForeignKey("result.id")),
    Column("state", _STATE, nullable=False),
    _when("state_since", required=True),
    _text("reason"),
    UniqueConstraint("job_id", "run"),
    UniqueConstraint("study_instance_uid", "model_name", "version_number"),
    Index("ix_result_state", "state"),
    sqlite_autoincrement=True,
)

explanation = Table(
    "explanation",
    metadata,
    Column("result_id", Integer, ForeignKey("result.id"), primary_key=True),
    Column("label", String(64), primary_key=True),
    _text("method"),
    Column("layers", JSON, nullable=False),
    Column("region", JSON, nullable=False),
    Column("source_slices", Integer, nullable=False),
    # What the largest value stands for; the map holds 0 to 255 for 0 to it.
    Column("strength", Float, nullable=False),
    Column("shape", JSON, nullable=False),
    # uint8 in C order, compressed with zlib; empty when there is no map, and `reason` says why.
    Column("data", LargeBinary, nullable=False),
    _text("reason"),
)

document = Table(
    "document",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("result_id", Integer, ForeignKey("result.id"), nullable=False),
    Column("role", String(8), nullable=False),
    Column("sop_class_uid", _UID, nullable=False),
    Column("sop_instance_uid", _UID, nullable=False, unique=True),
    Column("series_instance_uid", _UID, nullable=False),
    Column("data", LargeBinary, nullable=False),
    _when("composed_at", required=True),
    UniqueConstraint("result_id", "role", "sop_class_uid"),
    sqlite_autoincrement=True,
)

delivery = Table(
    "delivery",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("result_id", Integer, ForeignKey("result.id"), nullable=False),
    Column("document_id", Integer, ForeignKey("document.id"), nullable=False),
    Column("role", String(8), nullable=False),
    Column("destination", String(128), nullable=False),
    Column("state", _STATE, nullable=False),
    _when("state_since", required=True),
    _count("attempts"),
    _when("next_attempt_at", required=True),
    Column("last_status", Integer),
    _text("last_comment"),
    _when("created_at", required=True),
    _when("sent_at"),
    _when("confirmed_at"),
    _count("confirm_misses"),
    _when("confirm_next_at"),
    UniqueConstraint("result_id", "role", "destination"),
    Index("ix_delivery_state", "state", "next_attempt_at"),
    sqlite_autoincrement=True,
)

destination_state = Table(
    "destination_state",
    metadata,
    Column("name", String(128), primary_key=True),
    _when("last_attempt_at"),
    _when("last_success_at"),
    _text("last_answer"),
    Column("sr_sop_class_uid", _UID),
    _count("consecutive_failures"),
    _when("breaker_until"),
)

commitment = Table(
    "commitment",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("transaction_uid", _UID, nullable=False),
    Column("calling_ae_title", String(16), nullable=False),
    Column("called_ae_title", String(16), nullable=False),
    Column("address", String(64), nullable=False),
    Column("association_id", String(64), nullable=False),
    # Pairs of SOP Class UID and SOP Instance UID.
    Column("references", JSON, nullable=False),
    # Its transaction UID was in use for other instances: nothing of it is committed to.
    Column("is_duplicate", Boolean(create_constraint=False), nullable=False),
    Column("state", _STATE, nullable=False),
    _when("state_since", required=True),
    _when("requested_at", required=True),
    _count("attempts"),
    _count("refusals"),
    _when("next_attempt_at", required=True),
    _text("last_answer"),
    Column("committed_count", Integer),
    Column("failed_count", Integer),
    Index("ix_commitment_state", "state", "next_attempt_at"),
    Index("ix_commitment_transaction", "transaction_uid"),
    sqlite_autoincrement=True,
)

# What a person decided about a version of a model; no row means that nobody did.
model_standing = Table(
    "model_standing",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("version", String(64), primary_key=True),
    Column("state", _STATE, nullable=False),
    _when("state_since", required=True),
    # Of the package as it was when a person decided; another one under its version is not meant.
    Column("manifest_sha256", _SHA256, nullable=False),
    Column("weights_sha256", _SHA256, nullable=False),
    _text("decided_by"),
    _text("reason"),
)
Index(
    "ix_model_standing_admitted",
    model_standing.c.name,
    unique=True,
    sqlite_where=model_standing.c.state == "admitted",
)

# A shadow's runs have tables of their own: no query about jobs or results can find one.
shadow_run = Table(
    "shadow_run",
    metadata,
    Column("id", Integer, primary_key=True),
    _study_key(),
    Column("instance_set_digest", _SHA256, nullable=False),
    Column("model_name", String(128), nullable=False),
    Column("model_version", String(64), nullable=False),
    Column("weights_sha256", _SHA256, nullable=False),
    Column("preprocessing_digest", _SHA256, nullable=False),
    Column("series_instance_uid", _UID, nullable=False, default="", server_default=""),
    Column("sop_instance_uids", JSON, nullable=False),
    Column("state", _STATE, nullable=False),
    _when("state_since", required=True),
    _count("attempts"),
    _when("available_at", required=True),
    Column("lease_owner", String(128)),
    _when("lease_until"),
    Column("findings", JSON, nullable=False),
    _text("reason"),
    _when("claimed_at", required=True),
    _when("finished_at"),
    UniqueConstraint(
        "study_instance_uid",
        "model_name",
        "model_version",
        "instance_set_digest",
        name="uq_shadow_run_key",
    ),
    Index("ix_shadow_run_state", "state", "model_name", "model_version"),
    sqlite_autoincrement=True,
)

shadow_tensor = Table(
    "shadow_tensor",
    metadata,
    Column("run_id", Integer, ForeignKey("shadow_run.id"), primary_key=True),
    Column("dtype", String(16), nullable=False),
    Column("shape", JSON, nullable=False),
    Column("axes", JSON, nullable=False),
    Column("spacing_mm", JSON),
    Column("notes", JSON, nullable=False),
    Column("data", LargeBinary, nullable=False),
)

audit = Table(
    "audit",
    metadata,
    Column("id", Integer, primary_key=True),
    _when("at", required=True),
    Column("actor", String(64), nullable=False),
    Column("action", String(64), nullable=False),
    _text("subject"),
    Column("detail", JSON, nullable=False),
    Index("ix_audit_subject", "subject"),
    sqlite_autoincrement=True,
)
