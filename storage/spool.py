"""The spool: received instances as files, synced under their final name before Success.

Owns names, folders and what is found again in them; ``incoming`` writes a single file. Knows
nothing of the database: the files alone are enough to index everything again.
"""

from __future__ import annotations

import itertools
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
from storage.contents import (
    FILE_META_START,
    DigestAlgorithm,
    content_digest,
    holds,
    short_form,
    stated_transfer_syntax,
)
from storage.durable import make_folders, move_without_replacing, sync_folder, sync_way_to
from storage.errors import SpoolFailure, SpoolFull, translated_file_error
from storage.incoming import IncomingFile

DEFAULT_MIN_FREE_BYTES = 2 * 1024**3
"""Below this much free disk nothing more is accepted: the database needs room to finish."""

_STUDIES = "studies"
_MOVE_ATTEMPTS = 8
"""Retention may remove an empty folder between its making and the move into it."""
_MOST_REMEMBERED = 4096
"""Series whose folders are known to be synced; forgetting one costs two syncs."""
_REMEMBERED_SECONDS = 60.0
"""How long that is believed: retention may have removed a folder since, and another receiver made
it again without having synced it yet. Retention lets whole days pass after the last instance."""

_FILE_PATTERN = re.compile(r"(?P<uid>[0-9.]+)(?:\.conflict-(?P<digest>[0-9a-f]{12}))?\.dcm")
_PART_PATTERN = re.compile(
    r"(?P<slot>[A-Za-z0-9_-]+)\.(?P<host>[A-Za-z0-9_-]+)\.(?P<pid>[0-9]+)\.[0-9a-f]+\.part"
)
_ABANDONED_SECONDS = 86400.0
"""No instance takes a day to write: older temporary files of hosts that are gone are swept."""


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
        self._part_stem = f"{self._incoming}/{self._slot}.{self._host}"
        # A successor may have the same slot and process id while the old files still lie there.
        self._life = secrets.token_hex(4)
        self._numbers = itertools.count()
        self._studies = folder / _STUDIES
        self._synced_folders: dict[str, float] = {}
        try:
            for each in (self._incoming, self._studies):
                make_folders(each)
            sync_way_to(self._studies)
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

    def begin(self, prefix: bytes, transfer_syntax_uid: str) -> IncomingFile:
        """Begin an instance that arrives piece by piece.

        Parameters
        ----------
        prefix : bytes
            Preamble, ``DICM`` and group 2.
        transfer_syntax_uid : str
            How the data set is encoded; part of what makes two instances the same.

        Raises
        ------
        SpoolFull, SpoolFailure
            Nothing can be stored now; the sender should try again.
        """
        self.require_room()
        part = f"{self._part_stem}.{os.getpid()}.{self._life}{next(self._numbers):08x}.part"
        return IncomingFile(self, part, prefix, transfer_syntax_uid)

    def store(
        self,
        prefix: bytes,
        data_set: bytes | bytearray | memoryview,
        validate: Callable[[InstanceHeader], None] | None = None,
    ) -> Stored:
        """Store an instance that is here as a whole; arguments and errors as of its steps."""
        group = prefix[FILE_META_START:]
        incoming = self.begin(prefix, stated_transfer_syntax(group, self.folder))
        try:
            incoming.write(memoryview(data_set).cast("B"))
            return incoming.finish(validate)
        finally:
            incoming.discard()

    def require_room(self) -> None:
        """Raise ``SpoolFull`` when the watermark is reached."""
        if not self.has_room():
            raise SpoolFull(
                f"less than {self.min_free_bytes} bytes are free on the disk of "
                f"{self.folder}: free space, or shorten the retention time"
            )

    def file(self, part: str, header: InstanceHeader, digest: str, size: int) -> Stored:
        """Give a synced temporary file its final name, and that name its durability.

        Raises
        ------
        InvalidUID
            A UID of the header cannot become a path.
        OSError
            The disk failed; the file may already bear its name, which harms nobody.
        """
        # Checked here, at the one place where a UID becomes a path.
        study = checked_uid(header.study_instance_uid, "StudyInstanceUID")
        series = checked_uid(header.series_instance_uid, "SeriesInstanceUID")
        instance = checked_uid(header.sop_instance_uid, "SOPInstanceUID")
        folder = f"{_STUDIES}/{study}/{series}"
        name = f"{instance}.dcm"
        if self._move(part, folder, name):
            outcome = StoreOutcome.NEW
        elif holds(self.folder / folder / name, digest):
            # Its writer may not have come to sync the folder yet, and we answer Success first.
            self._sync(f"{self.folder}/{folder}")
            outcome = StoreOutcome.IDENTICAL
        else:
            name = self._keep_beside(part, folder, instance, digest)
            outcome = StoreOutcome.CONFLICT
        relative = f"{folder}/{name}"
        return Stored(self.folder / relative, relative, header, outcome, digest, size)

    def _keep_beside(self, part: str, folder: str, instance: str, digest: str) -> str:
        """Keep a content whose UID is taken, unless it is kept already; return its name."""
        name, series = _conflict_name(instance, digest), self.folder / folder
        # Only beside a conflict of another name: to digest once more takes seconds for gigabytes.
        if not (series / name).exists() and any(series.glob(f"{instance}.conflict-*.dcm")):
            earlier = series / (_earlier_conflict_name(instance, Path(part)) or name)
            if earlier.exists() and self._kept_before(part, earlier, instance, digest):
                return earlier.name
        if not self._move(part, folder, name):
            self._confirm_conflict(series / name, digest)
        return name

    def _kept_before(self, part: str, earlier: Path, instance: str, digest: str) -> bool:
        """True when an earlier version kept this content under the name it gave that.

        Where the disk damaged it since, `part` takes its place: the name, and so the row, are this
        content's. Two files of it would outlive each other, for it has one row.
        """
        if not holds(earlier, digest):
            if _earlier_conflict_name(instance, earlier) == earlier.name:
                return False  # Sound, and of the same first digits only.
            Path(part).replace(earlier)
        self._sync(str(earlier.parent))
        return True

    def _confirm_conflict(self, path: Path, digest: str) -> None:
        if not holds(path, digest):
            raise SpoolFailure(f"{path} is damaged: move it away, then it can be received again")
        self._sync(str(path.parent))

    def _move(self, part: str, folder: str, name: str) -> bool:
        """Give `part` its final name; False when the name is taken. Never overwrites."""
        target = f"{self.folder}/{folder}"
        for _ in range(_MOVE_ATTEMPTS):
            try:
                move_without_replacing(part, f"{target}/{name}")
            except FileExistsError:
                return False
            except FileNotFoundError:
                self._synced_folders.pop(target, None)
                Path(target).mkdir(parents=True, exist_ok=True)
                continue
            self._sync(target)
            return True
        raise SpoolFailure(f"the folder {target} vanishes as soon as it is made")

    def _sync(self, series_folder: str) -> None:
        """Make the names in a series' folder survive, and those of the folder and its study.

        Who made a folder may not have come to sync its name yet, or never will: that a folder is
        there says nothing. So every process syncs each series with its way once a minute.
        """
        sync_folder(series_folder)
        synced_at = self._synced_folders.get(series_folder, -_REMEMBERED_SECONDS)
        now = time.monotonic()
        if now - synced_at < _REMEMBERED_SECONDS:
            return
        sync_folder(Path(series_folder).parent)
        sync_folder(self._studies)
        if len(self._synced_folders) >= _MOST_REMEMBERED:
            self._synced_folders.clear()
        self._synced_folders[series_folder] = now

    def sync_names(self, paths: Iterable[Path]) -> None:
        """Make the names of stored files survive, whoever gave them.

        Raises
        ------
        SpoolFailure
            The disk failed.
        """
        try:
            for folder in sorted({str(path.parent) for path in paths}):
                self._sync(folder)
        except OSError as error:
            raise translated_file_error(error, f"sync a folder of {self._studies}") from error

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
        if not _is_alive(pid):
            return True
        # In a container a successor has its predecessor's process id, and elsewhere another program
        # may have it: only the time tells.
        is_ours = match["slot"] == self._slot or pid == os.getpid()
        return is_ours and written_at < self._opened_at

    def inside(self, relative_path: str) -> Path:
        """Return where a stored file lies; ``SpoolFailure`` for a path that leaves the studies."""
        path = self.folder / relative_path
        if ".." in path.parts or not path.is_relative_to(self._studies):
            raise SpoolFailure(f"{relative_path!r} is not a path of the spool {self.folder}")
        return path


def _conflict_name(instance: str, digest: str) -> str:
    return f"{instance}.conflict-{short_form(digest)}.dcm"


def _earlier_conflict_name(instance: str, path: Path) -> str:
    """Return how versions up to 0.1.0 named what this file holds; empty where its head is damaged.

    The name is made and not searched for: a sender of many contents under one UID would have each
    compared with all.
    """
    try:
        return _conflict_name(instance, content_digest(path, DigestAlgorithm.SHA256))
    except UnreadableInstance:
        return ""


def is_conflict(path: Path) -> bool:
    """True for a file kept beside another of the same UID."""
    return bool(conflicting_uid(path.name))


def conflicting_uid(name: str) -> str:
    """Return the SOP Instance UID of a file kept beside another; empty for every other name."""
    match = _FILE_PATTERN.fullmatch(name)
    return match["uid"] if match is not None and match["digest"] is not None else ""


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
