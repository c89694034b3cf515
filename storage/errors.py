"""Errors of durable state, hung below ``StorageError`` in the tree of ``dicom_io.errors``.

Owns the translation of SQLite's, SQLAlchemy's and the file system's exceptions; knows no table.

    StorageError
    ├── DatabaseMissing         there is no database at the configured path
    ├── DatabaseNewer           written by a newer medimgd than this one
    ├── DatabaseOlder           has to be migrated before this program can use it
    ├── DatabaseBusy            another process held the write lock too long; try again
    ├── DatabaseUnavailable     the file or its disk failed; try again
    ├── DatabaseCorrupt         the file is no database, or is damaged
    ├── ConstraintBroken        a row contradicts another, or holds what no column takes
    ├── SpoolFailure            the spool's disk failed; the sender is told to try again
    │   └── SpoolFull           the spool's disk has no room left
    ├── IllegalMove             a state machine does not allow this move to this actor
    ├── LeaseLost               somebody else holds this study or job now
    ├── ImagesRemoved           retention removed the images this would need
    ├── ImagesLost              no image of the study is known but conflicting ones
    ├── TensorDamaged           a prepared input cannot be read back; prepare it again
    ├── TooManyCommitments      as many reports of storage commitment are owed as allowed
    └── NotFound                no such study, job, result, delivery or commitment
"""

from __future__ import annotations

import errno
import sqlite3
from typing import ClassVar

from dicom_io.errors import MedimgdError


class StorageError(MedimgdError):
    """Durable state could not be read or changed."""

    retryable: ClassVar[bool] = False


class DatabaseMissing(StorageError):
    """There is no database at the configured path."""

    retryable = False


class DatabaseNewer(StorageError):
    """The database was written by a newer medimgd than this one."""

    retryable = False


class DatabaseOlder(StorageError):
    """The database has to be migrated before this program can use it."""

    retryable = False


class DatabaseBusy(StorageError):
    """Another process held the write lock for longer than the busy timeout."""

    retryable = True


class DatabaseUnavailable(StorageError):
    """The database file cannot be opened, or its disk failed or is full."""

    retryable = True


class DatabaseCorrupt(StorageError):
    """The file is not a database, or is damaged."""

    retryable = False


class ConstraintBroken(StorageError):
    """A row contradicts another one or holds what no column takes; nothing was written."""

    retryable = False


class SpoolFailure(StorageError):
    """The spool's disk failed; nothing was stored and the sender is told to try again."""

    retryable = True


class SpoolFull(SpoolFailure):
    """The spool's disk has no room left; nothing was stored."""

    retryable = True


class IllegalMove(StorageError):
    """A state machine does not allow this move to this actor."""

    retryable = False


class LeaseLost(StorageError):
    """The lease ran out, or the study changed meanwhile; drop the work, it will be done again."""

    retryable = False


class ImagesRemoved(StorageError):
    """Retention removed the images that this would need; the study has to be sent again."""

    retryable = False


class ImagesLost(StorageError):
    """No image is known of a study but conflicting ones; it has to be sent again."""

    retryable = False


class TensorDamaged(StorageError):
    """A prepared input is missing or cannot be read back; the study has to be prepared again."""

    retryable = False


class TooManyCommitments(StorageError):
    """As many reports of storage commitment are owed as allowed; the requester asks again later."""

    retryable = True


class NotFound(StorageError):
    """No such study, job, result, delivery or commitment."""

    retryable = False


_BUSY_CODES = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_CORRUPT_CODES = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def translated_database_error(error: BaseException | None, where: str) -> StorageError:
    """Return the ``StorageError`` for a driver's exception; the caller raises it from `error`.

    Only SQLite's own sentence is repeated, never bound values: those may name a patient.

    Parameters
    ----------
    error : BaseException or None
        What the DBAPI driver raised.
    where : str
        The database file, for the message.
    """
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # extended codes keep the base code here
    said = f"{type(error).__name__}: {error}" if isinstance(error, sqlite3.Error) else "no detail"
    if code in _BUSY_CODES:
        return DatabaseBusy(f"{where} is locked by another process ({said}); try again")
    if code in _CORRUPT_CODES:
        return DatabaseCorrupt(
            f"{where} is not a usable database ({said}); restore it, or move it aside: "
            "the spool is indexed again at the next start"
        )
    if isinstance(error, sqlite3.IntegrityError | sqlite3.DataError | sqlite3.InterfaceError):
        return ConstraintBroken(f"{where} refused a row ({said})")
    return DatabaseUnavailable(
        f"{where} could not be used ({said}); check the folder's permissions and the disk"
    )


def refused_value(error: BaseException, where: str) -> ConstraintBroken:
    """Return the error for a value no row can hold; the caller raises it from `error`.

    The value is not quoted: it may name a patient.
    """
    return ConstraintBroken(
        f"{where} cannot hold a value of this row ({type(error).__name__}): nothing of the batch "
        "was written; the value is outside what a column takes"
    )


def translated_file_error(error: OSError, action: str) -> SpoolFailure:
    """Return the ``SpoolFailure`` for an operating system error met while doing `action`."""
    name = errno.errorcode.get(error.errno or 0, "unknown")
    if error.errno in _FULL_ERRNOS:
        return SpoolFull(f"no room left to {action} ({name}): free space on the spool's disk")
    return SpoolFailure(f"could not {action} ({name}): check the spool's disk and permissions")
