"""The ordinary end of many jobs at once: findings recorded with a handful of statements.

Owns which jobs may end this way; whatever is out of the ordinary is left to ``storage.endings``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, RowMapping, bindparam, delete, insert, select, update

from dicom_io.vocabulary import Detection, Explanation, Finding
from storage import schema
from storage.explanations import write_explanations
from storage.jobs import ClaimedJob
from storage.prepared import among, as_list
from storage.results import NewResult, ResultKind, new_result_values
from storage.standings import withdrawal_within
from storage.states import JOB_MOVES, Actor, JobState, check_move

_JOB, _TENSOR, _RESULT = schema.job, schema.tensor, schema.result

_HELD = select(
    _JOB.c.id,
    _JOB.c.state,
    _JOB.c.lease_owner,
    _JOB.c.run,
    _JOB.c.study_instance_uid,
    _JOB.c.instance_set_digest,
    _JOB.c.preprocessing_digest,
).where(among(_JOB.c.id, "ids"))
_SPOKEN_FOR = select(_RESULT.c.study_instance_uid, _RESULT.c.model_name).where(
    among(_RESULT.c.study_instance_uid, "studies")
)
_END = (
    update(_JOB)
    .where(among(_JOB.c.id, "ids"))
    .values(
        state=JobState.DONE, state_since=bindparam("now"), finished_at=bindparam("now"),
        reason="", lease_owner=None, lease_until=None,
    )
)  # fmt: skip
_DROP_TENSORS = delete(_TENSOR).where(among(_TENSOR.c.job_id, "ids"))
_RECORD = insert(_RESULT)
_RECORDED = select(_RESULT.c.job_id, _RESULT.c.id).where(among(_RESULT.c.job_id, "ids"))


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
) -> Mapping[int, tuple[Analysed, RowMapping]]:
    """Return what can be recorded without a second look, by its place in the batch.

    A job is plain when the caller holds its lease, nothing of its study was ever said by this model
    before, nothing else of the batch is about the same study, and the model was not retired.
    """
    rows = _records(connection, [each.job.id for each in batch])
    # By places, not by jobs: one that was taken back and claimed again may have two.
    studies = Counter(rows[each.job.id]["study_instance_uid"] for each in batch)
    spoken_for = _studies_with_results(connection, studies)
    silenced = {
        (name, version)
        for name, version in {(each.job.model.name, each.job.model.version) for each in batch}
        if withdrawal_within(connection, name, version)
    }
    return {
        place: (each, row)
        for place, each in enumerate(batch)
        if _is_held(row := rows[each.job.id], each.job)
        and (row["study_instance_uid"], each.job.model.name) not in spoken_for
        and studies[row["study_instance_uid"]] == 1
        and (each.job.model.name, each.job.model.version) not in silenced
    }


def _records(connection: Connection, ids: Sequence[int]) -> dict[int, RowMapping]:
    rows = connection.execute(_HELD, {"ids": as_list(ids)}).mappings()
    return {row["id"]: row for row in rows}


def _studies_with_results(connection: Connection, studies: Iterable[str]) -> set[tuple[str, str]]:
    """Return studies, with the model's name, that have a result: theirs are a chain to join."""
    rows = connection.execute(_SPOKEN_FOR, {"studies": as_list(studies)})
    return {(study, name) for study, name in rows}


def _is_held(row: RowMapping, job: ClaimedJob) -> bool:
    mine = row["lease_owner"] == job.owner and row["run"] == job.run
    return bool(mine and row["state"] == JobState.RUNNING)


def finish_plain_ones(
    connection: Connection, plain: Collection[tuple[Analysed, RowMapping]], now: datetime
) -> None:
    """Record findings: jobs ``done``, their tensors gone, and a first result for each."""
    if not plain:
        return
    ids = as_list(row["id"] for _, row in plain)
    check_move(JOB_MOVES, "a running job", JobState.RUNNING, JobState.DONE, Actor.WORKER)
    connection.execute(_END, {"ids": ids, "now": now})
    connection.execute(_DROP_TENSORS, {"ids": ids})
    news = [_new_result(each, row) for each, row in plain]
    connection.execute(_RECORD, [new_result_values(new, None, now) for new in news])
    explained = {each.job.id: each.explanations for each, _ in plain if each.explanations}
    if explained:
        recorded = connection.execute(_RECORDED, {"ids": as_list(explained)})
        for job_id, result_id in recorded.all():
            write_explanations(connection, result_id, explained[job_id])


def _new_result(each: Analysed, row: RowMapping) -> NewResult:
    return NewResult(
        job_id=row["id"],
        run=row["run"],
        study_instance_uid=row["study_instance_uid"],
        model=each.job.model,
        instance_set_digest=row["instance_set_digest"],
        preprocessing_digest=row["preprocessing_digest"],
        kind=ResultKind.FINDING,
        findings=each.findings,
        detection=each.detection,
        refusal_reason=None,
        refusal_message="",
        analysis_started_at=each.analysis_started_at,
    )
