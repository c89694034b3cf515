"""One process per slot and data folder: a second ``medimgd run`` must not undo the first.

Owns the lock files. The kernel releases a lock when its process ends, however it ends.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from daemon.config import Config
from daemon.errors import SlotTaken


@contextmanager
def hold_slot(config: Config, slot: str) -> Iterator[None]:
    """Hold the lock of a slot while the block runs.

    Raises
    ------
    SlotTaken
        Another process holds it; the message names it and what to do.
    """
    folder = config.site.data_folder / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{slot.replace('/', '-')}.lock"
    with path.open("a+", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise SlotTaken(
                f"{slot} runs already on {config.site.data_folder} (process {holder}): stop it, "
                "use another data folder, or give this process a --slot of its own"
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
