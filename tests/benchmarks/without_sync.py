"""``python -m tests.benchmarks.without_sync run receiver ...``: medimgd, its syncs without effect.

For measuring what durability costs: medimgd has no such setting. Everything else runs as shipped;
SQLite, which calls the system by itself, goes on syncing the index.
"""

from __future__ import annotations

import os

import storage.incoming
from daemon.cli import main


def _skip(descriptor: object) -> None:
    del descriptor


if __name__ == "__main__":
    os.fsync = os.fdatasync = _skip  # type: ignore[assignment]
    storage.incoming.start_writing = _skip
    main()
