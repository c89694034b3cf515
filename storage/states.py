"""The state machines of all that moves, from studies to model versions: who may move what.

Owns the allowed moves and the refusal of all others; knows nothing of rows or SQL.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import TypeVar

from storage.errors import IllegalMove


class Actor(StrEnum):
    """Who asks for a move."""

    RECEIVER = "receiver"
    SCHEDULER = "scheduler"
    PREPARER = "preparer"
    WORKER = "worker"
    COURIER = "courier"
    OPERATOR = "operator"


class StudyState(StrEnum):
    """Where a study stands."""

    RECEIVING = "receiving"
    """Instances arrive, or may still arrive."""
    COMPLETE = "complete"
    """Judged complete; waits for preparation."""
    ROUTED = "routed"
    """At least one model has a job for it."""
    UNMATCHED = "unmatched"
    """No installed model reads any of its series."""
    HELD = "held"
    """Waits for a person: the deadline says so, or preparation failed too often."""
    REFUSED = "refused"
    """Models matched, and none may or can analyse what was sent."""


class JobState(StrEnum):
    """Where one analysis (study, series, model version, instance set) stands."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    REFUSED = "refused"
    """The model abstains; a refusal is a result."""
    FAILED = "failed"
    """Dead letter: waits for a person."""
    SUPERSEDED = "superseded"
    """A later preparation of the same study is analysed instead."""


class ResultState(StrEnum):
    """Whether a result has become documents."""

    AWAITING = "awaiting"
    COMPOSED = "composed"
    """Encoded once; only these bytes are ever sent."""
    WITHHELD = "withheld"
    """Shown in the worklist and, by the site's choice, not sent."""
    UNCOMPOSABLE = "uncomposable"
    """No valid object can be built from this reference header; waits for a person."""


class DeliveryState(StrEnum):
    """Where one document stands on its way to one destination."""

    PENDING = "pending"
    SENT = "sent"
    """The destination answered Success or a warning."""
    CONFIRMED = "confirmed"
    """Storage commitment or a query proved that the destination holds it."""
    REJECTED = "rejected"
    """The destination refused it for good; waits for a person."""
    DEAD = "dead"
    """Too old or tried too often; waits for a person."""


NO_LONGER_CONFIGURED = "destination no longer configured"
"""Why a delivery is dead that waits for nobody: only another configuration brings it back."""


class CommitmentState(StrEnum):
    """Where the answer to one request for storage commitment stands."""

    PENDING = "pending"
    """Accepted; the requester has not been told yet."""
    REPORTED = "reported"
    """The requester took the report."""
    FAILED = "failed"
    """Too old, or refused by the requester: nobody will be told any more."""


class ModelState(StrEnum):
    """Where one version of a model stands with this site, once a person has decided about it."""

    INSTALLED = "installed"
    """Here, and asked nothing until it is admitted."""
    SHADOW = "shadow"
    """Runs on live studies beside the version that serves; what it says goes nowhere."""
    ADMITTED = "admitted"
    """Serves. At most one version of a name."""
    SUPERSEDED = "superseded"
    """Another version was admitted in its place: it finishes what waits for it, and no more."""
    RETIRED = "retired"
    """Must not speak any more: what waits for it is refused."""


class ShadowState(StrEnum):
    """Where the run of a shadow on one study stands."""

    PREPARING = "preparing"
    """Leased to a preparer."""
    WAITING = "waiting"
    RUNNING = "running"
    """Leased to a worker."""
    DONE = "done"
    REFUSED = "refused"
    """It abstains, with a reason."""
    UNMATCHED = "unmatched"
    """It does not read this study."""
    FAILED = "failed"
    DROPPED = "dropped"
    """The shadow ended, or its images were removed or are not all of the study any more, before it
    was asked."""


StateT = TypeVar(
    "StateT",
    StudyState,
    JobState,
    ResultState,
    DeliveryState,
    CommitmentState,
    ModelState,
    ShadowState,
)
Moves = Mapping[tuple[StateT, StateT], frozenset[Actor]]


def _moves(table: dict[tuple[StateT, StateT], set[Actor]]) -> Moves[StateT]:
    return MappingProxyType({move: frozenset(actors) for move, actors in table.items()})


_S, _J, _R, _D, _C = StudyState, JobState, ResultState, DeliveryState, CommitmentState
_M, _X = ModelState, ShadowState

