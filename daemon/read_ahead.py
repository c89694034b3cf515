"""What a worker computes next: claimed and read while the device computes, topped up until it is.

Owns the thread that claims, the order of models, and how long a batch waits to be filled. Never
touches a predictor.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from daemon.config import Config
from daemon.in_hand import InHand
from daemon.logs import ACTION, MODEL, REASON
from daemon.role import ERROR_PAUSE_SECONDS, now_utc, where
from daemon.served_models import ServedModels
from daemon.settings import MEBIBYTE
from daemon.turns import Turns, name_of
from daemon.worker_figures import WorkerFigures
from dicom_io.errors import MedimgdError
from storage.claims import claim_batch
from storage.database import Database
from storage.jobs import ClaimedJob, WaitingModel, waiting_models

_logger = logging.getLogger(__name__)

CLAIMED_AT_ONCE = 32
"""Small batches are claimed several in one transaction."""
AHEAD_BYTES = 256 * MEBIBYTE
"""Tensors read ahead; one is always, however large."""
IDLE_SECONDS = 0.1
LOOK_SECONDS = 0.25
"""How long what waits is known, while every claim finds as much as it asked for: looking takes the
longer, the more waits."""
STREAM_SECONDS = 1.0
"""Analyses that follow each other this closely are a stream, in which a batch may wait for more."""
_LOOKS_WHILE_FILLING = 4


@dataclass(slots=True)
class _Ready:
    """One batch that waits for the device."""

    model: str
    jobs: list[ClaimedJob]
    may_grow: bool
    """False for an urgent one, and for a job that a worker died over."""


class ReadAhead:
    """Hands out batches of jobs of one model.

    Until ``start`` it claims when it is asked; afterwards a thread claims ahead.

    Parameters
    ----------
    config : Config
        Batch size and lease.
    database : Database
        Open for writing.
    models : ServedModels
        Which models are loaded, and which could be.
    in_hand : InHand
        Told of every claim.
    owner : str
        In whose name jobs are leased.
    figures : WorkerFigures
        Where the seconds of reading are counted.
    """

    def __init__(
        self,
        config: Config,
        database: Database,
        models: ServedModels,
        in_hand: InHand,
        owner: str,
        figures: WorkerFigures,
    ) -> None:
        self._section = config.worker
        self._database = database
        self._models = models
        self._in_hand = in_hand
        self._owner = owner
        self._figures = figures
        self._turns = Turns()
        self._ready: deque[_Ready] = deque()
        self._changed = threading.Condition()
        self._is_hungry = False
        self._stopping = False
        self._last_taken = 0.0
        self._largest_bytes: dict[str, int] = {}
        self._wanted = ""
        self._waiting: Sequence[WaitingModel] = ()
        self._looked_at = -LOOK_SECONDS
        self._thread: threading.Thread | None = None
        self.oldest_waiting: datetime | None = None
        """When the oldest analysis that waits was enqueued, as last seen."""

    def start(self) -> None:
        """Begin to claim ahead."""
        self._thread = threading.Thread(target=self._read_ahead, name="read-ahead", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Claim no more; what was claimed stays in hand, for the caller to give back."""
        with self._changed:
            self._stopping = True
            self._ready.clear()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def take(self, seconds: float = 0.0) -> tuple[ClaimedJob, ...]:
        """Return the next batch, or nothing when none comes within `seconds`."""
        if self._thread is None:
            jobs, _ = self._claim(self._section.maximum_batch, self._models.obtain)
            self._in_hand.begin(jobs)
            return jobs
        with self._changed:
            if not self._ready:
                self._is_hungry = True
                self._changed.notify_all()
                self._changed.wait_for(lambda: bool(self._ready) or self._stopping, seconds)
                self._is_hungry = False
            if not self._ready:
                return ()
            self._let_it_fill()
            if not self._ready:
                return ()
            batch = self._ready.popleft()
            self._last_taken = time.monotonic()
            self._in_hand.begin(batch.jobs)
            self._changed.notify_all()
        return tuple(batch.jobs)

    def take_wanted(self) -> str:
        """Return the model whose turn it is and which is not loaded, once; empty when none is."""
        wanted, self._wanted = self._wanted, ""
        return wanted

    def _let_it_fill(self) -> None:
        """Wait a little for a batch that is not full, if more can be expected."""
        if not self._is_in_stream() or self._section.fill_seconds <= 0:
            return
        self._changed.wait_for(
            lambda: self._stopping or not self._ready or not self._can_grow(self._ready[0]),
            self._section.fill_seconds,
        )

    def _can_grow(self, batch: _Ready) -> bool:
        return batch.may_grow and len(batch.jobs) < self._section.maximum_batch

    # The thread

    def _read_ahead(self) -> None:
        """Claim whenever there is room: a process loop, which survives what it cannot foresee."""
        while not self._stopping:
            try:
                found = self._read_once()
            except MedimgdError as error:
                _logger.error(
                    "%s", error, extra={ACTION: "claim_failed", REASON: type(error).__name__}
                )
                self._pause(ERROR_PAUSE_SECONDS)
            except Exception as error:  # noqa: BLE001 - a process loop
                _logger.error(
                    "unexpected %s in %s", type(error).__name__, where(error),
                    extra={ACTION: "claim_failed", REASON: type(error).__name__},
                )  # fmt: skip
                self._pause(ERROR_PAUSE_SECONDS)
            else:
                if not found:
                    self._pause(self._pause_seconds())

    def _read_once(self) -> bool:
        """Claim once, when there is room; False when nothing waits."""
        with self._changed:
            self._changed.wait_for(lambda: self._has_room() or self._stopping)
            if self._stopping:
                return False
        started = time.monotonic()
        jobs, is_urgent = self._claim(self._at_once(), None)
        self._figures.read_seconds += time.monotonic() - started
        if jobs:
            self._put(jobs, is_urgent=is_urgent)
        return bool(jobs)

    def _at_once(self) -> int:
        """Return how many to claim: after a rest no more than the device can begin with."""
        size = self._section.maximum_batch
        is_first = self._is_hungry and not self._ready and not self._is_in_stream()
        return size if is_first else max(size, CLAIMED_AT_ONCE)

    def _is_in_stream(self) -> bool:
        return time.monotonic() - self._last_taken < STREAM_SECONDS

    def _pause(self, seconds: float) -> None:
        """Wait, but not once the device has nothing to do or a stop was asked for."""
        with self._changed:
            hungry_before = self._is_hungry
            self._changed.wait_for(
                lambda: self._stopping or self._is_hungry != hungry_before, seconds
            )

    def _pause_seconds(self) -> float:
        if self._is_in_stream() and self._section.fill_seconds:
            return min(IDLE_SECONDS, self._section.fill_seconds / _LOOKS_WHILE_FILLING)
        return IDLE_SECONDS

    def _has_room(self) -> bool:
        """True while little enough waits for the device."""
        jobs = [job for batch in self._ready for job in batch.jobs]
        if sum(job.tensor.values.nbytes for job in jobs) >= AHEAD_BYTES:
            return False
        return len(jobs) < max(self._section.maximum_batch, CLAIMED_AT_ONCE // 2)

    def _put(self, jobs: Sequence[ClaimedJob], *, is_urgent: bool) -> None:
        model, may_grow = jobs[0].model.at_version, not jobs[0].crashes and not is_urgent
        size = self._section.maximum_batch
        with self._changed:
            rest = list(jobs)
            last = self._ready[-1] if self._ready else None
            if last is not None and may_grow and last.model == model and self._can_grow(last):
                free = size - len(last.jobs)
                last.jobs += rest[:free]
                rest = rest[free:]
            batches = [
                _Ready(model, rest[first : first + size], may_grow)
                for first in range(0, len(rest), size)
            ]
            if is_urgent:
                self._ready.extendleft(reversed(batches))
            else:
                self._ready.extend(batches)
            self._changed.notify_all()

    # Claiming

    def _claim(
        self, limit: int, load: Callable[[str], object] | None
    ) -> tuple[tuple[ClaimedJob, ...], bool]:
        """Claim jobs of the model whose turn it is; return them and whether they are urgent.

        A model that is not loaded is loaded by `load`; without it, it is noted as wanted.
        """
        now = now_utc()
        waiting = self._look(now)
        jobs: tuple[ClaimedJob, ...] = ()
        is_urgent = False
        for each in self._turns.order(waiting, self._models.is_loaded, now):
            jobs = self._claim_of(each, limit, load)
            if jobs:
                is_urgent = each.priority > 0
                break
        self._note_unserved(waiting)
        if len(jobs) < limit:
            self._looked_at = -LOOK_SECONDS
        return jobs, is_urgent

    def _look(self, now: datetime) -> Sequence[WaitingModel]:
        """Return what waits for each model, as it was at most ``LOOK_SECONDS`` ago."""
        moment = time.monotonic()
        if moment - self._looked_at >= LOOK_SECONDS:
            self._waiting = waiting_models(self._database, now)
            self._looked_at = moment
            self.oldest_waiting = min((each.oldest_at for each in self._waiting), default=None)
        return self._waiting

    def _claim_of(
        self, waiting: WaitingModel, limit: int, load: Callable[[str], object] | None
    ) -> tuple[ClaimedJob, ...]:
        name = name_of(waiting)
        if self._models.can_load(name):
            if load is None:
                self._wanted = self._wanted or name
                return ()
            load(name)
        if self._models.find(name) is None:
            return ()
        largest = self._largest_bytes.get(name, AHEAD_BYTES // self._section.maximum_batch)
        jobs = claim_batch(
            self._database, self._owner, waiting.model_name, waiting.model_version,
            max(1, min(limit, AHEAD_BYTES // largest)), now_utc(), self._section.lease_seconds,
        )  # fmt: skip
        if jobs:
            self._hold(jobs)
            self._turns.took(name, now_utc())
            self._largest_bytes[name] = max(1, *(job.tensor.values.nbytes for job in jobs))
        return jobs

    def _hold(self, jobs: Sequence[ClaimedJob]) -> None:
        """Take jobs in hand; what an idle device is about to compute counts as computing."""
        first = self._section.maximum_batch if self._is_hungry else 0
        self._in_hand.begin(jobs[:first])
        self._in_hand.add(jobs[first:])

    def _note_unserved(self, waiting: Sequence[WaitingModel]) -> None:
        """Say once that jobs wait for a model that cannot serve; they are never given up for it."""
        unserved = frozenset(
            name
            for name in map(name_of, waiting)
            if not self._models.is_loaded(name) and not self._models.can_load(name)
        )
        for name in unserved - self._models.unserved:
            _logger.error(
                "analyses wait for %s, which is out of order or not installed", name,
                extra={ACTION: "model_unserved", MODEL: name},
            )  # fmt: skip
        self._models.unserved = unserved
