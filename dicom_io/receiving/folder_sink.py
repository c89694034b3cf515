"""A sink that keeps every instance as one file in one folder.

Owns a small archive, enough to play the PACS in a demonstration or a test. Knows nothing of
studies, indexes or disk limits; the daemon's own spool is another sink.
"""

from __future__ import annotations

from pathlib import Path

from dicom_io.receiving.instances import STORED, StoreAnswer, StoreRequest
from dicom_io.receiving.part10 import file_prefix
from dicom_io.vocabulary import checked_uid


class FolderSink:
    """Stores ``<SOP Instance UID>.dcm``; the same instance again replaces the file.

    Parameters
    ----------
    folder : Path
        Created when it does not exist.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder

    def begin(self, request: StoreRequest) -> UnfinishedFile:
        """Open a hidden file beside the final one."""
        name = checked_uid(request.sop_instance_uid, "SOPInstanceUID")
        unfinished = self.folder / f".{name}.{request.association_id}.part"
        return UnfinishedFile(unfinished, self.folder / f"{name}.dcm", file_prefix(request))

    def paths(self) -> list[Path]:
        """Return the files held, by name."""
        return sorted(self.folder.glob("*.dcm"))


class UnfinishedFile:
    """One file being written; it gets its final name in one step, so no reader sees half of it."""

    def __init__(self, path: Path, target: Path, prefix: bytes) -> None:
        self._path = path
        self._target = target
        self._file = path.open("wb")
        self._file.write(prefix)

    def write(self, fragment: memoryview) -> None:
        """Append what arrived."""
        self._file.write(fragment)

    def finish(self) -> StoreAnswer:
        """Give the file its name."""
        self._file.close()
        self._path.replace(self._target)
        return STORED

    def discard(self) -> None:
        """Remove what was written."""
        self._file.close()
        self._path.unlink(missing_ok=True)
