"""Waits for an instant that a clock set back made longer than anybody meant: they end now.

Owns which columns hold the instants that work waits for, and how far ahead of now each may lie.
What lies further ahead was written by a clock that was set back since: without this an analysis, a
report or a dead process's lease would wait until the clock has caught up. Of studies under
reception ``storage.completion`` says the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Column, ColumnElement, Table, and_, select, update

from storage import schema
from storage.clock import after
from storage.confirmation import LONGEST_ASK_AGAIN_SECONDS
from storage.database import Database
from storage.states import CommitmentState, DeliveryState, JobState, ShadowState, StudyState

LONGEST_PAUSE_SECONDS = 360.0
"""Before something is tried again: five minutes at most, lengthened by a fifth at random."""
JITTERED = 1.2
"""By how much a delay between two attempts of a delivery is lengthened at most."""
TOLERANCE_SECONDS = 60.0
"""Other processes read the clock a moment after us, and those of other hosts another clock."""


@dataclass(frozen=True, slots=True)
class ConfiguredWaits:
    """The longest waits that the site decides about."""

    study_lease_seconds: float
    job_lease_seconds: float
    delivery_seconds: float
    """Between two attempts of one delivery."""


@dataclass(frozen=True, slots=True)
class _Wait:
    """One column of instants that are waited for."""

    table: Table
    column: Column[datetime]
    longest_seconds: float
    in_state: str = ""
    """Rows of other states wait for nothing; empty where there are no states."""
    is_lease: bool = False
    """Its holder may live: it keeps as much time as a new lease has."""

    def is_too_long(self, now: datetime) -> ColumnElement[bool]:
        too_far = self.column > after(now, self.longest_seconds + TOLERANCE_SECONDS)
        return and_(self.table.c.state == self.in_state, too_far) if self.in_state else too_far

    def end(self, now: datetime) -> datetime:
        return after(now, self.longest_seconds if self.is_lease else 0.0)


def end_impossible_waits(database: Database, now: datetime, configured: ConfiguredWaits) -> int:
    """Move what lies further ahead than anything may be waited for to where it should be.

    Returns
    -------
    int
        How many waits ended; 0, without the lock for writing, unless the clock was set back.
    """
    waits = tuple(_waits(configured))
    with database.read() as connection:
        found = [
            wait
            for wait in waits
            if connection.execute(select(wait.column).where(wait.is_too_long(now)).limit(1)).first()
        ]
    if not found:
        return 0
    with database.write() as connection:
        return sum(
            connection.execute(
                update(wait.table).where(wait.is_too_long(now)).values({wait.column: wait.end(now)})
            ).rowcount
            for wait in found
        )


def _waits(configured: ConfiguredWaits) -> Iterator[_Wait]:
    study, job, run = schema.study, schema.job, schema.shadow_run
    delivery, commitment = schema.delivery, schema.commitment
    pause, asked_again = LONGEST_PAUSE_SECONDS, LONGEST_ASK_AGAIN_SECONDS
    study_lease, job_lease = configured.study_lease_seconds, configured.job_lease_seconds
    attempt = configured.delivery_seconds * JITTERED
    yield _Wait(study, study.c.lease_until, study_lease, StudyState.COMPLETE, is_lease=True)
    yield _Wait(job, job.c.lease_until, job_lease, JobState.RUNNING, is_lease=True)
    yield _Wait(job, job.c.available_at, pause, JobState.WAITING)
    yield _Wait(run, run.c.lease_until, study_lease, ShadowState.PREPARING, is_lease=True)
    yield _Wait(run, run.c.lease_until, job_lease, ShadowState.RUNNING, is_lease=True)
    yield _Wait(run, run.c.available_at, pause, ShadowState.WAITING)
    yield _Wait(delivery, delivery.c.next_attempt_at, attempt, DeliveryState.PENDING)
    yield _Wait(delivery, delivery.c.confirm_next_at, asked_again, DeliveryState.SENT)
    yield _Wait(commitment, commitment.c.next_attempt_at, pause, CommitmentState.PENDING)
    yield _Wait(schema.destination_state, schema.destination_state.c.breaker_until, pause)
