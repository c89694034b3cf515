"""Results: what the models said, once, in one chain of versions for each study and model.

Owns the ``result`` table; documents belong to ``storage.documents``, and a result's deliveries to
``storage.outbox``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from itertools import islice
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    RowMapping,
    Select,
    and_,
    exists,
    insert,
    select,
    update,
)

from dicom_io.errors import RefusalReason
from dicom_io.vocabulary import Detection, Finding, ModelIdentity
from storage import audit, schema
from storage.database import Database
from storage.documents import (
    ComposedDocument,
    DocumentRecord,
    documents_of_results_within,
    insert_document_within,
)
from storage.encoding import (
    canonical_digest,
    detection_from_json,
    detection_to_json,
    finding_from_json,
    findings_to_json,
    identity_from_json,
    identity_to_json,
)
from storage.errors import NotFound
from storage.states import RESULT_MOVES, Actor, DeliveryState, ResultState, check_move


class ResultKind(StrEnum):
    """What kind of statement a result is."""

    FINDING = "finding"
    REFUSAL = "refusal"
    """The model abstains, with a reason."""
    FAILURE = "failure"
    """The analysis was given up after repeated failure."""


@dataclass(frozen=True, slots=True)
class NewResult:
    """What is written when a job ends."""

    job_id: int
    run: int
    study_instance_uid: str
    model: ModelIdentity
    instance_set_digest: str
    preprocessing_digest: str
    kind: ResultKind
    findings: tuple[Finding, ...]
    refusal_reason: RefusalReason | None
    refusal_message: str
    analysis_started_at: datetime
    detection: Detection | None = None


@dataclass(frozen=True, slots=True)
class ResultRecord:
    """One result with what its job knows."""

    id: int
    job_id: int
    study_instance_uid: str
    series_instance_uid: str
    """Empty when no series could be chosen."""
    model: ModelIdentity
    """With the weights that said it, whatever its job has waited for since."""
    sop_instance_uids: tuple[str, ...]
    """The instances analysed, in slice order."""
    instance_set_digest: str
    preprocessing_digest: str
    kind: ResultKind
    findings: tuple[Finding, ...]
    detection: Detection | None
    """Where a detecting model marked what it found; None where nothing was said of places."""
    refusal_reason: RefusalReason | None
    """None for findings."""
    refusal_message: str
    result_digest: str
    """Over all that the statement depends on and nothing of time: goes into derived UIDs."""
    analysis_started_at: datetime
    finished_at: datetime
    composed_at: datetime | None
    version_number: int
    """1, 2, … per study and model name."""
    predecessor_result_id: int | None
    state: ResultState
    state_since: datetime
    reason: str


def write_result(connection: Connection, new: NewResult, now: datetime) -> int:
    """Insert a result with its place in the chain of versions, within the caller's transaction."""
    table = schema.result
    latest = connection.execute(
        select(table.c.id, table.c.version_number)
        .where(
            table.c.study_instance_uid == new.study_instance_uid,
            table.c.model_name == new.model.name,
        )
        .order_by(table.c.version_number.desc())
        .limit(1)
    ).first()
    known = None if latest is None else (latest.id, latest.version_number)
    inserted = connection.execute(insert(table).values(new_result_values(new, known, now)))
    assert inserted.inserted_primary_key is not None  # noqa: S101 - one row, integer key
    return int(inserted.inserted_primary_key[0])


def new_result_values(
    new: NewResult, latest: tuple[int, int] | None, now: datetime
) -> dict[str, Any]:
    """Return the columns of a new result.

    Parameters
    ----------
    new : NewResult
    latest : (id, version_number) or None
        Of the last result of the same study and model; None where this is the first.
    now : datetime
    """
    findings = findings_to_json(new.findings)
    return {
        "job_id": new.job_id,
        "run": new.run,
        "study_instance_uid": new.study_instance_uid,
        "model_name": new.model.name,
        "model_identity": identity_to_json(new.model),
        "kind": new.kind,
        "findings": findings,
        "detection": detection_to_json(new.detection),
        "refusal_reason": new.refusal_reason or "",
        "refusal_message": new.refusal_message,
        "result_digest": _digest(new, findings),
        "analysis_started_at": new.analysis_started_at,
        "finished_at": now,
        "version_number": 1 if latest is None else latest[1] + 1,
        "predecessor_result_id": None if latest is None else latest[0],
        "state": ResultState.AWAITING,
        "state_since": now,
    }


