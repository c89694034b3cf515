"""When a study is complete: by quiet, by a known count, or by a deadline with a named action.

Owns the judgement, a pure function, and its evidence; knows nothing of what follows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Select, func, select, update

from storage import audit, schema
from storage.clock import after
from storage.database import Database
from storage.states import STUDY_MOVES, Actor, StudyState, check_move
from storage.studies import instance_set_digest, require_images, require_study

DEFAULT_QUIET_SECONDS = 30.0
"""Senders pause between series for seconds, rarely for half a minute."""

DEFAULT_DEADLINE_SECONDS = 1800.0
"""An association that stays open without end must not hold a study for ever."""

CLOCK_TOLERANCE_SECONDS = 5.0
"""Another process may have read the clock a moment after us; later instants are no instants."""


class DeadlineAction(StrEnum):
    """What the deadline does with a study that never became quiet."""

    ANALYSE = "analyse"
    HOLD = "hold"


@dataclass(frozen=True, slots=True)
class CompletionRules:
    """When to stop waiting."""

    quiet_seconds: float = DEFAULT_QUIET_SECONDS
    quiet_seconds_by_modality: Mapping[str, float] = field(default_factory=dict)
    """Overrides; of a study's modalities the most patient one counts."""
    deadline_seconds: float = DEFAULT_DEADLINE_SECONDS
    """Since the study began to be received, or received again."""
    deadline_action: DeadlineAction = DeadlineAction.ANALYSE

    def quiet_for(self, modalities: tuple[str, ...]) -> float:
        """Return the quiet time for a study of these modalities."""
        overrides = [
            self.quiet_seconds_by_modality[modality]
            for modality in modalities
            if modality in self.quiet_seconds_by_modality
        ]
        return max(overrides, default=self.quiet_seconds)


@dataclass(frozen=True, slots=True)
class ReceivingStudy:
    """What the judgement rests on."""

    study_instance_uid: str
    modalities: tuple[str, ...]
    instance_count: int
    expected_instances: int | None
    receiving_since: datetime
    last_instance_at: datetime
    open_associations: int
    """Open ones that brought an instance of this study."""
    hold_reason: str = ""
    """Why a person has to look before it is analysed; empty when nobody has to."""


