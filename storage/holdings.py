"""What this installation may vouch for: instances that are indexed, present, whole and unambiguous.

Owns the judgement on one request for storage commitment, by index and spool together. Must not
know who asks, nor what is said to them.
"""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, select

from dicom_io.commitment import FailedReference, Reference
from dicom_io.statuses import FailureReasonValues
from storage import schema
from storage.database import Database
from storage.errors import SpoolFailure, translated_file_error
from storage.prepared import among, as_list
from storage.spool import Spool, conflicting_uid

_FEW = 8
"""Up to so many names are looked up one by one; for more, a folder is read once."""


@dataclass(frozen=True, slots=True)
class Examination:
    """What was found of the instances asked about."""

    committed: tuple[Reference, ...]
    """Synced under their final name, of the class asked for, as large as indexed."""
    failed: tuple[FailedReference, ...]
    unsettled: tuple[Reference, ...]
    """In the spool and not in the index yet, or another content of them: ask again in a moment."""


def examine(database: Database, spool: Spool, references: Sequence[Reference]) -> Examination:
    """Judge each reference by the index, the file, and the spool where the index knows nothing.

    The index may lag behind the spool by a moment, because rows are written in batches. What is in
    neither is not here: Success was answered for no instance that is not in the spool.

    Raises
    ------
    StorageError
        Neither the one nor the other can be said now: try again.
    """
    uids = list(dict.fromkeys(reference.sop_instance_uid for reference in references))
    with database.read() as connection:
        rows = _rows_of(connection, uids)
        disputed = _disputed(connection, rows)
    unknown = in_spool(spool, [uid for uid in uids if uid not in rows])
    unknown |= _with_unrecorded_conflict(spool, rows, disputed)
    committed, failed, unsettled = [], [], []
    for reference in references:
        uid = reference.sop_instance_uid
        if uid in unknown:
            unsettled.append(reference)
            continue
        reason = _reason(spool, reference, rows.get(uid, ()), is_disputed=uid in disputed)
        if reason is None:
            committed.append(reference)
        else:
            failed.append(FailedReference(reference, reason))
    return Examination(tuple(committed), tuple(failed), tuple(unsettled))


def in_spool(spool: Spool, sop_instance_uids: Collection[str]) -> set[str]:
    """Return those that have a file under their final name, whatever study they belong to.

    Looks into every series: for the few instances that the index does not know.
    """
    wanted = {f"{uid}.dcm": uid for uid in sop_instance_uids}
    found: set[str] = set()
    if not wanted:
        return found
    studies = spool.folder / "studies"
    if not studies.is_dir():
        raise SpoolFailure(f"{studies} is not there: check the spool's disk")
    try:
        for series in _series_folders(os.fspath(studies)):
            found |= _held(series, wanted)
    except OSError as error:
        raise translated_file_error(error, f"list {studies}") from error
    return found


def _with_unrecorded_conflict(spool: Spool, rows: _Rows, disputed: Collection[str]) -> set[str]:
    """Return those that have other content in the spool, of which the index knows nothing yet."""
    asked: dict[str, set[str]] = defaultdict(set)
    for uid in rows.keys() - disputed:
        asked[os.fspath(spool.inside(rows[uid][0].path).parent)].add(uid)
    found: set[str] = set()
    for folder, uids in asked.items():
        try:
            names = _listed(folder)
        except OSError as error:
            raise translated_file_error(error, f"list {folder}") from error
        found |= uids & {uid for name in names if (uid := conflicting_uid(name))}
    return found


def _held(series: str, wanted: dict[str, str]) -> set[str]:
    names = wanted.keys() & set(_listed(series)) if len(wanted) > _FEW else wanted.keys()
    return {wanted[name] for name in names if os.path.lexists(os.path.join(series, name))}  # noqa: PTH118 - for every series


def _series_folders(studies: str) -> Iterator[str]:
    for study in _listed(studies):
        folder = f"{studies}/{study}"
        yield from (f"{folder}/{series}" for series in _listed(folder))


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 - called for every series of the spool
    except (FileNotFoundError, NotADirectoryError):
        return []


@dataclass(frozen=True, slots=True)
class _Indexed:
    study_instance_uid: str
    sop_class_uid: str
    path: str
    size: int


_Rows = dict[str, list[_Indexed]]


_INSTANCES = schema.instance.c
_INDEXED = select(
    _INSTANCES.sop_instance_uid,
    _INSTANCES.study_instance_uid,
    _INSTANCES.sop_class_uid,
    _INSTANCES.path,
    _INSTANCES.size,
).where(among(_INSTANCES.sop_instance_uid, "sop_instance_uids"))
_CONFLICTING = select(schema.instance_conflict.c.sop_instance_uid).where(
    among(schema.instance_conflict.c.study_instance_uid, "study_instance_uids")
)


def _rows_of(connection: Connection, uids: Sequence[str]) -> _Rows:
    rows: _Rows = defaultdict(list)
    for row in connection.execute(_INDEXED, {"sop_instance_uids": as_list(uids)}):
        rows[row.sop_instance_uid].append(
            _Indexed(row.study_instance_uid, row.sop_class_uid, row.path, row.size)
        )
    return dict(rows)


def _disputed(connection: Connection, rows: _Rows) -> set[str]:
    """Return the UIDs under which more than one content is here."""
    studies = sorted({row.study_instance_uid for each in rows.values() for row in each})
    disputed = {uid for uid, each in rows.items() if len(each) > 1}
    found = connection.scalars(_CONFLICTING, {"study_instance_uids": as_list(studies)})
    return disputed | (rows.keys() & set(found))


def _reason(
    spool: Spool,
    reference: Reference,
    rows: Sequence[_Indexed],
    *,
    is_disputed: bool,
) -> FailureReasonValues | None:
    if not rows:
        return FailureReasonValues.NO_SUCH_INSTANCE
    if all(row.sop_class_uid != reference.sop_class_uid for row in rows):
        return FailureReasonValues.CLASS_INSTANCE_CONFLICT
    if is_disputed:
        # Which of the contents the requester means to delete cannot be known.
        return FailureReasonValues.PROCESSING_FAILURE
    return _reason_of_file(spool, rows[0].path, rows[0].size)


def _reason_of_file(spool: Spool, relative_path: str, size: int) -> FailureReasonValues | None:
    path = spool.inside(relative_path)
    try:
        found = path.lstat()
    except FileNotFoundError as error:
        if not (spool.folder / "studies").is_dir():
            raise SpoolFailure(f"{spool.folder} is not there: check the spool's disk") from error
        return FailureReasonValues.NO_SUCH_INSTANCE
    except OSError as error:
        raise translated_file_error(error, f"look at {path}") from error
    if not stat.S_ISREG(found.st_mode) or found.st_size != size:
        return FailureReasonValues.PROCESSING_FAILURE
    return None
