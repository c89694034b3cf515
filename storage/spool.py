"""The spool: received instances as files, synced under their final name before Success.

Owns names, folders and the order of write, sync, link and sync. Knows nothing of the database;
the files alone are enough to index everything again.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from dicom_io.errors import InvalidUID, UnreadableInstance
from dicom_io.header import read_header
from dicom_io.vocabulary import InstanceHeader, checked_uid
from storage.arrivals import Stored, StoreOutcome
from storage.errors import SpoolFailure, SpoolFull, translated_file_error

DEFAULT_MIN_FREE_BYTES = 2 * 1024**3
"""Below this much free disk nothing more is accepted: the database needs room to finish."""

_CHUNK_BYTES = 1024 * 1024
_LINK_ATTEMPTS = 8
"""Retention may remove an empty folder between its making and the link into it."""

_FILE_PATTERN = re.compile(r"(?P<uid>[0-9.]+)(?:\.conflict-(?P<digest>[0-9a-f]{12}))?\.dcm")
_PART_PATTERN = re.compile(
    r"(?P<slot>[A-Za-z0-9_-]+)\.(?P<host>[A-Za-z0-9_-]+)\.(?P<pid>[0-9]+)\.[0-9a-f]+\.part"
)
_ABANDONED_SECONDS = 86400.0
"""No instance takes a day to write: older temporary files of hosts that are gone are swept."""

_GROUP_LENGTH_END = 144
"""Preamble 128, DICM 4, File Meta Information Group Length element 12 (PS3.10 7.1)."""


class Spool:
    """A folder of instances, shared by any number of receivers on one file system.

    Parameters
    ----------
    folder : Path
        Made when absent; below it ``incoming`` and ``studies``.
    min_free_bytes : int
        The watermark.
    slot : str
        Whose temporary files these are; unique among the receivers that share the folder.
    """

    def __init__(
        self,
        folder: Path,
        min_free_bytes: int = DEFAULT_MIN_FREE_BYTES,
        *,
        slot: str = "receiver",
    ) -> None:
        self.folder = folder
        self.min_free_bytes = min_free_bytes
        self._slot = _plain_name(slot)
        self._host = _plain_name(os.uname().nodename)
        self._opened_at = time.time()
        self._incoming = folder / "incoming"
        self._studies = folder / "studies"
        try:
            for each in (self._incoming, self._studies):
                make_folders(each)
        except OSError as error:
            raise translated_file_error(error, f"create the spool {folder}") from error

    def absolute(self, relative_path: str) -> Path:
        """Return where the file of an index row lies."""
        return self.folder / relative_path

    def free_bytes(self) -> int:
        """Return how much room the spool's disk has left for us."""
        try:
            return shutil.disk_usage(self.folder).free
        except OSError as error:
            raise translated_file_error(error, f"measure the disk of {self.folder}") from error

    def has_room(self, size_hint: int = 0) -> bool:
        """True while an instance of this size leaves the watermark untouched."""
        return self.free_bytes() - size_hint >= self.min_free_bytes

    def store(
        self,
        prefix: bytes,
        data_set: bytes | bytearray | memoryview,
        validate: Callable[[InstanceHeader], None] | None = None,
    ) -> Stored:
        """Store one instance; when this returns, it survives a power failure.

        Parameters
        ----------
        prefix : bytes
            Preamble, ``DICM`` and group 2.
        data_set : bytes-like
            The encoded data set exactly as it was sent.
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
        if not self.has_room(len(prefix) + len(data_set)):
            raise SpoolFull(
                f"less than {self.min_free_bytes} bytes would stay free on the disk of "
                f"{self.folder}: free space, or shorten the retention time"
            )
        unique = f"{os.getpid()}.{secrets.token_hex(8)}"
        part = self._incoming / f"{self._slot}.{self._host}.{unique}.part"
        try:
            _write_synced(part, (prefix, data_set))
            header = read_header(part)
            if validate is not None:
                validate(header)
            digest = hashlib.sha256(f"{header.transfer_syntax_uid}\0".encode())
            digest.update(data_set)
            return self._file(part, header, digest.hexdigest(), len(prefix) + len(data_set))
        except OSError as error:
            raise translated_file_error(error, f"store an instance in {self.folder}") from error
        finally:
            # The instance has its own name by now, or it must leave nothing behind.
            with suppress(OSError):
                part.unlink()

    def _file(self, part: Path, header: InstanceHeader, sha256: str, size: int) -> Stored:
        series = self._series_folder(header)
        uid = checked_uid(header.sop_instance_uid, "SOPInstanceUID")
        target = series / f"{uid}.dcm"
        if self._link(part, target):
            outcome = StoreOutcome.NEW
        elif content_digest(target) == sha256:
            # Its writer may not have come to sync the folder yet, and we answer Success first.
            sync_folder(series)
            outcome = StoreOutcome.IDENTICAL
        else:
            target = series / f"{uid}.conflict-{sha256[:12]}.dcm"
            if not self._link(part, target):
                sync_folder(series)
            outcome = StoreOutcome.CONFLICT
        relative = target.relative_to(self.folder).as_posix()
        return Stored(target, relative, header, outcome, sha256, size)

    def _series_folder(self, header: InstanceHeader) -> Path:
        # Checked again here, at the one place where a UID becomes a path.
        study = checked_uid(header.study_instance_uid, "StudyInstanceUID")
        series = checked_uid(header.series_instance_uid, "SeriesInstanceUID")
        return self._studies / study / series

    def _link(self, part: Path, target: Path) -> bool:
        """Give `part` its final name; False when the name is taken. Never overwrites."""
        for _ in range(_LINK_ATTEMPTS):
            make_folders(target.parent)
            try:
                os.link(part, target)
            except FileExistsError:
                return False
            except FileNotFoundError:
                continue
            sync_folder(target.parent)
            return True
        raise SpoolFailure(f"the folder {target.parent} vanishes as soon as it is made")

    def stored_instances(self) -> Iterator[Path]:
        """Yield every stored file, study by study; conflicts after the file they contradict."""
        for uid in self.study_uids():
            yield from self.instances_of(uid)

    def study_uids(self) -> Iterator[str]:
        """Yield the UID of every study that has a folder; other people's folders are passed by."""
        for folder in _sorted(self._studies):
            with suppress(InvalidUID):
                yield checked_uid(folder.name, "StudyInstanceUID")

    def instances_of(self, study_instance_uid: str) -> Iterator[Path]:
        """Yield the stored files of one study."""
        study = self._studies / checked_uid(study_instance_uid, "StudyInstanceUID")
        for series in _sorted(study):
            for file in sorted(_sorted(series), key=lambda path: (is_conflict(path), path.name)):
                if _FILE_PATTERN.fullmatch(file.name):
                    yield file

    def read_stored(self, path: Path) -> Stored:
        """Return what ``store`` said of a file, read back from the file itself.

        Raises
        ------
        UnreadableInstance, InvalidUID
            The file was changed by somebody else, or its disk lost it.
        """
        header = read_header(path)
        outcome = StoreOutcome.CONFLICT if is_conflict(path) else StoreOutcome.NEW
        try:
            relative = path.relative_to(self.folder).as_posix()
            size = path.stat().st_size
            return Stored(path, relative, header, outcome, content_digest(path), size)
        except OSError as error:
            raise translated_file_error(error, f"read {path}") from error

    def sweep_incoming(self) -> int:
        """Remove temporary files that nobody writes any more; return how many.

        Those are this slot's own from before this object was made, those of dead processes on
        this host, and those of other hosts that are a day old. What they held was never
        acknowledged.
        """
        swept = 0
        for part in _sorted(self._incoming):
            with suppress(FileNotFoundError):
                if self._is_abandoned(part):
                    part.unlink()
                    swept += 1
        return swept

    def _is_abandoned(self, part: Path) -> bool:
        match = _PART_PATTERN.fullmatch(part.name)
        if match is None:
            return False
        written_at = part.stat().st_mtime
        if match["host"] != self._host:
            return time.time() - written_at > _ABANDONED_SECONDS
        pid = int(match["pid"])
        if match["slot"] == self._slot or pid == os.getpid():
            # In a container a successor has its predecessor's process id: only the time tells.
            return written_at < self._opened_at
        return not _is_alive(pid)

    def inside(self, relative_path: str) -> Path:
        """Return where a stored file lies; ``SpoolFailure`` for a path that leaves the studies."""
        path = self.folder / relative_path
        if ".." in path.parts or not path.is_relative_to(self._studies):
            raise SpoolFailure(f"{relative_path!r} is not a path of the spool {self.folder}")
        return path


