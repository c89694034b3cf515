"""Files on their way out of the spool: set aside before their rows go, then removed or put back.

Owns the spool's folder ``removing``. A kill at any moment leaves every file of a study either
where its row says or here; ``settle_removals`` tells by the rows which of the two is right.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from sqlalchemy import Connection, select

from dicom_io.errors import UnreadableInstance
from storage import schema
from storage.contents import content_digest, holds
from storage.database import Database
from storage.durable import make_folders, sync_folder
from storage.errors import translated_file_error
from storage.spool import Spool


def set_aside(spool: Spool, relative_paths: Iterable[str]) -> None:
    """Move these files out of their study; when this returns the move survives a power failure.

    Files that are gone already are no error, and other files of the study stay.
    """
    touched: set[Path] = set()
    try:
        for relative in relative_paths:
            source, target = spool.inside(relative), _aside(spool, relative)
            make_folders(target.parent)
            with suppress(FileNotFoundError):
                source.rename(target)
                touched |= {source.parent, target.parent}
        for folder in touched:
            sync_folder(folder)
    except OSError as error:
        raise translated_file_error(error, f"move files of {spool.folder}") from error
    _remove_empty(folder for folder in touched if _removing(spool) not in folder.parents)


def remove_set_aside(spool: Spool, relative_paths: Iterable[str]) -> int:
    """Remove files that were set aside; return the bytes freed."""
    freed = 0
    folders: set[Path] = set()
    try:
        for relative in relative_paths:
            path = _aside(spool, relative)
            folders.add(path.parent)
            with suppress(FileNotFoundError):
                size = path.stat().st_size
                path.unlink()
                freed += size
    except OSError as error:
        raise translated_file_error(error, f"remove files of {spool.folder}") from error
    _remove_empty(folders)
    return freed


def settle_removals(database: Database, spool: Spool) -> int:
    """Finish what a killed purge began; return how many files were set aside.

    What still has its row goes back to its place: the rows were not removed. All else goes.
    """
    aside = _files_aside(spool)
    if not aside:
        return 0
    # Under the write lock no purge is between its files and its rows.
    with database.write() as connection:
        kept = _recorded(connection, aside)
        for relative in sorted(kept):
            _put_back(spool, relative)
        remove_set_aside(spool, sorted(aside - kept))
    return len(aside)


def _recorded(connection: Connection, relative_paths: set[str]) -> set[str]:
    by_study: dict[str, set[str]] = defaultdict(set)
    for relative in relative_paths:
        by_study[Path(relative).parts[1]].add(relative)
    found: set[str] = set()
    for uid, paths in by_study.items():
        for table in (schema.instance, schema.instance_conflict):
            query = select(table.c.path).where(table.c.study_instance_uid == uid)
            found |= paths.intersection(connection.scalars(query))
    return found


def _put_back(spool: Spool, relative: str) -> None:
    source, target = _aside(spool, relative), spool.inside(relative)
    try:
        make_folders(target.parent)
        try:
            os.link(source, target)
        except FileExistsError:
            # The same instance was sent again meanwhile. Other content stays here: both are kept.
            if not _are_same(source, target):
                return
        sync_folder(target.parent)
        source.unlink()
    except OSError as error:
        raise translated_file_error(error, f"put back {target}") from error
    _remove_empty([source.parent])


def _are_same(source: Path, target: Path) -> bool:
    """True when both hold the same content; one that its disk damaged has no content."""
    try:
        return holds(source, content_digest(target))
    except UnreadableInstance:
        return False


def _files_aside(spool: Spool) -> set[str]:
    removing = _removing(spool)
    return {
        path.relative_to(removing).as_posix()
        for path in removing.glob("studies/*/*/*.dcm")
        if path.is_file()
    }


def _removing(spool: Spool) -> Path:
    return spool.folder / "removing"


def _aside(spool: Spool, relative: str) -> Path:
    spool.inside(relative)
    return _removing(spool) / relative


def _remove_empty(folders: Iterable[Path]) -> None:
    """Remove series folders that became empty, and then their study's."""
    for series in folders:
        for folder in (series, series.parent):
            with suppress(OSError):  # not empty, or gone
                folder.rmdir()