class Verdict(StrEnum):
    """What is to be done with a study under reception."""

    WAIT = "wait"
    COMPLETE = "complete"
    HOLD = "hold"


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdict, a sentence for people, and the evidence as it is stored."""

    study_instance_uid: str
    verdict: Verdict
    reason: str
    evidence: Mapping[str, Any]
    due_at: datetime
    """When the verdict can change by time alone."""


def judge(study: ReceivingStudy, rules: CompletionRules, now: datetime) -> Judgement:
    """Decide whether to wait longer for a study; a pure function of its arguments."""
    quiet_needed = rules.quiet_for(study.modalities)
    quiet = max((now - study.last_instance_at).total_seconds(), 0.0)
    quiet_at = after(study.last_instance_at, quiet_needed)
    deadline_at = after(study.receiving_since, rules.deadline_seconds)
    verdict, reason, due_at = Verdict.WAIT, "", deadline_at
    if study.expected_instances and study.instance_count >= study.expected_instances:
        verdict = Verdict.COMPLETE
        reason = f"{study.instance_count} of {study.expected_instances} expected instances arrived"
    elif study.open_associations == 0 and quiet >= quiet_needed:
        verdict = Verdict.COMPLETE
        reason = f"quiet for {quiet:.0f} s with no open association (needed {quiet_needed:g} s)"
    elif now >= deadline_at:
        analyse = rules.deadline_action is DeadlineAction.ANALYSE
        verdict = Verdict.COMPLETE if analyse else Verdict.HOLD
        reason = f"deadline of {rules.deadline_seconds:g} s passed: {rules.deadline_action}"
    elif study.open_associations:
        reason = f"{study.open_associations} open association(s) still bring instances"
    else:
        reason = f"quiet for {quiet:.0f} of {quiet_needed:g} s"
        due_at = min(quiet_at, deadline_at)
    if verdict is Verdict.COMPLETE and study.hold_reason:
        verdict, reason = Verdict.HOLD, study.hold_reason
    evidence = {
        "reason": reason,
        "quiet_seconds": round(quiet, 3),
        "quiet_seconds_needed": quiet_needed,
        "open_associations": study.open_associations,
        "instances": study.instance_count,
        "expected_instances": study.expected_instances,
        "receiving_since": study.receiving_since.isoformat(),
        "judged_at": now.isoformat(),
    }
    return Judgement(study.study_instance_uid, verdict, reason, evidence, due_at)


def _receiving_query() -> Select[Any]:
    study, link, assoc = schema.study, schema.association_study, schema.association
    open_count = (
        select(func.count())
        .select_from(link.join(assoc, assoc.c.id == link.c.association_id))
        .where(link.c.study_instance_uid == study.c.study_instance_uid, assoc.c.closed_at.is_(None))
        .scalar_subquery()
    )
    return select(study, open_count.label("open_associations")).where(
        study.c.state == StudyState.RECEIVING
    )


def _receiving(connection: Connection) -> list[ReceivingStudy]:
    return [
        ReceivingStudy(
            row.study_instance_uid,
            tuple(row.modalities),
            row.instance_count,
            row.expected_instances,
            row.state_since,
            row.last_instance_at,
            row.open_associations,
            hold_reason(row.instance_count, row.patient_mismatch_count, row.purged_instance_count),
        )
        for row in connection.execute(_receiving_query())
    ]


MORE_THAN_ONE_PATIENT = (
    "instances of more than one patient (PatientID differs) under one Study Instance UID: "
    "correct the patient in the archive, then retry"
)


FEWER_THAN_BEFORE = (
    "images came after retention removed the earlier ones: send the whole study again, then retry"
)


NOTHING_BUT_CONFLICTS = (
    "nothing is known but instances that contradict a stored one, whose own file is lost or "
    "damaged: check the disk, move that file away, and send the study again"
)


def hold_reason(
    instance_count: int, patient_mismatch_count: int, purged_instance_count: int | None
) -> str:
    """Return why a study must not be analysed before a person has looked; empty when it may.

    Parameters
    ----------
    instance_count, patient_mismatch_count : int
        As the study has them.
    purged_instance_count : int or None
        How many it had when retention removed them: a report on fewer must not take the place
        of the one on all.
    """
    reasons = []
    if instance_count == 0:
        reasons.append(NOTHING_BUT_CONFLICTS)
    if patient_mismatch_count:
        reasons.append(MORE_THAN_ONE_PATIENT)
    if purged_instance_count is not None and instance_count < purged_instance_count:
        reasons.append(FEWER_THAN_BEFORE)
    return "; ".join(reasons)


def judge_receiving(
    database: Database, rules: CompletionRules, now: datetime
) -> tuple[Judgement, ...]:
    """Judge every study under reception and change nothing; shows why each still waits."""
    with database.read() as connection:
        return tuple(judge(study, rules, now) for study in _receiving(connection))


def complete_due_studies(
    database: Database, rules: CompletionRules, now: datetime
) -> tuple[Judgement, ...]:
    """Complete or hold every study whose waiting is over, with the evidence.

    Instants that lie in the future, because the clock was set back, are moved to `now`: such a
    study waits its quiet time from here, not until the clock has caught up.

    Returns
    -------
    tuple of Judgement
        Those that were moved.
    """
    with database.read() as connection:
        receiving = _receiving(connection)
    waits = all(judge(study, rules, now).verdict is Verdict.WAIT for study in receiving)
    if waits and not any(_is_ahead(study, now) for study in receiving):
        return ()  # the usual second: nobody else's write has to wait for us
    with database.write() as connection:
        # Judged again under the write lock: an instance may have come in between.
        for study in _receiving(connection):
            if _is_ahead(study, now):
                since = min(study.receiving_since, now)
                _set_clock(connection, study, min(study.last_instance_at, now), since)
        judged = [judge(study, rules, now) for study in _receiving(connection)]
        due = tuple(one for one in judged if one.verdict is not Verdict.WAIT)
        for one in due:
            _apply(connection, one, now)
    return due


def put_forward(database: Database, seconds: float, now: datetime) -> int:
    """Move the instants of studies under reception by what the clock was set forward.

    Nothing came in those seconds and nobody waited: without this a study would be quiet for as
    long, or past its deadline, while its sender still sends.

    Returns
    -------
    int
        How many studies there are.
    """
    with database.write() as connection:
        receiving = _receiving(connection)
        for study in receiving:
            _set_clock(
                connection,
                study,
                min(after(study.last_instance_at, seconds), now),
                min(after(study.receiving_since, seconds), now),
            )
    return len(receiving)


def _is_ahead(study: ReceivingStudy, now: datetime) -> bool:
    latest = max(study.last_instance_at, study.receiving_since)
    return latest > after(now, CLOCK_TOLERANCE_SECONDS)


def _set_clock(
    connection: Connection, study: ReceivingStudy, last_instance_at: datetime, since: datetime
) -> None:
    connection.execute(
        update(schema.study)
        .where(schema.study.c.study_instance_uid == study.study_instance_uid)
        .values(last_instance_at=last_instance_at, state_since=since)
    )


def _apply(connection: Connection, judgement: Judgement, now: datetime) -> None:
    if judgement.verdict is Verdict.COMPLETE:
        complete_within(
            connection,
            judgement.study_instance_uid,
            judgement.evidence,
            actor=Actor.SCHEDULER,
            now=now,
        )
        return
    uid = judgement.study_instance_uid
    state = check_move(STUDY_MOVES, uid, StudyState.RECEIVING, StudyState.HELD, Actor.SCHEDULER)
    connection.execute(
        update(schema.study)
        .where(schema.study.c.study_instance_uid == uid)
        .values(
            state=state,
            state_since=now,
            reason=judgement.reason,
            completion_evidence=dict(judgement.evidence),
        )
    )
    audit.append(connection, now, Actor.SCHEDULER, "study held", uid, reason=judgement.reason)


def complete_within(
    connection: Connection,
    study_instance_uid: str,
    evidence: Mapping[str, Any],
    *,
    actor: Actor,
    now: datetime,
) -> None:
    """Move a study to ``complete`` within the caller's transaction, with its digest.

    What ``hold_reason`` says against it is for the operator to override; the audit keeps that.
    ``ImagesRemoved`` or ``ImagesLost`` when nothing is left to analyse.
    """
    study = require_study(connection, study_instance_uid)
    state = check_move(STUDY_MOVES, study_instance_uid, study.state, StudyState.COMPLETE, actor)
    require_images(study)
    against = hold_reason(
        study.instance_count, study.patient_mismatch_count, study.purged_instance_count
    )
    if against:
        audit.append(connection, now, actor, "hold overridden", study_instance_uid, reason=against)
    table = schema.instance
    pairs = connection.execute(
        select(table.c.sop_instance_uid, table.c.content_digest).where(
            table.c.study_instance_uid == study_instance_uid
        )
    )
    connection.execute(
        update(schema.study)
        .where(schema.study.c.study_instance_uid == study_instance_uid)
        .values(
            state=state,
            state_since=now,
            reason=str(evidence.get("reason", "")),
            completed_at=now,
            prepared_at=None,
            completion_evidence=dict(evidence),
            instance_set_digest=instance_set_digest(
                (row.sop_instance_uid, row.content_digest) for row in pairs
            ),
            attempts=0,
            put_off_since=None,
            lease_owner=None,
            lease_until=None,
        )
    )


def complete_now(database: Database, study_instance_uid: str, now: datetime) -> None:
    """Stop waiting for a study, or prepare it again, because the operator says so.

    Raises
    ------
    NotFound, IllegalMove
        No such study, or it is complete already.
    ImagesRemoved, ImagesLost
        Retention, or a disk, has left nothing to analyse.
    """
    evidence = {"reason": "completed by the operator", "judged_at": now.isoformat()}
    with database.write() as connection:
        complete_within(connection, study_instance_uid, evidence, actor=Actor.OPERATOR, now=now)
        audit.append(connection, now, Actor.OPERATOR, "complete now", study_instance_uid)
