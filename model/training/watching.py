"""How a training shows that it works, and how it is asked to stop.

Owns the three ways in which engine and caller speak. Draws nothing: the command brings the bars.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

logger = logging.getLogger(__name__)

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Takes what is done and how often; yields what takes the number done."""


@contextmanager
def silent(_what: str, _total: int) -> Iterator[Callable[[int], None]]:
    """Show nothing."""
    yield lambda _done: None


@dataclass(frozen=True, slots=True)
class Watch:
    """Who looks on."""

    progress: Progress = silent
    note: Callable[[str], None] = lambda _sentence: None
    """Takes a sentence for people."""
    should_stop: Callable[[], bool] = lambda: False
    """Asked after every epoch."""

    def say(self, sentence: str) -> None:
        """Tell whoever looks on, and the run's log."""
        logger.info("%s", sentence)
        self.note(sentence)
