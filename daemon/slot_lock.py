"""One process per slot and data folder: a second ``medimgd run`` must not undo the first.

Owns the lock files. The kernel releases a lock when its process ends, however it ends.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from daemon.config import Config
from daemon.errors import DataFolderUnusable, SlotTaken

_ATTEMPTS = 5
"""Tries to take a lock that another may hold for an instant, to see whether it is free."""
_PAUSE_SECONDS = 0.02


@contextmanager
def hold_slot(config: Config, slot: str) -> Iterator[None]:
    """Hold the lock of a slot while the block runs.

    Raises
    ------
    SlotTaken
        Another process holds it; the message names it and what to do.
    DataFolderUnusable
        The lock cannot be written, so nothing else could be either.
    """
    with _lock_file(config, slot) as file:
        if not _taken(file.fileno()):
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise SlotTaken(
                f"{slot} runs already on {config.site.data_folder} (process {holder}): stop it, "
                f"use another data folder{_or_another_slot(slot)}"
            )
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _lock_file(config: Config, slot: str) -> TextIO:
    path = _path(config, slot)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a+", encoding="ascii")
    except OSError as error:
        raise DataFolderUnusable(config.site.data_folder, error) from error


def _or_another_slot(slot: str) -> str:
    """``medimgd run`` itself takes no slot: a second one would start every process twice."""
    return "" if slot.startswith("scheduler") else ", or give this process a --slot of its own"


def _taken(descriptor: int) -> bool:
    """Take the lock; tried for a moment, because ``is_slot_held`` holds it for an instant."""
    for _ in range(_ATTEMPTS):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_PAUSE_SECONDS)
        else:
            return True
    return False


def is_slot_held(config: Config, slot: str) -> bool:
    """Tell whether a living process holds a slot."""
    try:
        with _path(config, slot).open("rb") as file:
            # Shared and for a moment only: one who asks at the same time must not be taken for it.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _path(config: Config, slot: str) -> Path:
    return config.site.data_folder / "locks" / f"{slot.replace('/', '-')}.lock"
