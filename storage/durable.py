"""Names and folders that survive a power failure.

Owns the few file system calls whose order decides what is on the disk afterwards. Knows nothing of
instances; errors are the operating system's.
"""

from __future__ import annotations

import ctypes
import errno
import os
from contextlib import suppress
from pathlib import Path

_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_NOT_SUPPORTED = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP})
_CANNOT_START = _NOT_SUPPORTED | {errno.EPERM, errno.ESPIPE}
"""What a sandbox or an unusual file system says; the sync that follows needs none of it."""

_NOT_OURS = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.EINVAL})
"""What a folder says that we may not open, or whose file system has nothing to sync."""

_SYNC_FILE_RANGE_WRITE = 2

_libc = ctypes.CDLL(None, use_errno=True)
_renameat2_call = getattr(_libc, "renameat2", None)
_sync_file_range_call = getattr(_libc, "sync_file_range", None)
if _sync_file_range_call is not None:
    _sync_file_range_call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


def make_folders(folder: Path) -> None:
    """Make a folder and its parents, each new one synced into its parent."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for each in reversed(missing):
        with suppress(FileExistsError):
            each.mkdir()
        sync_folder(each.parent)


def sync_way_to(folder: Path) -> None:
    """Make every folder on the way to this one survive, whoever made it and when.

    A predecessor may have been killed between making a folder and syncing its name. The way ends
    at the mount point; folders that are not ours to open were there before us.
    """
    for parent in folder.resolve().parents:
        try:
            sync_folder(parent)
        except OSError as error:
            if error.errno not in _NOT_OURS:
                raise
        if parent.is_mount():
            break


def sync_folder(folder: str | Path) -> None:
    """Make the names in a folder survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def start_writing(descriptor: int) -> None:
    """Let the disk begin with what a file holds so far, and do not wait for it.

    Promises nothing: what must survive is synced afterwards, which then takes less time. Where the
    system cannot, nothing happens.

    Raises
    ------
    OSError
        The disk failed.
    """
    if _sync_file_range_call is None:
        return
    if _sync_file_range_call(descriptor, 0, 0, _SYNC_FILE_RANGE_WRITE) != 0:
        number = ctypes.get_errno()
        if number not in _CANNOT_START:
            raise OSError(number, os.strerror(number))


def move_without_replacing(source: str | Path, target: str | Path) -> None:
    """Give a file a new name on the same file system, in one step.

    ``os.rename`` would replace what bears the name already, and ``os.link`` leaves the old name to
    be removed: one more journal entry for every instance. Where the kernel or the file system has
    no such move, link and removal take its place.

    Raises
    ------
    FileExistsError
        The name is taken; nothing was changed.
    OSError
        The folder of the target does not exist, or the disk failed.
    """
    if _renameat2(source, target):
        return
    os.link(source, target)
    Path(source).unlink()


def _renameat2(source: str | Path, target: str | Path) -> bool:
    """Rename without replacing; False when this system cannot."""
    if _renameat2_call is None:
        return False
    names = os.fsencode(source), os.fsencode(target)
    if _renameat2_call(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_NOREPLACE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NOT_SUPPORTED:
        return False
    raise OSError(number, os.strerror(number), str(source), None, str(target))
