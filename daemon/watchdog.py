"""The watchdog of a worker: ends the process when a computation does not come back.

Owns deadlines and the end of the process; what is saved before the end is its caller's business.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from daemon.exit_codes import ExitCode
from daemon.logs import ACTION, SECONDS

_logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
LAST_ACTS_SECONDS = 20.0
"""How long saving may take before the process ends all the same."""
_BACKSTOP_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Watched:
    """A computation under way."""

    what: str
    seconds: float
    """What it may take."""
    until: float


class Watchdog:
    """A thread that looks whether the computation under way is late.

    Parameters
    ----------
    last_acts : callable
        Called in the watchdog's thread when it is: says and saves what can be saved.
    end : callable, optional
        Ends the process with a status; a test may look instead.
    """

    def __init__(
        self, last_acts: Callable[[Watched], None], end: Callable[[int], object] = os._exit
    ) -> None:
        self._last_acts = last_acts
        self._end = end
        self._watched: Watched | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    @contextlib.contextmanager
    def watch(self, what: str, seconds: float) -> Iterator[None]:
        """Give the block so many seconds; blocks may lie in one another, the innermost counts.

        What an inner block takes is not taken from the outer one.
        """
        outer, begun = self._watched, time.monotonic()
        self._set(Watched(what, seconds, begun + seconds))
        try:
            yield
        finally:
            taken = time.monotonic() - begun
            self._set(outer and replace(outer, until=outer.until + taken))

    def _set(self, watched: Watched | None) -> None:
        self._watched = watched
        # Here and not in the thread: the block may keep that away from its first moment on.
        self._set_backstop(watched)

    def _look(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            watched = self._watched
            if watched is not None and time.monotonic() > watched.until:
                self._act(watched)
                return

    def _set_backstop(self, watched: Watched | None) -> None:
        """Let the C library end the process if code that never yields keeps this thread away."""
        if not self._thread.is_alive() or self._end is not os._exit or sys.__stderr__ is None:
            return
        if watched is None:
            faulthandler.cancel_dump_traceback_later()
        else:
            left = max(0.0, watched.until - time.monotonic()) + _BACKSTOP_SECONDS
            faulthandler.dump_traceback_later(left, exit=True, file=sys.__stderr__)

    def _act(self, watched: Watched) -> None:
        last_resort = threading.Timer(LAST_ACTS_SECONDS, self._end, (ExitCode.HUNG,))
        last_resort.daemon = True
        last_resort.start()
        _logger.error(
            "%s has not ended after %.0f s: this worker ends, and another takes over",
            watched.what, watched.seconds,
            extra={ACTION: "worker_hung", SECONDS: watched.seconds},
        )  # fmt: skip
        try:
            self._last_acts(watched)
        finally:
            last_resort.cancel()
            self._end(ExitCode.HUNG)
