"""What this site decided about each version of a model: admitted, shadow, superseded, retired.

Owns the ``model_standing`` table and every move in it, each with its line in the audit trail.
Knows packages by name, version and digests only; whether a version may be admitted is judged
elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import (
    ColumnElement,
    Connection,
    RowMapping,
    and_,
    bindparam,
    insert,
    or_,
    select,
    update,
)

from dicom_io.errors import RefusalReason
from storage import audit, schema
from storage.database import Database
from storage.errors import IllegalMove
from storage.jobs import JobRecord, drop_tensor, job_from_row, move_job, result_of
from storage.precedence import overtaken_within, supersede_overtaken_within
from storage.results import ResultKind, write_result
from storage.shadow_runs import drop_runs_within
from storage.states import MODEL_MOVES, Actor, JobState, ModelState, check_move

_TABLE = schema.model_standing
_RETIRED = select(_TABLE).where(
    _TABLE.c.name == bindparam("of"),
    _TABLE.c.version == bindparam("at"),
    _TABLE.c.state == ModelState.RETIRED,
)


@dataclass(frozen=True, slots=True)
class VersionDigests:
    """One version of a model, exactly as a person looked at it."""

    name: str
    version: str
    manifest_sha256: str
    """Covers everything: the manifest names the digests of weights, evaluation and probes."""
    weights_sha256: str

    @property
    def at_version(self) -> str:
        """``name@version``."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True)
