"""What every process of medimgd has in common: a slot, a heartbeat, and an orderly end.

Owns signals and the process row. A role's own work is a function called again and again until a
stop is asked for.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from types import FrameType

from daemon.config import SUPERVISOR_VARIABLE, Config
from daemon.logs import ACTION, REASON
from dicom_io.errors import MedimgdError
from storage.database import Database
from storage.processes import heartbeat, register_process, remove_process

_logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 2.0
ERROR_PAUSE_SECONDS = 2.0
"""Pause after an unexpected error, so that a broken disk does not fill the log."""


def now_utc() -> datetime:
    """Return this moment, aware, in UTC: the only clock the processes read."""
    return datetime.now(UTC)


class RoleProcess:
    """The life of one process: registers its slot, beats, stops when asked.

    Parameters
    ----------
    config : Config
        The installation's configuration.
    database : Database
        Open for writing.
    role, slot : str
        Which kind of process this is, and which of them; leases are held in the slot's name.
    renew : callable, optional
        Called at every heartbeat to renew the leases in hand.
    """

    def __init__(
        self,
        config: Config,
        database: Database,
        role: str,
        slot: str,
        renew: Callable[[datetime], None] | None = None,
    ) -> None:
        self.config = config
        self.database = database
        self.role = role
        self.slot = slot
        self._renew = renew
        self._stop = threading.Event()
        self._ended = threading.Event()
        self._is_signalled = False
        self._supervisor_pid = int(os.environ.get(SUPERVISOR_VARIABLE, "0"))
        self._detail: Mapping[str, object] = {}
        self._beat = threading.Thread(target=self._beat_until_ended, name="heartbeat", daemon=True)

    @property
    def is_stopping(self) -> bool:
        """True once a stop was asked for."""
        return self._stop.is_set()

    def wait(self, seconds: float) -> bool:
        """Sleep, but not past a stop; return True when a stop was asked for."""
        return self._stop.wait(seconds)

    def request_stop(self) -> None:
        """Ask for an orderly end."""
        self._stop.set()

    def begin(self, detail: Mapping[str, object] | None = None) -> None:
        """Take over the signals, register the slot and start the heartbeat."""
        self.heed_signals()
        self._detail = detail or {}
        register_process(
            self.database, self.slot, role=self.role, pid=os.getpid(), state="ready",
            host=self.config.site.node_id, detail=self._detail, now=now_utc(),
        )  # fmt: skip
        self._beat.start()
        _logger.info("%s is ready", self.slot, extra={ACTION: "role_ready"})

    def describe(self, detail: Mapping[str, object]) -> None:
        """Change what ``medimgd status`` shows of this process."""
        self._detail = detail

    def repeat(self, step: Callable[[], bool], idle_seconds: float) -> None:
        """Call `step` until stopped; it returns False when there was nothing to do.

        This is the process loop: the one place where an unexpected error of a role is logged and
        survived. Work in hand is safe, because it is held by lease.
        """
        while not self.is_stopping:
            try:
                busy = step()
            except MedimgdError as error:
                _logger.error(
                    "%s", error, extra={ACTION: "step_failed", REASON: type(error).__name__}
                )
                self.wait(ERROR_PAUSE_SECONDS)
            except Exception as error:  # noqa: BLE001 - the process loop
                # The traceback names code only; messages of foreign errors may quote attributes.
                _logger.error(
                    "unexpected %s in %s", type(error).__name__, where(error),
                    extra={ACTION: "step_failed", REASON: type(error).__name__},
                )  # fmt: skip
                self.wait(ERROR_PAUSE_SECONDS)
            else:
                if not busy:
                    self.wait(idle_seconds)

    def end(self, successor_state: str = "") -> None:
        """Stop the heartbeat and give the slot back.

        Parameters
        ----------
        successor_state : str
            When a successor follows at once: the slot's state until it takes over.
        """
        self._stop.set()
        self._ended.set()
        self._beat.join(timeout=5)
        if successor_state:
            heartbeat(
                self.database, self.slot, now_utc(), state=successor_state, detail=self._detail
            )
        else:
            remove_process(self.database, self.slot)
        _logger.info("%s ended", self.slot, extra={ACTION: "role_ended"})

    def heed_signals(self) -> None:
        """Take a stop for asked for from now on, also before `begin`."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del frame
        # A stop that the process asked of itself counts for none.
        if self._is_signalled:
            os._exit(128 + number)
        self._is_signalled = True
        self._stop.set()

    def _beat_until_ended(self) -> None:
        # Beyond a stop that was asked for: what is in hand then may take longer than its lease.
        while not self._ended.wait(HEARTBEAT_SECONDS):
            is_orphaned = self._supervisor_pid and os.getppid() != self._supervisor_pid
            if is_orphaned and not self.is_stopping:
                _logger.warning("the parent is gone: stopping", extra={ACTION: "orphaned"})
                self._stop.set()
            self.try_to_beat()

    def try_to_beat(self) -> None:
        """Write one heartbeat; one that cannot be written is logged, for the next may be."""
        try:
            self.beat()
        except MedimgdError as error:
            _logger.warning("heartbeat not written: %s", error, extra={ACTION: "heartbeat"})
        except Exception as error:  # noqa: BLE001 - the thread's loop: leases hang on it
            _logger.error(
                "heartbeat not written: unexpected %s in %s", type(error).__name__, where(error),
                extra={ACTION: "heartbeat", REASON: type(error).__name__},
            )  # fmt: skip

    def beat(self) -> None:
        """Write one heartbeat and renew the leases in hand."""
        now = now_utc()
        heartbeat(self.database, self.slot, now, detail=self._detail)
        if self._renew is not None:
            self._renew(now)


def where(error: BaseException) -> str:
    """Return ``module:line`` of the innermost frame of `error`, which quotes no data."""
    frame = error.__traceback__
    if frame is None:
        return "unknown place"
    while frame.tb_next is not None:
        frame = frame.tb_next
    return f"{frame.tb_frame.f_globals.get('__name__', '?')}:{frame.tb_lineno}"
