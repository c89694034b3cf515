"""Studies that wait for a person, by what they wait over, for retrying many of them at once.

Owns that reading. What a retry then does to each is ``storage.retry``'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from sqlalchemy import ColumnElement, FromClause, Select, Table, func, select

from storage import schema
from storage.database import Database
from storage.deliveries import UNDELIVERED
from storage.states import JobState, ResultState, StudyState


class WaitsForPerson(StrEnum):
    """Over what a study waits for a person."""

    HELD = "held"
    """The deadline says so, or its preparation failed too often."""
    UNMATCHED = "unmatched"
    """No model read it when it was prepared."""
    REFUSED = "refused"
    """Models matched, and at least one would not or could not analyse what was sent."""
    FAILED = "failed"
    """An analysis failed for good, or its result cannot be composed."""
    UNDELIVERED = "undelivered"
    """A destination rejected a result, lost it, or did not answer for too long."""


@dataclass(frozen=True, slots=True)
class StuckStudy:
    """One study that waits for a person."""

    study_instance_uid: str
    since: datetime
    """For how long, counted from what happened last."""
    reason: str
    """In the words of the state; empty where it has none."""


_STUDY, _JOB, _RESULT, _DELIVERY = schema.study, schema.job, schema.result, schema.delivery
_DOCUMENT = schema.document

_WHERE: Mapping[WaitsForPerson, tuple[tuple[Table, ColumnElement[bool]], ...]] = MappingProxyType(
    {
        WaitsForPerson.HELD: ((_STUDY, _STUDY.c.state == StudyState.HELD),),
        WaitsForPerson.UNMATCHED: ((_STUDY, _STUDY.c.state == StudyState.UNMATCHED),),
        WaitsForPerson.REFUSED: (
            (_STUDY, _STUDY.c.state == StudyState.REFUSED),
            (_JOB, _JOB.c.state == JobState.REFUSED),
        ),
        WaitsForPerson.FAILED: (
            (_JOB, _JOB.c.state == JobState.FAILED),
            (_RESULT, _RESULT.c.state == ResultState.UNCOMPOSABLE),
        ),
        WaitsForPerson.UNDELIVERED: ((_DELIVERY, UNDELIVERED),),
    }
)


def stuck_studies(
    database: Database, waits: WaitsForPerson, *, since: datetime | None = None
) -> tuple[StuckStudy, ...]:
    """Return the studies that wait over something, the longest waiting first.

    Studies whose images retention removed are left out, for nothing of them can be repeated; but
    what did not arrive and was kept can still be sent.

    Parameters
    ----------
    database : Database
        The state.
    waits : WaitsForPerson
        Over what.
    since : datetime, optional
        Only what came to wait at this instant or later.
    """
    found: dict[str, StuckStudy] = {}
    with database.read() as connection:
        for table, condition in _WHERE[waits]:
            query = _studies_of(table).where(condition, _can_be_repeated(table))
            if since is not None:
                query = query.where(table.c.state_since >= since)
            for uid, at, reason in connection.execute(query.order_by(table.c.state_since)):
                known = found.get(uid)
                if known is None or known.since <= at:
                    found[uid] = StuckStudy(uid, at, reason)
    return tuple(sorted(found.values(), key=lambda each: (each.since, each.study_instance_uid)))


def _can_be_repeated(table: Table) -> ColumnElement[bool]:
    """Return the condition that what a retry needs is still here: the images, or the document."""
    if table is _DELIVERY:
        return func.length(_DOCUMENT.c.data) > 0
    return _STUDY.c.purged_at.is_(None)


def _studies_of(table: Table) -> Select[Any]:
    """Return the query for study, instant and reason of the rows of a table."""
    if table is _STUDY:
        return select(_STUDY.c.study_instance_uid, _STUDY.c.state_since, _STUDY.c.reason)
    own = table
    rows: FromClause = table
    reason = table.c.last_comment if table is _DELIVERY else table.c.reason
    if table is _DELIVERY:
        own = _RESULT
        rows = table.join(_RESULT, _RESULT.c.id == table.c.result_id).join(
            _DOCUMENT, _DOCUMENT.c.id == table.c.document_id
        )
    return select(_STUDY.c.study_instance_uid, table.c.state_since, reason).select_from(
        rows.join(_STUDY, _STUDY.c.study_instance_uid == own.c.study_instance_uid)
    )
