"""The ordinary end of many jobs at once: findings recorded with a handful of statements.

Owns which jobs may end this way; whatever is out of the ordinary is left to ``storage.endings``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, delete, insert, select, update

from dicom_io.vocabulary import Detection, Explanation, Finding
from storage import schema
from storage.explanations import write_explanations
from storage.jobs import ClaimedJob, JobRecord, job_from_row, result_of
from storage.results import NewResult, ResultKind, new_result_values
from storage.standings import withdrawal_within
from storage.states import JOB_MOVES, Actor, JobState, check_move


@dataclass(frozen=True, slots=True)
class Analysed:
    """What the worker found for one claimed job."""

    job: ClaimedJob
    findings: tuple[Finding, ...]
    analysis_started_at: datetime
    explanations: tuple[Explanation, ...] = ()
    """Of findings that have one, or that should and cannot; see ``model.explain``."""
    detection: Detection | None = None
    """Where a detecting model marked what it found; see ``model.regions``."""


def plain_ones(
    connection: Connection, batch: Sequence[Analysed]
) -> Mapping[int, tuple[Analysed, JobRecord]]:
    """Return what can be recorded without a second look, by its place in the batch.

    A job is plain when the caller holds its lease, nothing of its study was ever said by this model
    before, no other job of the batch is about the same study, and the model was not retired.
    """
    records = _records(connection, [each.job.id for each in batch])
    spoken_for = _studies_with_results(connection, records.values())
    repeated = Counter(record.study_instance_uid for record in records.values())
    silenced = {
        (name, version)
        for name, version in {(each.model.name, each.model.version) for each in records.values()}
        if withdrawal_within(connection, name, version)
    }
    return {
        place: (each, record)
        for place, each in enumerate(batch)
        if _is_held(record := records[each.job.id], each.job)
        and (record.study_instance_uid, record.model.name) not in spoken_for
        and repeated[record.study_instance_uid] == 1
        and (record.model.name, record.model.version) not in silenced
    }


def _records(connection: Connection, ids: Sequence[int]) -> dict[int, JobRecord]:
    rows = connection.execute(select(schema.job).where(schema.job.c.id.in_(ids))).mappings()
    return {row["id"]: job_from_row(row) for row in rows}


def _studies_with_results(
    connection: Connection, records: Iterable[JobRecord]
) -> set[tuple[str, str]]:
    """Return studies, with the model's name, that have a result: theirs are a chain to join."""
    studies = {each.study_instance_uid for each in records}
    table = schema.result
    query = select(table.c.study_instance_uid, table.c.model_name)
    rows = connection.execute(query.where(table.c.study_instance_uid.in_(studies)))
    return {(study, name) for study, name in rows}


def _is_held(record: JobRecord, job: ClaimedJob) -> bool:
    mine = record.lease_owner == job.owner and record.run == job.run
    return mine and record.state is JobState.RUNNING


def finish_plain_ones(
    connection: Connection, plain: Collection[tuple[Analysed, JobRecord]], now: datetime
) -> None:
    """Record findings: jobs ``done``, their tensors gone, and a first result for each."""
    if not plain:
        return
    for _, record in plain:
        check_move(JOB_MOVES, f"job {record.id}", record.state, JobState.DONE, Actor.WORKER)
    ids = [record.id for _, record in plain]
    table, result = schema.job, schema.result
    connection.execute(
        update(table)
        .where(table.c.id.in_(ids))
        .values(
            state=JobState.DONE, state_since=now, finished_at=now, reason="",
            lease_owner=None, lease_until=None,
        )
    )  # fmt: skip
    connection.execute(delete(schema.tensor).where(schema.tensor.c.job_id.in_(ids)))
    news = [_new_result(each, record) for each, record in plain]
    connection.execute(insert(result), [new_result_values(new, None, now) for new in news])
    explained = {each.job.id: each.explanations for each, _ in plain if each.explanations}
    if explained:
        query = select(result.c.job_id, result.c.id).where(result.c.job_id.in_(explained))
        for job_id, result_id in connection.execute(query).all():
            write_explanations(connection, result_id, explained[job_id])


def _new_result(each: Analysed, record: JobRecord) -> NewResult:
    return result_of(
        record,
        ResultKind.FINDING,
        each.analysis_started_at,
        findings=each.findings,
        detection=each.detection,
    )