class Decision:
    """Who decided, when and why."""

    at: datetime
    by: str
    """The person or account, as the command line knows it."""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where one version stands."""

    name: str
    version: str
    state: ModelState
    state_since: datetime
    manifest_sha256: str
    weights_sha256: str
    decided_by: str
    reason: str

    @property
    def at_version(self) -> str:
        """``name@version``."""
        return f"{self.name}@{self.version}"

    @property
    def digests(self) -> VersionDigests:
        """What was decided about."""
        return VersionDigests(self.name, self.version, self.manifest_sha256, self.weights_sha256)


@dataclass(frozen=True, slots=True)
class Moved:
    """What a decision changed."""

    standing: Standing
    superseded: tuple[str, ...] = ()
    """``name@version`` of what served before."""
    refused_job_ids: tuple[int, ...] = ()
    """Analyses that waited for a version which is retired now."""
    dropped_runs: int = 0
    """Runs of a shadow that ended, which were not made."""


def list_standings(database: Database) -> tuple[Standing, ...]:
    """Return every version that a person decided about, by name and version."""
    query = select(_TABLE).order_by(_TABLE.c.name, _TABLE.c.version)
    with database.read() as connection:
        return tuple(_standing(row) for row in connection.execute(query).mappings())


def admit_version(
    database: Database,
    version: VersionDigests,
    decision: Decision,
    *,
    in_place_of: Iterable[VersionDigests] = (),
    findings: Iterable[str] = (),
) -> Moved:
    """Let a version serve; what served under its name before is superseded.

    Parameters
    ----------
    database : Database
        The state.
    version : VersionDigests
        What is admitted.
    decision : Decision
        Who, when, why.
    in_place_of : iterable of VersionDigests
        Versions of the same name that serve without ever having been admitted.
    findings : iterable of str
        What the check before admission found, for the audit trail.

    Raises
    ------
    IllegalMove
        It is admitted already.
    """
    with database.write() as connection:
        before = _state(connection, version)
        others = {each.at_version: each for each in _admitted_others(connection, version)}
        others |= {each.at_version: each for each in in_place_of if each.version != version.version}
        said = Decision(decision.at, decision.by, f"{version.at_version} was admitted")
        for other in others.values():
            _move(connection, other, ModelState.SUPERSEDED, said)
        standing = _move(connection, version, ModelState.ADMITTED, decision)
        dropped = _end_shadow(connection, version, before, decision.at)
        _write(connection, decision, "model admitted", version,
               was=before, superseded=list(others), findings=list(findings))  # fmt: skip
        return Moved(standing, tuple(others), dropped_runs=dropped)


def retire_version(database: Database, version: VersionDigests, decision: Decision) -> Moved:
    """Silence a version until it is admitted again; what waits for it is refused, with reason.

    What a worker computes at this moment is refused when it ends.

    Raises
    ------
    IllegalMove
        It is retired already.
    """
    with database.write() as connection:
        before = _state(connection, version)
        standing = _move(connection, version, ModelState.RETIRED, decision)
        dropped = _end_shadow(connection, version, before, decision.at)
        refused = _refuse_waiting(connection, Actor.OPERATOR, decision.at)
        _write(connection, decision, "model retired", version,
               was=before, refused_jobs=list(refused))  # fmt: skip
        return Moved(standing, refused_job_ids=refused, dropped_runs=dropped)


def shadow_version(database: Database, version: VersionDigests, decision: Decision) -> Moved:
    """Let a version run beside the one that serves; raises ``IllegalMove`` for what serves."""
    with database.write() as connection:
        before = _state(connection, version)
        standing = _move(connection, version, ModelState.SHADOW, decision)
        _write(connection, decision, "model shadow begun", version, was=before)
        return Moved(standing)


def end_shadow(database: Database, version: VersionDigests, decision: Decision) -> Moved:
    """Stop a shadow; what it has not yet been asked is dropped, what it said is kept."""
    with database.write() as connection:
        standing = _move(connection, version, ModelState.INSTALLED, decision)
        dropped = _end_shadow(connection, version, ModelState.SHADOW, decision.at)
        _write(connection, decision, "model shadow ended", version, dropped_runs=dropped)
        return Moved(standing, dropped_runs=dropped)


def check_decision(at_version: str, before: ModelState, after: ModelState) -> None:
    """Raise ``IllegalMove``, in words for who decides, when a version cannot become `after`."""
    try:
        check_move(MODEL_MOVES, f"model {at_version}", before, after, Actor.OPERATOR)
    except IllegalMove as error:
        if after is ModelState.INSTALLED:
            why = f"is {before}, and no shadow that could be ended"
        elif after is before:
            why = f"is {before} already"
        else:
            why = f"is {before}: admit another version first, or retire this one"
        raise IllegalMove(f"{at_version} {why}") from error


def note_installed(database: Database, version: VersionDigests, decision: Decision) -> None:
    """Note a version that was installed beside one that serves: it waits to be admitted."""
    with database.write() as connection:
        if _find(connection, version) is None:
            _put(connection, version, ModelState.INSTALLED, decision)
        _write(connection, decision, "model installed", version)


def note_refused_admission(
    database: Database, version: VersionDigests, decision: Decision, reasons: Iterable[str]
) -> None:
    """Write into the audit trail that a version was not admitted, with every reason."""
    with database.write() as connection:
        _write(connection, decision, "model admission refused", version, reasons=list(reasons))


def refuse_jobs_of_retired(database: Database, now: datetime) -> tuple[int, ...]:
    """Refuse what waits for retired versions: a preparer may have known them a moment longer."""
    with database.read() as connection:
        if not _waiting_for_retired(connection):
            return ()
    with database.write() as connection:
        return _refuse_waiting(connection, Actor.SCHEDULER, now)


def withdrawal_within(connection: Connection, name: str, version: str) -> str:
    """Return why a version must not speak any more, as a sentence; empty when it may."""
    row = connection.execute(_RETIRED, {"of": name, "at": version}).mappings().one_or_none()
    return "" if row is None else _withdrawn(_standing(row))


def _withdrawn(standing: Standing) -> str:
    why = f" ({standing.reason})" if standing.reason else ""
    return (
        f"{standing.at_version} was retired before it had analysed this study{why}; "
        "'medimgd retry STUDY --again' asks the models that serve now"
    )


def _standing(row: RowMapping) -> Standing:
    return Standing(**{**row, "state": ModelState(row["state"])})


def _is(name: str, version: str) -> ColumnElement[bool]:
    return and_(_TABLE.c.name == name, _TABLE.c.version == version)


def _find(connection: Connection, version: VersionDigests) -> Standing | None:
    query = select(_TABLE).where(_is(version.name, version.version))
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else _standing(row)


def _state(connection: Connection, version: VersionDigests) -> ModelState:
    known = _find(connection, version)
    return ModelState.INSTALLED if known is None else known.state


def _admitted_others(connection: Connection, version: VersionDigests) -> list[VersionDigests]:
    query = select(_TABLE).where(
        _TABLE.c.name == version.name,
        _TABLE.c.version != version.version,
        _TABLE.c.state == ModelState.ADMITTED,
    )
    return [_standing(row).digests for row in connection.execute(query).mappings()]


def _move(
    connection: Connection, version: VersionDigests, after_state: ModelState, decision: Decision
) -> Standing:
    before = _state(connection, version)
    check_decision(version.at_version, before, after_state)
    return _put(connection, version, after_state, decision)


def _put(
    connection: Connection, version: VersionDigests, state: ModelState, decision: Decision
) -> Standing:
    values = {
        "state": state,
        "state_since": decision.at,
        "manifest_sha256": version.manifest_sha256,
        "weights_sha256": version.weights_sha256,
        "decided_by": decision.by,
        "reason": decision.reason,
    }
    key = {"name": version.name, "version": version.version}
    changed = connection.execute(
        update(_TABLE).where(_is(version.name, version.version)).values(values)
    )
    if not changed.rowcount:
        connection.execute(insert(_TABLE).values(**key, **values))
    standing = _find(connection, version)
    assert standing is not None  # noqa: S101 - written just now
    return standing


def _end_shadow(
    connection: Connection, version: VersionDigests, before: ModelState, now: datetime
) -> int:
    if before is not ModelState.SHADOW:
        return 0
    return drop_runs_within(connection, version.name, version.version, Actor.OPERATOR, now)


def _waiting_for_retired(connection: Connection) -> list[tuple[JobRecord, Standing]]:
    query = select(_TABLE).where(_TABLE.c.state == ModelState.RETIRED)
    retired = [_standing(row) for row in connection.execute(query).mappings()]
    by_version = {(each.name, each.version): each for each in retired}
    if not retired:
        return []
    job = schema.job
    waiting = select(job).where(
        job.c.state == JobState.WAITING,
        or_(*(and_(job.c.model_name == n, job.c.model_version == v) for n, v in by_version)),
    )
    rows = connection.execute(waiting.order_by(job.c.id)).mappings().all()
    return [
        (job_from_row(row), by_version[row["model_name"], row["model_version"]]) for row in rows
    ]


def _refuse_waiting(connection: Connection, actor: Actor, now: datetime) -> tuple[int, ...]:
    """Refuse every job that waits for a retired version, unless a later one spoke already."""
    refused = []
    for job, standing in _waiting_for_retired(connection):
        if overtaken_within(connection, job):
            supersede_overtaken_within(connection, job, actor, now)
            continue
        said = _withdrawn(standing)
        move_job(connection, job, JobState.REFUSED, actor, now, reason=said, finished_at=now)
        drop_tensor(connection, job.id)
        result = result_of(
            job, ResultKind.REFUSAL, now, reason=RefusalReason.WITHDRAWN, message=said
        )
        write_result(connection, result, now)
        refused.append(job.id)
    return tuple(refused)


def _write(
    connection: Connection,
    decision: Decision,
    action: str,
    version: VersionDigests,
    **detail: object,
) -> None:
    audit.append(
        connection,
        decision.at,
        Actor.OPERATOR,
        action,
        version.at_version,
        by=decision.by,
        reason=decision.reason,
        manifest_sha256=version.manifest_sha256,
        weights_sha256=version.weights_sha256,
        **detail,
    )