STUDY_MOVES: Moves[StudyState] = _moves(
    {
        (_S.RECEIVING, _S.COMPLETE): {Actor.SCHEDULER, Actor.OPERATOR},
        (_S.RECEIVING, _S.HELD): {Actor.SCHEDULER},
        (_S.COMPLETE, _S.ROUTED): {Actor.PREPARER},
        (_S.COMPLETE, _S.UNMATCHED): {Actor.PREPARER},
        (_S.COMPLETE, _S.REFUSED): {Actor.PREPARER},
        # The scheduler holds a study whose preparation died too often.
        (_S.COMPLETE, _S.HELD): {Actor.PREPARER, Actor.SCHEDULER},
        # Late instances.
        (_S.COMPLETE, _S.RECEIVING): {Actor.RECEIVER},
        (_S.ROUTED, _S.RECEIVING): {Actor.RECEIVER},
        (_S.UNMATCHED, _S.RECEIVING): {Actor.RECEIVER},
        (_S.HELD, _S.RECEIVING): {Actor.RECEIVER},
        (_S.REFUSED, _S.RECEIVING): {Actor.RECEIVER},
        # Analyse now, or again: after a model was installed, a fault repaired.
        (_S.HELD, _S.COMPLETE): {Actor.OPERATOR},
        (_S.UNMATCHED, _S.COMPLETE): {Actor.OPERATOR},
        (_S.REFUSED, _S.COMPLETE): {Actor.OPERATOR},
        (_S.ROUTED, _S.COMPLETE): {Actor.OPERATOR},
    }
)

JOB_MOVES: Moves[JobState] = _moves(
    {
        (_J.WAITING, _J.RUNNING): {Actor.WORKER},
        # A later preparation does not want it; or has spoken already when its version is retired.
        (_J.WAITING, _J.SUPERSEDED): {Actor.PREPARER, Actor.OPERATOR, Actor.SCHEDULER},
        # Prepared again after the model's manifest changed; or the model was retired, just now or
        # between the preparation and now.
        (_J.WAITING, _J.REFUSED): {Actor.PREPARER, Actor.OPERATOR, Actor.SCHEDULER},
        (_J.RUNNING, _J.DONE): {Actor.WORKER},
        (_J.RUNNING, _J.REFUSED): {Actor.WORKER},
        (_J.RUNNING, _J.FAILED): {Actor.WORKER, Actor.SCHEDULER},
        (_J.RUNNING, _J.WAITING): {Actor.WORKER, Actor.SCHEDULER},
        # A later preparation was finished first: its report must stay the latest one.
        (_J.RUNNING, _J.SUPERSEDED): {Actor.WORKER, Actor.SCHEDULER},
        (_J.FAILED, _J.SUPERSEDED): {Actor.PREPARER, Actor.OPERATOR},
        (_J.REFUSED, _J.SUPERSEDED): {Actor.OPERATOR},
        # The older instance set is the current one again, after retention removed the rest; or
        # the older version serves again.
        (_J.SUPERSEDED, _J.WAITING): {Actor.PREPARER},
        (_J.SUPERSEDED, _J.REFUSED): {Actor.PREPARER},
        # The older version serves again, and another one spoke in between.
        (_J.DONE, _J.WAITING): {Actor.PREPARER},
        (_J.DONE, _J.REFUSED): {Actor.PREPARER},
        (_J.REFUSED, _J.REFUSED): {Actor.PREPARER},
        (_J.FAILED, _J.WAITING): {Actor.OPERATOR},
        # Prepared again by a retry, and refused now.
        (_J.FAILED, _J.REFUSED): {Actor.OPERATOR},
        (_J.REFUSED, _J.WAITING): {Actor.OPERATOR},
    }
)

RESULT_MOVES: Moves[ResultState] = _moves(
    {
        (_R.AWAITING, _R.COMPOSED): {Actor.COURIER},
        (_R.AWAITING, _R.WITHHELD): {Actor.COURIER},
        (_R.AWAITING, _R.UNCOMPOSABLE): {Actor.COURIER},
        (_R.WITHHELD, _R.AWAITING): {Actor.OPERATOR},
        (_R.UNCOMPOSABLE, _R.AWAITING): {Actor.OPERATOR},
    }
)

