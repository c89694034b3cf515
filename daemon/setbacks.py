"""Results whose composing failed: when each is tried again, and when it waits for a person.

Owns the patience with failures of composing. It lives in memory: a new courier tries everything at
once.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from datetime import datetime, timedelta

from storage.backoff import backoff_seconds

FIRST_PAUSE_SECONDS = 15.0
LONGEST_PAUSE_SECONDS = 300.0
"""Between attempts of one result: files that are back are noticed this soon."""
PATIENCE_SECONDS = 24 * 3600.0
"""What may succeed later is tried for a day, so that no disk that is away overnight needs a
command for every result."""
FAILURES_BEFORE_GIVING_UP = 3
"""Of what does not say that it may succeed later."""


@dataclass(frozen=True, slots=True)
class Setback:
    """How often composing a result has failed, and since when."""

    failures: int
    first_at: datetime
    again_at: datetime

    def is_final(self, now: datetime, *, retryable: bool) -> bool:
        """Return True when only a person can help now."""
        if retryable:
            return (now - self.first_at).total_seconds() >= PATIENCE_SECONDS
        return self.failures >= FAILURES_BEFORE_GIVING_UP


class Setbacks:
    """The results that could not be composed so far, by id."""

    def __init__(self) -> None:
        self._by_result: dict[int, Setback] = {}

    def note(self, result_id: int, now: datetime) -> Setback:
        """Count one more failure, and put the next attempt off, longer each time."""
        before = self._by_result.get(result_id)
        failures = 1 if before is None else before.failures + 1
        pause = backoff_seconds(failures, FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, 0.0, 0.0)
        first_at = now if before is None else before.first_at
        setback = Setback(failures, first_at, now + timedelta(seconds=pause))
        self._by_result[result_id] = setback
        return setback

    def forget(self, result_id: int) -> None:
        """Drop a result that was composed, or that waits for a person."""
        self._by_result.pop(result_id, None)

    def put_off(self, now: datetime) -> Set[int]:
        """Return the results whose next attempt is still to come."""
        return {each for each, setback in self._by_result.items() if setback.again_at > now}
