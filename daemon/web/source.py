"""The database behind the page: opened read-only when it is there, again when it was replaced."""

from __future__ import annotations

import threading
from pathlib import Path

from storage.connections import require_database
from storage.database import Database, open_database


class DatabaseSource:
    """Hands out one read-only database for all requests.

    Parameters
    ----------
    path : Path
        Where it lies or will lie.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._database: Database | None = None
        self._file: tuple[int, int] | None = None
        self._opening = threading.Lock()

    def open(self) -> Database:
        """Return the database.

        Raises
        ------
        storage.errors.StorageError
            It does not exist yet, or cannot be read.
        """
        require_database(self._path)
        found = self._path.stat()
        file = (found.st_dev, found.st_ino)
        with self._opening:
            if self._database is None or file != self._file:
                self._close()
                self._database, self._file = open_database(self._path, read_only=True), file
            return self._database

    def close(self) -> None:
        """Close what is open."""
        with self._opening:
            self._close()

    def _close(self) -> None:
        if self._database is not None:
            self._database.close()
        self._database = self._file = None
