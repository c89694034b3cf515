"""Whose turn it is: the order in which models with waiting analyses are served.

Owns the rule of fairness, and reads no clock, queue or memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from storage.jobs import WaitingModel

PATIENCE = timedelta(seconds=20)
"""The longest that urgent analyses, or models already loaded, are preferred to another model."""


class Turns:
    """Turns that go round.

    Of the models with waiting analyses the one is next whose last batch was claimed longest ago, or
    which waits for its first the longest. Urgent analyses come before all others, and a model that
    must be loaded first comes after those that are loaded; but a model that has waited for
    ``PATIENCE`` since its last turn comes before everybody, the one that waited longest first. So
    none waits longer than that and one batch of every other model, whatever the others are sent.
    """

    def __init__(self) -> None:
        self._last: dict[str, datetime] = {}

    def took(self, at_version: str, now: datetime) -> None:
        """Note that a model had its turn."""
        self._last[at_version] = now

    def order(
        self, waiting: Sequence[WaitingModel], is_loaded: Callable[[str], bool], now: datetime
    ) -> list[WaitingModel]:
        """Return the models in the order in which they should be served."""

        def place(each: WaitingModel) -> tuple[bool, int, bool, datetime]:
            since = self._waits_since(each)
            if now - since > PATIENCE:
                return False, 0, False, since
            return True, -each.priority, not is_loaded(name_of(each)), since

        return sorted(waiting, key=place)

    def _waits_since(self, each: WaitingModel) -> datetime:
        last = self._last.get(name_of(each))
        return each.oldest_at if last is None else max(last, each.oldest_at)


def name_of(waiting: WaitingModel) -> str:
    """Return ``name@version``."""
    return f"{waiting.model_name}@{waiting.model_version}"
