"""How the delivery of a study's results is summed up in a few words."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from daemon.worklist.lines import DeliverySummary, delivery_summary
from storage.states import DeliveryState, ResultState

_D = DeliveryState


@dataclass(frozen=True)
class _Result:
    id: int
    state: ResultState


def summed(state: ResultState, counts: dict[DeliveryState, int]) -> DeliverySummary:
    return delivery_summary([_Result(1, state)], {1: counts})  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("counts", "text", "needs_person"),
    [
        ({_D.PENDING: 2}, "sent 0/2", False),
        ({_D.PENDING: 1, _D.SENT: 1}, "sent 1/2", False),
        ({_D.SENT: 1, _D.CONFIRMED: 1}, "sent 2/2", False),
        ({_D.CONFIRMED: 2}, "confirmed 2/2", False),
        ({_D.CONFIRMED: 2, _D.REJECTED: 1, _D.DEAD: 1}, "rejected 2/4", True),
        ({_D.DEAD: 1, _D.PENDING: 1}, "given up 1/2", True),
    ],
)
def test_confirmed_is_said_only_when_every_document_is(
    counts: dict[DeliveryState, int], text: str, needs_person: bool
) -> None:
    assert summed(ResultState.COMPOSED, counts) == DeliverySummary(text, needs_person)


@pytest.mark.parametrize(
    ("state", "text", "needs_person"),
    [
        (ResultState.AWAITING, "report being written", False),
        (ResultState.COMPOSED, "no destination", False),
        (ResultState.WITHHELD, "shown here only", False),
        (ResultState.UNCOMPOSABLE, "no report could be written", True),
    ],
)
def test_what_is_not_sent_says_why(state: ResultState, text: str, needs_person: bool) -> None:
    assert summed(state, {}) == DeliverySummary(text, needs_person)


def test_without_results_nothing_is_said() -> None:
    assert delivery_summary([], {}) == DeliverySummary("", needs_person=False)