def is_conflict(path: Path) -> bool:
    """True for a file kept beside another of the same UID."""
    match = _FILE_PATTERN.fullmatch(path.name)
    return match is not None and match["digest"] is not None


def content_digest(path: Path) -> str:
    """Return the SHA-256 over transfer syntax and data set of a stored Part 10 file.

    Group 2 is left out: it names the sender, and the same instance may come from two.

    Raises
    ------
    UnreadableInstance
        The file does not begin as Part 10 files do (PS3.10 7.1).
    """
    with path.open("rb") as file:
        head = file.read(_GROUP_LENGTH_END)
        group_length = int.from_bytes(head[-4:], "little")
        group = file.read(group_length)
        if head[128:138] != b"DICM\x02\x00\x00\x00UL" or len(group) != group_length:
            raise UnreadableInstance(f"{path} does not begin with a whole File Meta Information")
        digest = hashlib.sha256(f"{_transfer_syntax(group, path)}\0".encode())
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _transfer_syntax(group: bytes, path: Path) -> str:
    """Find Transfer Syntax UID (0002,0010) among explicit little-endian elements."""
    at = 0
    while at + 8 <= len(group):
        tag, vr = group[at : at + 4], group[at + 4 : at + 6]
        long_form = vr in (b"OB", b"UN", b"UT", b"UC", b"UR", b"SQ")
        start = at + (12 if long_form else 8)
        length = int.from_bytes(
            group[at + 8 : start] if long_form else group[at + 6 : start], "little"
        )
        if tag == b"\x02\x00\x10\x00":
            return group[start : start + length].rstrip(b"\0 ").decode("ascii", "replace")
        at = start + length
    raise UnreadableInstance(f"{path} names no TransferSyntaxUID (0002,0010)")


def _write_synced(path: Path, pieces: Iterable[bytes | bytearray | memoryview]) -> None:
    with path.open("xb", buffering=0) as file:
        for piece in pieces:
            _write_all(file.fileno(), memoryview(piece).cast("B"))
        os.fsync(file.fileno())


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


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


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sorted(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise translated_file_error(error, f"list {folder}") from error


def _plain_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "-", name)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
