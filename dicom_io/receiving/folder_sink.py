"""A sink that keeps every instance as one file in one folder.

Owns a small archive, enough to play the PACS in a demonstration or a test. Knows nothing of
studies, indexes or disk limits; the daemon's own spool is another sink.
"""

from __future__ import annotations

from pathlib import Path

from dicom_io.receiving.instances import STORED, ReceivedInstance, StoreAnswer
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

    def store(self, received: ReceivedInstance) -> StoreAnswer:
        """Write the file under its final name in one step, so that no reader sees half of it."""
        name = checked_uid(received.sop_instance_uid, "SOPInstanceUID")
        unfinished = self.folder / f".{name}.{received.association_id}.part"
        with unfinished.open("wb") as file:
            file.write(file_prefix(received))
            file.write(received.data_set)
        unfinished.replace(self.folder / f"{name}.dcm")
        return STORED

    def paths(self) -> list[Path]:
        """Return the files held, by name."""
        return sorted(self.folder.glob("*.dcm"))