DELIVERY_MOVES: Moves[DeliveryState] = _moves(
    {
        (_D.PENDING, _D.SENT): {Actor.COURIER},
        (_D.PENDING, _D.REJECTED): {Actor.COURIER},
        # The operator gives up what a destination that is no longer configured was to get, or has
        # lost.
        (_D.PENDING, _D.DEAD): {Actor.COURIER, Actor.OPERATOR},
        (_D.REJECTED, _D.DEAD): {Actor.OPERATOR},
        (_D.SENT, _D.CONFIRMED): {Actor.COURIER},
        (_D.SENT, _D.REJECTED): {Actor.COURIER},
        (_D.SENT, _D.DEAD): {Actor.COURIER, Actor.OPERATOR},
        (_D.REJECTED, _D.PENDING): {Actor.OPERATOR},
        (_D.DEAD, _D.PENDING): {Actor.OPERATOR},
        # Accepted once and not found since: sent again.
        (_D.SENT, _D.PENDING): {Actor.OPERATOR},
    }
)

COMMITMENT_MOVES: Moves[CommitmentState] = _moves(
    {
        # On the association of the request, or later on one of our own.
        (_C.PENDING, _C.REPORTED): {Actor.RECEIVER, Actor.COURIER},
        (_C.PENDING, _C.FAILED): {Actor.RECEIVER, Actor.COURIER},
    }
)

MODEL_MOVES: Moves[ModelState] = _moves(
    {
        (_M.INSTALLED, _M.SHADOW): {Actor.OPERATOR},
        (_M.INSTALLED, _M.ADMITTED): {Actor.OPERATOR},
        # A version that served without admission makes room for the one that is admitted.
        (_M.INSTALLED, _M.SUPERSEDED): {Actor.OPERATOR},
        (_M.INSTALLED, _M.RETIRED): {Actor.OPERATOR},
        (_M.SHADOW, _M.INSTALLED): {Actor.OPERATOR},
        (_M.SHADOW, _M.ADMITTED): {Actor.OPERATOR},
        (_M.SHADOW, _M.RETIRED): {Actor.OPERATOR},
        # What serves is never made a shadow: nothing would serve in its place.
        (_M.ADMITTED, _M.SUPERSEDED): {Actor.OPERATOR},
        (_M.ADMITTED, _M.RETIRED): {Actor.OPERATOR},
        # Back to an earlier version.
        (_M.SUPERSEDED, _M.ADMITTED): {Actor.OPERATOR},
        (_M.SUPERSEDED, _M.SHADOW): {Actor.OPERATOR},
        (_M.SUPERSEDED, _M.RETIRED): {Actor.OPERATOR},
        (_M.RETIRED, _M.ADMITTED): {Actor.OPERATOR},
        (_M.RETIRED, _M.SHADOW): {Actor.OPERATOR},
    }
)

SHADOW_MOVES: Moves[ShadowState] = _moves(
    {
        (_X.PREPARING, _X.WAITING): {Actor.PREPARER},
        (_X.PREPARING, _X.REFUSED): {Actor.PREPARER},
        (_X.PREPARING, _X.UNMATCHED): {Actor.PREPARER},
        (_X.PREPARING, _X.FAILED): {Actor.PREPARER, Actor.SCHEDULER},
        (_X.PREPARING, _X.DROPPED): {Actor.OPERATOR, Actor.SCHEDULER},
        (_X.WAITING, _X.RUNNING): {Actor.WORKER},
        (_X.WAITING, _X.DROPPED): {Actor.OPERATOR, Actor.SCHEDULER},
        (_X.RUNNING, _X.DONE): {Actor.WORKER},
        (_X.RUNNING, _X.REFUSED): {Actor.WORKER},
        (_X.RUNNING, _X.FAILED): {Actor.WORKER, Actor.SCHEDULER},
        (_X.RUNNING, _X.WAITING): {Actor.WORKER, Actor.SCHEDULER},
    }
)


def check_move(
    moves: Moves[StateT], subject: str, before: StateT, after: StateT, actor: Actor
) -> StateT:
    """Return `after` if the table lets `actor` make this move.

    Raises
    ------
    IllegalMove
        The table has no such move, or not for this actor.
    """
    allowed = moves.get((before, after), frozenset())
    if actor not in allowed:
        who = ", ".join(sorted(allowed)) or "nobody"
        raise IllegalMove(
            f"{subject}: {before} -> {after} is not open to the {actor} (open to: {who})"
        )
    return after