def _digest(new: NewResult, findings: list[dict[str, Any]]) -> str:
    stated: dict[str, object] = {
        "study_instance_uid": new.study_instance_uid,
        "model": identity_to_json(new.model),
        "instance_set_digest": new.instance_set_digest,
        "preprocessing_digest": new.preprocessing_digest,
        "kind": new.kind,
        "findings": findings,
        "refusal_reason": new.refusal_reason,
        "refusal_message": new.refusal_message,
    }
    if new.detection is not None:
        stated["detection"] = detection_to_json(new.detection)
    return canonical_digest(stated)


def _query() -> Select[Any]:
    result, job = schema.result, schema.job
    return select(
        result,
        job.c.series_instance_uid,
        job.c.sop_instance_uids,
        job.c.instance_set_digest,
        job.c.preprocessing_digest,
    ).select_from(result.join(job, job.c.id == result.c.job_id))


def result_from_row(row: RowMapping) -> ResultRecord:
    """Return the record of one result row joined with its job."""
    values: dict[str, Any] = dict(row)
    del values["model_name"], values["run"]
    values["model"] = identity_from_json(values.pop("model_identity"))
    values["sop_instance_uids"] = tuple(row["sop_instance_uids"])
    values["kind"] = ResultKind(row["kind"])
    values["findings"] = tuple(finding_from_json(each) for each in row["findings"])
    values["detection"] = detection_from_json(row["detection"])
    reason = row["refusal_reason"]
    values["refusal_reason"] = RefusalReason(reason) if reason else None
    values["state"] = ResultState(row["state"])
    return ResultRecord(**values)


def results_awaiting_composition(
    database: Database, *, besides: Container[int] = (), limit: int = 16
) -> tuple[ResultRecord, ...]:
    """Return results without documents, oldest first, so that predecessors are composed first.

    Parameters
    ----------
    database : Database
        The state.
    besides : container of int, optional
        Results that are left out, by id, and do not count towards `limit`.
    limit : int
        Results at most.
    """
    table = schema.result
    waiting = select(table.c.id).where(table.c.state == ResultState.AWAITING).order_by(table.c.id)
    with database.read() as connection:
        ids = (each for each in connection.scalars(waiting) if each not in besides)
        query = _query().where(table.c.id.in_(list(islice(ids, limit)))).order_by(table.c.id)
        return tuple(result_from_row(row) for row in connection.execute(query).mappings())


def get_result(database: Database, result_id: int) -> ResultRecord:
    """Return one result; ``NotFound`` when there is none."""
    with database.read() as connection:
        return _require(connection, result_id)


def _require(connection: Connection, result_id: int) -> ResultRecord:
    query = _query().where(schema.result.c.id == result_id)
    row = connection.execute(query).mappings().one_or_none()
    if row is None:
        raise NotFound(
            f"no result {result_id}: 'medimgd show STUDY' says the numbers of its results"
        )
    return result_from_row(row)


def results_of_study_within(
    connection: Connection, study_instance_uid: str
) -> tuple[ResultRecord, ...]:
    """Return every result of a study, oldest first."""
    table = schema.result
    query = _query().where(table.c.study_instance_uid == study_instance_uid).order_by(table.c.id)
    return tuple(result_from_row(row) for row in connection.execute(query).mappings())


def latest_results(
    database: Database, study_instance_uids: Iterable[str]
) -> Mapping[str, tuple[ResultRecord, ...]]:
    """Return the newest result of each model for each study, for one page of the worklist."""
    table = schema.result
    query = (
        _query()
        .where(table.c.study_instance_uid.in_(list(study_instance_uids)))
        .order_by(table.c.version_number)
    )
    newest: dict[str, dict[str, ResultRecord]] = defaultdict(dict)
    with database.read() as connection:
        for row in connection.execute(query).mappings():
            record = result_from_row(row)
            newest[record.study_instance_uid][record.model.name] = record
    return {uid: tuple(by_model.values()) for uid, by_model in newest.items()}


def predecessor_documents(database: Database, result: ResultRecord) -> tuple[DocumentRecord, ...]:
    """Return the documents of the nearest earlier version that has any; empty for the first.

    For Predecessor Documents Sequence (PS3.3 C.17.2.3).
    """
    table = schema.result
    earlier = (
        select(table.c.id)
        .where(
            table.c.study_instance_uid == result.study_instance_uid,
            table.c.model_name == result.model.name,
            table.c.version_number < result.version_number,
            table.c.state == ResultState.COMPOSED,
        )
        .order_by(table.c.version_number.desc())
        .limit(1)
    )
    with database.read() as connection:
        found = connection.scalar(earlier)
        return () if found is None else documents_of_results_within(connection, [found])


