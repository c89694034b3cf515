"""What two versions of a model said about the same images, wherever they said it.

Owns the reading of results and of shadows' runs side by side, by version. Computes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType

from sqlalchemy import Connection, select

from dicom_io.vocabulary import Finding
from storage import schema
from storage.database import Database
from storage.encoding import finding_from_json
from storage.results import ResultKind
from storage.states import ShadowState


class AnswerKind(StrEnum):
    """How a version answered."""

    FINDING = "finding"
    REFUSED = "refused"
    FAILED = "failed"
    UNMATCHED = "unmatched"
    """It does not read the study; known of shadows only, others are not asked about it."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one version said about one set of images."""

    kind: AnswerKind
    findings: tuple[Finding, ...]
    at: datetime
    in_shadow: bool


Sight = tuple[str, str]
"""Study Instance UID and digest of the instance set: what was looked at."""

_KIND_OF_RESULT = MappingProxyType(
    {
        ResultKind.FINDING: AnswerKind.FINDING,
        ResultKind.REFUSAL: AnswerKind.REFUSED,
        ResultKind.FAILURE: AnswerKind.FAILED,
    }
)
_KIND_OF_RUN = MappingProxyType(
    {
        ShadowState.DONE: AnswerKind.FINDING,
        ShadowState.REFUSED: AnswerKind.REFUSED,
        ShadowState.FAILED: AnswerKind.FAILED,
        ShadowState.UNMATCHED: AnswerKind.UNMATCHED,
    }
)


def answers_of(
    database: Database, model_name: str, model_version: str, *, since: datetime | None = None
) -> Mapping[Sight, Answer]:
    """Return the latest answer of a version about each set of images, as result or as shadow.

    Parameters
    ----------
    database : Database
        Read only will do.
    model_name, model_version : str
        The version.
    since : datetime, optional
        Answers before are left out.
    """
    with database.read() as connection:
        found = [
            *_of_results(connection, model_name, model_version),
            *_of_runs(connection, model_name, model_version),
        ]
    found.sort(key=lambda pair: pair[1].at)
    return {sight: answer for sight, answer in found if since is None or answer.at >= since}


def answering_versions(database: Database) -> frozenset[tuple[str, str]]:
    """Return name and version of every model that was ever asked about a study, shadows too."""
    with database.read() as connection:
        return frozenset(
            (row.model_name, row.model_version)
            for table in (schema.job, schema.shadow_run)
            for row in connection.execute(
                select(table.c.model_name, table.c.model_version).distinct()
            )
        )


def _of_results(connection: Connection, name: str, version: str) -> list[tuple[Sight, Answer]]:
    result, job = schema.result, schema.job
    query = (
        select(
            result.c.study_instance_uid,
            job.c.instance_set_digest,
            result.c.kind,
            result.c.findings,
            result.c.finished_at,
        )
        .join(job, job.c.id == result.c.job_id)
        .where(job.c.model_name == name, job.c.model_version == version)
        .order_by(result.c.id)
    )
    return [
        (
            (row.study_instance_uid, row.instance_set_digest),
            Answer(
                _KIND_OF_RESULT[ResultKind(row.kind)],
                tuple(finding_from_json(each) for each in row.findings),
                row.finished_at,
                in_shadow=False,
            ),
        )
        for row in connection.execute(query)
    ]


def _of_runs(connection: Connection, name: str, version: str) -> list[tuple[Sight, Answer]]:
    run = schema.shadow_run
    query = (
        select(run)
        .where(
            run.c.model_name == name,
            run.c.model_version == version,
            run.c.state.in_(list(_KIND_OF_RUN)),
        )
        .order_by(run.c.id)
    )
    return [
        (
            (row.study_instance_uid, row.instance_set_digest),
            Answer(
                _KIND_OF_RUN[ShadowState(row.state)],
                tuple(finding_from_json(each) for each in row.findings),
                row.finished_at,
                in_shadow=True,
            ),
        )
        for row in connection.execute(query)
    ]
