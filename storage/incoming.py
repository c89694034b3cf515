"""One instance being written into the spool, piece by piece, as it arrives.

Owns the order of write, hash, check, sync and move. Must not know where files finally lie: the
spool does.

What survives: nothing of an instance is visible under ``studies`` before its bytes are synced
(``fdatasync``), it gets its name in one step, and ``finish`` returns only when that name is synced
as well (``fsync`` of the folder). So a killed process leaves whole files and temporary ones; after
a power failure every instance that ``finish`` returned for is there, on a disk that honours
flushes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from dicom_io.errors import MedimgdError, UnreadableInstance
from dicom_io.header import read_header
from dicom_io.header_scan import scan_header
from dicom_io.vocabulary import InstanceHeader
from storage.arrivals import Stored, StoreOutcome
from storage.contents import ContentDigest
from storage.durable import start_writing
from storage.errors import translated_file_error

HEAD_BYTES = 32 * 1024
"""The beginning of the data set that is kept in memory for its header; others are read back."""
START_WRITING_EVERY_BYTES = 240 * 1024
"""The disk writes while the rest still arrives, so that the last sync has less to wait for. A bit
less than two fragments of the PDUs of 128 KiB that DCMTK sends: 256 KiB would wait for a third."""
SYNC_EVERY_BYTES = 64 * 1024 * 1024
"""A large instance is synced as it grows: its sender would time out waiting for gigabytes to reach
the disk at the end, and the kernel would hold them in memory until then."""


class FilingPlace(Protocol):
    """What the spool does for a file being written."""

    folder: Path

    def require_room(self) -> None:
        """Raise ``SpoolFull`` when the watermark is reached."""
        ...

    def file(self, part: str, header: InstanceHeader, digest: str, size: int) -> Stored:
        """Give a synced temporary file its final name, and that name its durability."""
        ...


class IncomingFile:
    """A temporary file that becomes an instance at `finish`, or nothing at `discard`.

    Parameters
    ----------
    place : FilingPlace
        The spool.
    part : str
        The temporary file; must not exist.
    prefix : bytes
        Preamble, ``DICM`` and group 2.
    transfer_syntax_uid : str
        How the data set is encoded.

    Raises
    ------
    SpoolFailure
        The file cannot be made.
    """

    def __init__(
        self, place: FilingPlace, part: str, prefix: bytes, transfer_syntax_uid: str
    ) -> None:
        self._place = place
        self._part = part
        self._transfer_syntax_uid = transfer_syntax_uid
        self._head = bytearray()
        self._prefix_size = len(prefix)
        self._data_set_size = 0
        self._unsynced = self._unstarted = 0
        self._digest = ContentDigest(transfer_syntax_uid)
        try:
            self._descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except OSError as error:
            raise self._failure(error) from error
        self._is_open = self._is_temporary = True
        try:
            self._append(memoryview(prefix))
        except OSError as error:
            self.discard()
            raise self._failure(error) from error

    def write(self, fragment: memoryview) -> None:
        """Append the next bytes of the data set.

        Raises
        ------
        SpoolFull, SpoolFailure
            The instance cannot be stored; `discard` what there is.
        """
        if len(self._head) < HEAD_BYTES:
            self._head += fragment[: HEAD_BYTES - len(self._head)]
        try:
            self._append(fragment)
            if self._unsynced >= SYNC_EVERY_BYTES:
                os.fdatasync(self._descriptor)
                self._unsynced = 0
                self._place.require_room()
        except OSError as error:
            raise self._failure(error) from error
        self._digest.update(fragment)
        self._data_set_size += len(fragment)

    def study_instance_uid(self) -> str:
        """Return the study that this says it belongs to; empty where that is not certain yet."""
        try:
            return self._header(is_whole=False).study_instance_uid
        except MedimgdError:
            return ""

    def finish(self, validate: Callable[[InstanceHeader], None] | None = None) -> Stored:
        """Store the instance; when this returns, it survives a power failure.

        Parameters
        ----------
        validate : callable, optional
            Given the header before anything gets its final name; whatever it raises is passed
            on and nothing is stored. For comparing the command's UIDs with the data set's.

        Raises
        ------
        SpoolFull, SpoolFailure
            Nothing was stored; the sender should try again.
        UnreadableInstance, InvalidUID
            The data set cannot be filed; nothing was stored.
        """
        try:
            header = self._header(is_whole=self._data_set_size == len(self._head))
            if validate is not None:
                validate(header)
            os.fdatasync(self._descriptor)
            self._close()
            size = self._prefix_size + self._data_set_size
            stored = self._place.file(self._part, header, self._digest.text(), size)
            self._is_temporary = stored.outcome is not StoreOutcome.NEW
            return stored
        except OSError as error:
            raise self._failure(error) from error

    def discard(self) -> None:
        """Remove the temporary file, if it still is one."""
        with suppress(OSError):
            self._close()
        if self._is_temporary:
            # What it held bears another name by now, or must leave nothing behind.
            self._is_temporary = False
            with suppress(OSError):
                Path(self._part).unlink()

    def _header(self, *, is_whole: bool) -> InstanceHeader:
        """Read the header from memory where that is certain, else from the file."""
        scanned = scan_header(self._head, self._transfer_syntax_uid, is_whole=is_whole)
        if scanned is not None:
            return scanned
        try:
            return read_header(Path(self._part))
        except UnreadableInstance as error:
            # The sender reads 64 characters of it, and the temporary file is gone by then.
            raise UnreadableInstance(str(error).removeprefix(f"{self._part}: ")) from error

    def _append(self, fragment: memoryview) -> None:
        rest = fragment
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]
        self._unsynced += len(fragment)
        self._unstarted += len(fragment)
        if self._unstarted >= START_WRITING_EVERY_BYTES:
            start_writing(self._descriptor)
            self._unstarted = 0

    def _close(self) -> None:
        if self._is_open:
            self._is_open = False
            os.close(self._descriptor)

    def _failure(self, error: OSError) -> Exception:
        return translated_file_error(error, f"store an instance in {self._place.folder}")