def replaces(later: FromClause, earlier: FromClause) -> ColumnElement[bool]:
    """Return the condition on two rows of ``result`` that one is to be read instead of the other.

    Only a version that was composed replaces an earlier one of its study and model. What is
    withheld or cannot be composed reaches nobody, and of what still waits for composition nobody
    knows which it will be; until then the earlier version is the last that has something to say,
    and the order of the outbox holds when both are sent.
    """
    return and_(
        later.c.study_instance_uid == earlier.c.study_instance_uid,
        later.c.model_name == earlier.c.model_name,
        later.c.version_number > earlier.c.version_number,
        later.c.state == ResultState.COMPOSED,
    )


def _replaced() -> ColumnElement[bool]:
    later = schema.result.alias()
    return exists().where(replaces(later, schema.result)).correlate(schema.result)


REPLACED = _replaced()
"""Of a row of ``result``: a later version is to be read instead, as `replaces` says."""


def has_later_documents(database: Database, result: ResultRecord) -> bool:
    """Return True when a later version of the same study and model was composed already."""
    table = schema.result
    query = select(table.c.id).where(
        table.c.study_instance_uid == result.study_instance_uid,
        table.c.model_name == result.model.name,
        table.c.version_number > result.version_number,
        table.c.state == ResultState.COMPOSED,
    )
    with database.read() as connection:
        return connection.execute(query.limit(1)).first() is not None


def store_documents(
    database: Database,
    result_id: int,
    documents: Sequence[ComposedDocument],
    destinations: Sequence[str],
    now: datetime,
) -> tuple[DocumentRecord, ...]:
    """Store what was composed, with one delivery per document and destination, all at once.

    A result is composed once: when it has documents already, those are returned and the given
    ones are dropped.
    """
    with database.write() as connection:
        result = _require(connection, result_id)
        if result.state is not ResultState.COMPOSED:
            _move(connection, result, ResultState.COMPOSED, Actor.COURIER, now, composed_at=now)
            for document in documents:
                document_id = insert_document_within(connection, result_id, document, now)
                insert_deliveries_within(
                    connection, result_id, document_id, document.role, destinations, now
                )
        return documents_of_results_within(connection, [result_id])


def insert_deliveries_within(
    connection: Connection,
    result_id: int,
    document_id: int,
    role: str,
    destinations: Sequence[str],
    now: datetime,
) -> None:
    """Insert one pending delivery of a document for each destination."""
    rows = [
        {
            "result_id": result_id,
            "document_id": document_id,
            "role": role,
            "destination": destination,
            "state": DeliveryState.PENDING,
            "state_since": now,
            "next_attempt_at": now,
            "created_at": now,
        }
        for destination in destinations
    ]
    if rows:
        connection.execute(insert(schema.delivery), rows)


def _move(
    connection: Connection,
    result: ResultRecord,
    after_state: ResultState,
    actor: Actor,
    now: datetime,
    **values: Any,
) -> None:
    state = check_move(RESULT_MOVES, f"result {result.id}", result.state, after_state, actor)
    connection.execute(
        update(schema.result)
        .where(schema.result.c.id == result.id)
        .values(state=state, state_since=now, **{"reason": "", **values})
    )


def withhold_result(database: Database, result_id: int, reason: str, now: datetime) -> None:
    """Note that this result is shown here and sent nowhere, by the site's choice."""
    with database.write() as connection:
        result = _require(connection, result_id)
        _move(connection, result, ResultState.WITHHELD, Actor.COURIER, now, reason=reason)


def mark_uncomposable(database: Database, result_id: int, reason: str, now: datetime) -> None:
    """Note that no valid object could be built; the result waits for a person."""
    with database.write() as connection:
        result = _require(connection, result_id)
        _move(connection, result, ResultState.UNCOMPOSABLE, Actor.COURIER, now, reason=reason)
        audit.append(
            connection,
            now,
            Actor.COURIER,
            "result uncomposable",
            result.study_instance_uid,
            result_id=result_id,
            reason=reason,
        )


def recompose_within(connection: Connection, result: ResultRecord, now: datetime) -> None:
    """Let a withheld or uncomposable result be composed again, for the operator."""
    _move(connection, result, ResultState.AWAITING, Actor.OPERATOR, now)
