"""What the spool says about one stored instance, as the index takes it up.

Owns two records between ``storage.spool`` and ``storage.studies``; imports no DICOM library.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from dicom_io.vocabulary import InstanceHeader


class StoreOutcome(StrEnum):
    """What storing an instance came to."""

    NEW = "new"
    IDENTICAL = "identical"
    """Data set and transfer syntax are already there, byte for byte; nothing was changed."""
    CONFLICT = "conflict"
    """The UID is taken by other content; this content is kept beside it."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One instance, synced to disk under its final name."""

    path: Path
    """Where the file lies."""
    relative_path: str
    """The same below the spool's folder, as the index keeps it."""
    header: InstanceHeader
    outcome: StoreOutcome
    content_digest: str
    """Over transfer syntax and encoded data set; group 2 says who sent it and is left out."""
    size: int
    """Bytes of the file."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A stored instance to be recorded."""

    stored: Stored
    association_id: str | None = None
    """The association it came by; None when the spool is indexed again."""
