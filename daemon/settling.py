"""What a receiver makes good at its start: half files, open associations, missing index rows.

Owns the order of it among several receivers of one installation. Half files and associations are
settled before anything is received; indexing the spool again goes on beside reception.
"""

from __future__ import annotations

import fcntl
import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from daemon.config import Config
from daemon.logs import ACTION, COUNT, REASON
from daemon.role import now_utc, where
from daemon.slot_lock import is_slot_held
from dicom_io.errors import MedimgdError
from storage.associations import close_associations_of, slots_with_open_associations
from storage.database import Database
from storage.reindexing import reindex
from storage.spool import Spool

_logger = logging.getLogger(__name__)

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_RETRY_SECONDS = 5.0
_TURN_SECONDS = 0.2
"""How often a receiver looks whether the one that indexes has finished."""


def settle_before_receiving(config: Config, database: Database, spool: Spool, slot: str) -> None:
    """Remove half files, and end the associations of receivers that are no more.

    Also those of other slots that no process holds: after a change of ``receiver.processes`` nobody
    would come back for them, and their studies would wait for the deadline.
    """
    swept = spool.sweep_incoming()
    dead = [
        each
        for each in slots_with_open_associations(database)
        if each == slot or not is_slot_held(config, each)
    ]
    closed = sum(close_associations_of(database, each, now_utc()) for each in dead)
    if swept or closed:
        _logger.info(
            "after the last end: %d half files removed, %d associations closed", swept, closed,
            extra={ACTION: "settled", COUNT: swept + closed},
        )  # fmt: skip


class SpoolIndexing:
    """Indexes the spool again in a thread of its own, once, while instances are received.

    What a predecessor acknowledged and did not record lies in the spool from before this start, so
    any walk over the spool that begins now or later finds it, whichever receiver makes it. Of
    several that start together one walks, then one more for those that came later, and the rest
    have nothing left to do.
    """

    def __init__(self, config: Config, database: Database, spool: Spool) -> None:
        self._marker = config.site.data_folder / "locks" / "indexing.lock"
        self._database = database
        self._spool = spool
        self._asked_at = _moment()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="spool-indexing")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # The rest is left to the next start.
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._index_in_turn()
            except MedimgdError as error:
                _logger.warning("indexing the spool: %s", error, extra={ACTION: "index_waits"})
            except Exception as error:  # noqa: BLE001 - the thread's loop; reception goes on
                _logger.error(
                    "unexpected %s in %s", type(error).__name__, where(error),
                    extra={ACTION: "step_failed", REASON: type(error).__name__},
                )  # fmt: skip
            else:
                return
            self._stop.wait(_RETRY_SECONDS)

    def _index_in_turn(self) -> None:
        with self._turn() as is_needed:
            if not is_needed:
                return
            began = _moment()
            found = reindex(self._database, self._spool, now_utc(), should_stop=self._stop.is_set)
            if not self._stop.is_set():
                self._marker.write_text(json.dumps(began), encoding="ascii")
        if found.recorded:
            _logger.info(
                "%d instances were indexed from the spool", found.recorded,
                extra={ACTION: "reindexed", COUNT: found.recorded},
            )  # fmt: skip

    @contextmanager
    def _turn(self) -> Iterator[bool]:
        """Wait until no other receiver indexes; give whether there is something left to do."""
        self._marker.parent.mkdir(parents=True, exist_ok=True)
        with self._marker.open("a+", encoding="ascii") as file:
            while not _locked(file.fileno()):
                if self._stop.wait(_TURN_SECONDS):
                    yield False
                    return
            file.seek(0)
            yield not self._is_done(file.read())

    def _is_done(self, marker: str) -> bool:
        """True when the last whole walk began after this receiver did, in the same boot."""
        try:
            boot, began = json.loads(marker)
            return bool(boot == self._asked_at[0] and began >= self._asked_at[1])
        except (ValueError, TypeError):
            return False


def _moment() -> tuple[str, float]:
    """Return this moment on a clock that nobody sets, and the boot it belongs to."""
    return _BOOT.read_text(encoding="ascii").strip(), time.clock_gettime(time.CLOCK_BOOTTIME)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
