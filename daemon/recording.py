"""Recording what a worker found, while the device computes on: all that is ready, in one go.

Owns the thread that writes findings. What cannot be written now is kept and tried again; its leases
are renewed meanwhile.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence

from daemon.in_hand import InHand
from daemon.logs import ACTION, JOB, MODEL, REASON, STUDY
from daemon.role import now_utc, where
from daemon.worker_figures import WorkerFigures
from dicom_io.errors import MedimgdError
from storage.database import Database
from storage.endings import Analysed, finish_batch

_logger = logging.getLogger(__name__)

MOST_WAITING = 256
"""More findings than this are not kept waiting: computing pauses until they are recorded."""
GATHERED_AT_ONCE = 32
GATHER_SECONDS = 0.2
"""In a stream of findings, how long the first waits for others to share its transaction."""
STREAM_SECONDS = 1.0
"""Findings that follow each other this closely are a stream; one that comes alone never waits."""
PAUSE_SECONDS = 1.0
"""Between two tries to write."""


class Recorder:
    """Writes findings to the database.

    Until ``start`` it writes when it is given something; afterwards a thread does.

    Parameters
    ----------
    database : Database
        Open for writing.
    in_hand : InHand
        Told what is held no more.
    figures : WorkerFigures
        Where the seconds of writing are counted.
    """

    def __init__(self, database: Database, in_hand: InHand, figures: WorkerFigures) -> None:
        self._database = database
        self._in_hand = in_hand
        self._figures = figures
        self._waiting: list[Analysed] = []
        self._is_writing = False
        self._is_draining = False
        self._last_written = -STREAM_SECONDS
        self._stopping = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to write beside the computing."""
        self._thread = threading.Thread(target=self._write_on, name="recording", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Write what waits, unless it cannot be written; then end."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def put(self, analysed: Sequence[Analysed]) -> None:
        """Take findings over; they are durable soon, or at once without a thread."""
        if not analysed:
            return
        if self._thread is None:
            self._record(analysed)
            return
        self._in_hand.computed(each.job for each in analysed)
        with self._changed:
            self._changed.wait_for(lambda: len(self._waiting) < MOST_WAITING or self._stopping)
            self._waiting.extend(analysed)
            self._changed.notify_all()

    def drain(self, seconds: float) -> bool:
        """Wait until everything is written; False when that takes longer than `seconds`."""
        with self._changed:
            self._is_draining = True
            self._changed.notify_all()
            done = self._changed.wait_for(
                lambda: not self._waiting and not self._is_writing, seconds
            )
            self._is_draining = False
            return done

    def _is_worth_writing(self) -> bool:
        return self._stopping or self._is_draining or len(self._waiting) >= GATHERED_AT_ONCE

    def _write_on(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting) or self._stopping)
                if time.monotonic() - self._last_written < STREAM_SECONDS:
                    self._changed.wait_for(self._is_worth_writing, GATHER_SECONDS)
                batch, self._waiting = self._waiting, []
                self._is_writing = bool(batch)
                self._changed.notify_all()
            if not batch:
                return
            self._record_until_it_works(batch)
            with self._changed:
                self._is_writing = False
                self._last_written = time.monotonic()
                self._changed.notify_all()

    def _record_until_it_works(self, batch: Sequence[Analysed]) -> None:
        """Try until it is written, or a stop was asked for: the jobs are then given back."""
        while True:
            try:
                self._record(batch)
            except MedimgdError as error:
                if not error.retryable:
                    self._record_apart(batch, error, str(error))
                    return
                _log_failure(error, str(error))
            except Exception as error:  # noqa: BLE001 - a process loop
                self._record_apart(batch, error, f"{type(error).__name__} in {where(error)}")
                return
            else:
                return
            with self._changed:
                if self._stopping:
                    return
                self._changed.wait_for(lambda: self._stopping, PAUSE_SECONDS)

    def _record_apart(self, batch: Sequence[Analysed], error: Exception, said: str) -> None:
        """Find what cannot be recorded; its lease runs out, and that is counted as a crash."""
        _log_failure(error, said)
        if len(batch) == 1:
            self._in_hand.drop([batch[0].job])
            return
        for each in batch:
            self._record_until_it_works([each])

    def _record(self, batch: Sequence[Analysed]) -> None:
        started = time.monotonic()
        states = finish_batch(self._database, batch, now_utc())
        self._figures.recorded_seconds += time.monotonic() - started
        self._in_hand.drop(each.job for each in batch)
        for analysed, state in zip(batch, states, strict=True):
            _logger.info(
                "job %s", state or "given to another worker",
                extra={ACTION: "job_finished", JOB: analysed.job.id,
                       MODEL: analysed.job.model.at_version,
                       STUDY: analysed.job.study_instance_uid},
            )  # fmt: skip


def _log_failure(error: Exception, said: str) -> None:
    _logger.error(
        "findings cannot be recorded now: %s", said,
        extra={ACTION: "record_failed", REASON: type(error).__name__},
    )  # fmt: skip
