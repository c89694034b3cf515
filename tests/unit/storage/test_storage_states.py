"""The state machines, cell by cell: what is not allowed here is refused, for every actor."""

from __future__ import annotations

from itertools import product

import pytest

from storage.errors import IllegalMove
from storage.states import (
    COMMITMENT_MOVES,
    DELIVERY_MOVES,
    JOB_MOVES,
    MODEL_MOVES,
    RESULT_MOVES,
    SHADOW_MOVES,
    STUDY_MOVES,
    Actor,
    CommitmentState,
    DeliveryState,
    JobState,
    ModelState,
    ResultState,
    ShadowState,
    StudyState,
    check_move,
)

_MACHINES = {
    "study": (
        StudyState,
        STUDY_MOVES,
        """
        receiving  complete   scheduler operator
        receiving  held       scheduler
        complete   routed     preparer
        complete   unmatched  preparer
        complete   refused    preparer
        complete   held       preparer scheduler
        complete   receiving  receiver
        routed     receiving  receiver
        unmatched  receiving  receiver
        held       receiving  receiver
        refused    receiving  receiver
        held       complete   operator
        unmatched  complete   operator
        refused    complete   operator
        routed     complete   operator
        """,
    ),
    "job": (
        JobState,
        JOB_MOVES,
        """
        waiting     running     worker
        waiting     superseded  preparer operator scheduler
        waiting     refused     preparer operator scheduler
        running     done        worker
        running     refused     worker
        running     failed      worker scheduler
        running     waiting     worker scheduler
        running     superseded  worker scheduler
        superseded  waiting     preparer
        superseded  refused     preparer
        done        waiting     preparer
        done        refused     preparer
        failed      waiting     operator
        failed      refused     operator
        failed      superseded  preparer operator
        refused     waiting     operator
        refused     refused     preparer
        refused     superseded  operator
        """,
    ),
    "result": (
        ResultState,
        RESULT_MOVES,
        """
        awaiting      composed      courier
        awaiting      withheld      courier
        awaiting      uncomposable  courier
        withheld      awaiting      operator
        uncomposable  awaiting      operator
        """,
    ),
    "delivery": (
        DeliveryState,
        DELIVERY_MOVES,
        """
        pending   sent       courier
        pending   rejected   courier
        pending   dead       courier operator
        rejected  dead       operator
        sent      confirmed  courier
        sent      rejected   courier
        sent      dead       courier operator
        rejected  pending    operator
        dead      pending    operator
        sent      pending    operator
        """,
    ),
    "commitment": (
        CommitmentState,
        COMMITMENT_MOVES,
        """
        pending  reported  receiver courier
        pending  failed    receiver courier
        """,
    ),
    "model": (
        ModelState,
        MODEL_MOVES,
        """
        installed   shadow      operator
        installed   admitted    operator
        installed   superseded  operator
        installed   retired     operator
        shadow      installed   operator
        shadow      admitted    operator
        shadow      retired     operator
        admitted    superseded  operator
        admitted    retired     operator
        superseded  admitted    operator
        superseded  shadow      operator
        superseded  retired     operator
        retired     admitted    operator
        retired     shadow      operator
        """,
    ),
    "shadow": (
        ShadowState,
        SHADOW_MOVES,
        """
        preparing  waiting    preparer
        preparing  refused    preparer
        preparing  unmatched  preparer
        preparing  failed     preparer scheduler
        preparing  dropped    operator scheduler
        waiting    running    worker
        waiting    dropped    operator scheduler
        running    done       worker
        running    refused    worker
        running    failed     worker scheduler
        running    waiting    worker scheduler
        """,
    ),
}


def _cells():
    for name, (states, moves, table) in _MACHINES.items():
        rows = (line.split() for line in table.strip().splitlines())
        allowed = {(before, after): set(actors) for before, after, *actors in rows}
        for before, after in product(states, repeat=2):
            who = allowed.pop((before.value, after.value), set())
            yield pytest.param(moves, before, after, who, id=f"{name}-{before}-{after}")
        assert not allowed, f"{name}: states that do not exist: {allowed}"


@pytest.mark.parametrize(("moves", "before", "after", "allowed"), list(_cells()))
def test_a_move_is_open_to_the_actors_of_its_cell_and_to_nobody_else(
    moves, before, after, allowed
) -> None:
    for actor in Actor:
        if actor in allowed:
            assert check_move(moves, "it", before, after, actor) is after
        else:
            with pytest.raises(IllegalMove, match=f"it: {before} -> {after}"):
                check_move(moves, "it", before, after, actor)


def test_an_illegal_move_names_who_could_make_it() -> None:
    with pytest.raises(IllegalMove, match=r"open to: operator, scheduler"):
        check_move(STUDY_MOVES, "1.2", StudyState.RECEIVING, StudyState.COMPLETE, Actor.WORKER)
