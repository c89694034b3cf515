"""The tables, as SQLAlchemy Core sees them.

Owns names, types and constraints; holds no query. A change here comes with a migration, and a
test compares the two.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    Boolean,
    CheckConstraint,
    Column,
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
    UniqueConstraint,
)

from storage.columns import (
    CONTENT_DIGEST,
    SHA256,
    STATE,
    UID,
    count,
    image_tensor,
    instant,
    lease,
    model_version,
    study_key,
    text,
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

installation = Table(
    "installation",
    metadata,
    Column("only", Integer, CheckConstraint("only = 1", name="single_row"), primary_key=True),
    Column("uid_namespace", String(36), nullable=False),
    Column("node_id", String(36), nullable=False),
    instant("created_at", required=True),
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
    instant("started_at", required=True),
    instant("heartbeat_at", required=True),
)

association = Table(
    "association",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("slot", String(64), nullable=False),
    text("calling_ae_title"),
    text("called_ae_title"),
    text("address"),
    instant("opened_at", required=True),
    instant("closed_at"),
)
Index("ix_association_open", association.c.slot, sqlite_where=association.c.closed_at.is_(None))

association_study = Table(
    "association_study",
    metadata,
    Column("association_id", String(64), primary_key=True),
    Column("study_instance_uid", UID, primary_key=True),
    Index("ix_association_study_study", "study_instance_uid"),
)

study = Table(
    "study",
    metadata,
    Column("study_instance_uid", UID, primary_key=True),
    text("patient_id"),
    text("patient_name"),
    text("accession_number"),
    text("study_date"),
    text("study_time"),
    text("description"),
    Column("modalities", JSON, nullable=False),
    count("instance_count"),
    count("conflict_count"),
    Column("expected_instances", Integer),
    Column("state", STATE, nullable=False),
    instant("state_since", required=True),
    text("reason"),
    instant("first_instance_at", required=True),
    instant("last_instance_at", required=True),
    instant("completed_at"),
    instant("prepared_at"),
    Column("completion_evidence", JSON),
    Column("instance_set_digest", SHA256),
    count("attempts"),
    *lease(),
    instant("purged_at"),
    count("patient_mismatch_count"),
    Column("purged_instance_count", Integer),
    instant("put_off_since"),
    # For life: by what its instances' contents are digested. Versions up to 0.1.0 did not say.
    Column("content_algorithm", String(16), nullable=False, server_default="sha256"),
    Index("ix_study_state", "state", "state_since"),
    Index("ix_study_last_instance_at", "last_instance_at"),
    Index("ix_study_accession_number", "accession_number"),
    Index("ix_study_prepared_at", "prepared_at"),
)

series = Table(
    "series",
    metadata,
    Column("study_instance_uid", UID, primary_key=True),
    Column("series_instance_uid", UID, primary_key=True),
    text("modality"),
    text("description"),
    text("body_part_examined"),
    Column("series_number", Integer),
    ForeignKeyConstraint(["study_instance_uid"], ["study.study_instance_uid"]),
)

instance = Table(
    "instance",
    metadata,
    Column("study_instance_uid", UID, primary_key=True),
    Column("sop_instance_uid", UID, primary_key=True),
    Column("series_instance_uid", UID, nullable=False),
    Column("sop_class_uid", UID, nullable=False),
    Column("transfer_syntax_uid", UID, nullable=False),
    Column("instance_number", Integer),
    Column("number_of_frames", Integer, nullable=False),
    Column("rows", Integer, nullable=False),
    Column("columns", Integer, nullable=False),
    Column("path", Text, nullable=False),
    Column("content_digest", CONTENT_DIGEST, nullable=False),
    Column("size", Integer, nullable=False),
    instant("received_at", required=True),
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
    study_key(),
    Column("sop_instance_uid", UID, nullable=False),
    Column("content_digest", CONTENT_DIGEST, nullable=False),
    Column("path", Text, nullable=False),
    Column("size", Integer, nullable=False),
    instant("received_at", required=True),
    # Named, because its columns' names are longer together than a name may be elsewhere.
    UniqueConstraint(
        "study_instance_uid",
        "sop_instance_uid",
        "content_digest",
        name="uq_instance_conflict_content",
    ),
)

refused_instance = Table(
    "refused_instance",
    metadata,
    Column("id", Integer, primary_key=True),
    instant("at", required=True),
    text("calling_ae_title"),
    text("called_ae_title"),
    text("address"),
    text("sop_class_uid"),
    text("sop_instance_uid"),
    Column("status", Integer),
    Column("reason", Text, nullable=False),
    Index("ix_refused_instance_at", "at"),
)

decision = Table(
    "decision",
    metadata,
    Column("id", Integer, primary_key=True),
    study_key(),
    *model_version(),
    Column("series_instance_uid", UID),
    Column("chosen", Boolean(create_constraint=False), nullable=False),
    Column("evaluation", JSON, nullable=False),
    instant("at", required=True),
    Index("ix_decision_study", "study_instance_uid"),
)

job = Table(
    "job",
    metadata,
    Column("id", Integer, primary_key=True),
    study_key(),
    # Empty, not NULL, when no series could be chosen: NULLs would escape the uniqueness below.
    Column("series_instance_uid", UID, nullable=False),
    *model_version(),
    Column("model_identity", JSON, nullable=False),
    Column("instance_set_digest", SHA256, nullable=False),
    Column("preprocessing_digest", SHA256, nullable=False),
    Column("sop_instance_uids", JSON, nullable=False),
    count("priority"),
    Column("state", STATE, nullable=False),
    instant("state_since", required=True),
    Column("run", Integer, nullable=False, default=1, server_default="1"),
    count("attempts"),
    count("crashes"),
    instant("available_at", required=True),
    *lease(),
    text("reason"),
    instant("enqueued_at", required=True),
    instant("claimed_at"),
    instant("finished_at"),
    UniqueConstraint(
        "study_instance_uid",
        "series_instance_uid",
        "model_name",
        "model_version",
        "instance_set_digest",
        "preprocessing_digest",
        name="uq_job_key",
    ),
    sqlite_autoincrement=True,
)
# In the order in which jobs are claimed, so that a claim reads no more than it takes.
Index(
    "ix_job_queue",
    *(job.c.state, job.c.model_name, job.c.model_version, job.c.priority.desc()),
)

tensor = Table(
    "tensor",
    metadata,
    Column("job_id", Integer, ForeignKey("job.id"), primary_key=True),
    *image_tensor(),
)

result = Table(
    "result",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("job_id", Integer, ForeignKey("job.id"), nullable=False),
    Column("run", Integer, nullable=False),
    study_key(),
    Column("model_name", String(128), nullable=False),
    # Of the weights that said it: its job may wait again for others. Never NULL, but SQLite adds
    # no column that says so.
    Column("model_identity", JSON(none_as_null=True)),
    Column("kind", String(16), nullable=False),
    Column("findings", JSON, nullable=False),
    # Regions and what is said of them; NULL where the model tells no places.
    Column("detection", JSON(none_as_null=True)),
    text("refusal_reason"),
    text("refusal_message"),
    Column("result_digest", SHA256, nullable=False),
    instant("analysis_started_at", required=True),
    instant("finished_at", required=True),
    instant("composed_at"),
    Column("version_number", Integer, nullable=False),
    Column("predecessor_result_id", Integer, ForeignKey("result.id")),
    Column("state", STATE, nullable=False),
    instant("state_since", required=True),
    text("reason"),
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
    text("method"),
    Column("layers", JSON, nullable=False),
    Column("region", JSON, nullable=False),
    Column("source_slices", Integer, nullable=False),
    # What the largest value stands for; the map holds 0 to 255 for 0 to it.
    Column("strength", Float, nullable=False),
    Column("shape", JSON, nullable=False),
    # uint8 in C order, compressed with zlib; empty when there is no map, and `reason` says why.
    Column("data", LargeBinary, nullable=False),
    text("reason"),
)

document = Table(
    "document",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("result_id", Integer, ForeignKey("result.id"), nullable=False),
    Column("role", String(8), nullable=False),
    Column("sop_class_uid", UID, nullable=False),
    Column("sop_instance_uid", UID, nullable=False, unique=True),
    Column("series_instance_uid", UID, nullable=False),
    Column("data", LargeBinary, nullable=False),
    instant("composed_at", required=True),
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
    Column("state", STATE, nullable=False),
    instant("state_since", required=True),
    count("attempts"),
    instant("next_attempt_at", required=True),
    Column("last_status", Integer),
    text("last_comment"),
    instant("created_at", required=True),
    instant("sent_at"),
    instant("confirmed_at"),
    count("confirm_misses"),
    instant("confirm_next_at"),
    UniqueConstraint("result_id", "role", "destination"),
    # In the order in which the courier sends and asks, so that a round reads no more than it takes.
    Index("ix_delivery_queue", "state", "destination", "attempts", "result_id"),
    Index("ix_delivery_unconfirmed", "state", "destination", "confirm_next_at", "sent_at"),
    sqlite_autoincrement=True,
)

destination_state = Table(
    "destination_state",
    metadata,
    Column("name", String(128), primary_key=True),
    instant("last_attempt_at"),
    instant("last_success_at"),
    text("last_answer"),
    Column("sr_sop_class_uid", UID),
    count("consecutive_failures"),
    instant("breaker_until"),
)

commitment = Table(
    "commitment",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("transaction_uid", UID, nullable=False),
    Column("calling_ae_title", String(16), nullable=False),
    Column("called_ae_title", String(16), nullable=False),
    Column("address", String(64), nullable=False),
    Column("association_id", String(64), nullable=False),
    # Pairs of SOP Class UID and SOP Instance UID.
    Column("references", JSON, nullable=False),
    # Its transaction UID was in use for other instances: nothing of it is committed to.
    Column("is_duplicate", Boolean(create_constraint=False), nullable=False),
    Column("state", STATE, nullable=False),
    instant("state_since", required=True),
    instant("requested_at", required=True),
    count("attempts"),
    count("refusals"),
    instant("next_attempt_at", required=True),
    text("last_answer"),
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
    Column("state", STATE, nullable=False),
    instant("state_since", required=True),
    # Of the package as it was when a person decided; another one under its version is not meant.
    Column("manifest_sha256", SHA256, nullable=False),
    Column("weights_sha256", SHA256, nullable=False),
    text("decided_by"),
    text("reason"),
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
    study_key(),
    Column("instance_set_digest", SHA256, nullable=False),
    *model_version(),
    Column("weights_sha256", SHA256, nullable=False),
    Column("preprocessing_digest", SHA256, nullable=False),
    Column("series_instance_uid", UID, nullable=False, default="", server_default=""),
    Column("sop_instance_uids", JSON, nullable=False),
    Column("state", STATE, nullable=False),
    instant("state_since", required=True),
    count("attempts"),
    instant("available_at", required=True),
    *lease(),
    Column("findings", JSON, nullable=False),
    text("reason"),
    instant("claimed_at", required=True),
    instant("finished_at"),
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
    *image_tensor(),
)

audit = Table(
    "audit",
    metadata,
    Column("id", Integer, primary_key=True),
    instant("at", required=True),
    Column("actor", String(64), nullable=False),
    Column("action", String(64), nullable=False),
    text("subject"),
    Column("detail", JSON, nullable=False),
    Index("ix_audit_subject", "subject"),
    sqlite_autoincrement=True,
)
