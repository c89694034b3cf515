"""One study in a preparer's hands: its lease is renewed, and no fault of it leaves them.

Owns what preparing for the models that serve and for shadows has in common. What a fault means
for the study is the caller's.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar

from daemon.logs import ACTION, STUDY
from daemon.role import where
from dicom_io.errors import MedimgdError
from storage.errors import LeaseLost

_logger = logging.getLogger(__name__)

Task = TypeVar("Task")


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a study could not be prepared."""

    reason: str
    """For people."""
    kind: str
    """The error's name, for logs."""
    retryable: bool
    """True when the same may succeed later."""


class LeasedStudy(Generic[Task]):
    """What a preparer works at: at most one study at a time.

    Parameters
    ----------
    renew : callable
        Renews the lease of a task at a moment.
    study_of : callable
        Returns the Study Instance UID of a task.
    """

    def __init__(
        self, renew: Callable[[Task, datetime], None], study_of: Callable[[Task], str]
    ) -> None:
        self._renew = renew
        self._study_of = study_of
        self._task: Task | None = None
        self._guard = threading.Lock()

    def work(
        self, task: Task, prepare: Callable[[Task], None], fail: Callable[[Task, Fault], None]
    ) -> None:
        """Prepare a study while its lease is renewed; hand whatever goes wrong to `fail`."""
        self._hold(task)
        try:
            fault = self._attempt(task, prepare)
            if fault is not None:
                fail(task, fault)
        except LeaseLost as error:
            self._say_lost(task, error)
        finally:
            self._hold(None)

    def renew(self, now: datetime) -> None:
        """Extend the lease of the study in hand; the heartbeat calls this."""
        with self._guard:
            task = self._task
        if task is None:
            return
        try:
            self._renew(task, now)
        except LeaseLost as error:
            # Finishing will find out as well and write nothing.
            self._say_lost(task, error)

    def _attempt(self, task: Task, prepare: Callable[[Task], None]) -> Fault | None:
        try:
            prepare(task)
        except LeaseLost:
            raise
        except MedimgdError as error:
            return Fault(str(error), type(error).__name__, error.retryable)
        except Exception as error:  # noqa: BLE001 - one study must never stop the others
            kind = type(error).__name__
            return Fault(f"unexpected {kind} in {where(error)}", kind, retryable=False)
        return None

    def _hold(self, task: Task | None) -> None:
        with self._guard:
            self._task = task

    def _say_lost(self, task: Task, error: LeaseLost) -> None:
        _logger.info("%s", error, extra={ACTION: "lease_lost", STUDY: self._study_of(task)})
