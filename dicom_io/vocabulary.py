"""The few records every package speaks in: UIDs, instance headers, tensors, findings.

Owns no behaviour beyond checking itself and imports no DICOM library, so that the command line
can load it in milliseconds. Field names are the snake_case form of the DICOM keyword.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from dicom_io.errors import InvalidUID

if TYPE_CHECKING:  # the command line loads this module and must not pay for NumPy
    import numpy as np
    import numpy.typing as npt

IMPLEMENTATION_CLASS_UID = "2.25.209381467311230829345398512361784402397"
IMPLEMENTATION_VERSION_NAME = "MEDIMGD_0_1"
MANUFACTURER = "medimgd"
"""Written into Manufacturer and Contributing Equipment, and how our own objects are recognised."""

_UID_PATTERN = re.compile(r"[0-9]+(\.[0-9]+)*")
_UID_CHARACTERS = re.compile(r"[0-9.]*")
_UID_MAX_LENGTH = 64


def checked_uid(value: str, keyword: str) -> str:
    """Return `value` if it is digits and single dots, at most 64 characters.

    Components with a leading zero break PS3.5 section 9.1 but are written by real devices, so
    they pass: what passes is always safe as a path component and as a key.

    Raises
    ------
    InvalidUID
        Anything else, the empty value included.
    """
    if len(value) > _UID_MAX_LENGTH or _UID_PATTERN.fullmatch(value) is None:
        raise InvalidUID(f"{keyword} is not a UID (PS3.5 9.1): received {_shown(value)}")
    return value


def _shown(value: str) -> str:
    """Quote what is meant as a UID; anything else may be a name in the wrong place."""
    if _UID_CHARACTERS.fullmatch(value):
        return repr(value[:80])
    return f"{len(value)} characters that are not all digits and dots"


@dataclass(frozen=True, slots=True)
class InstanceHeader:
    """What the index keeps of one received instance; absent attributes are empty or zero.

    Patient attributes are left out of ``repr`` so that they cannot reach a log by accident.
    """

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    modality: str = ""
    study_date: str = ""
    study_time: str = ""
    study_description: str = ""
    series_description: str = ""
    series_number: int | None = None
    instance_number: int | None = None
    body_part_examined: str = ""
    number_of_frames: int = 1
    rows: int = 0
    columns: int = 0
    is_own: bool = False
    """True when a contributing equipment item says medimgd made it."""
    patient_id: str = field(default="", repr=False)
    patient_name: str = field(default="", repr=False)
    accession_number: str = field(default="", repr=False)

    @property
    def has_pixels(self) -> bool:
        """True when the header describes an image (rows and columns are both present)."""
        return self.rows > 0 and self.columns > 0


@dataclass(frozen=True, slots=True)
class Code:
    """A coded concept: value, coding scheme designator, meaning (PS3.3 section 8)."""

    value: str
    scheme: str
    meaning: str


@dataclass(frozen=True, slots=True)
class ImageTensor:
    """The model's input for one image or one series.

    ``values`` is float32 in [0, 1], C-contiguous, with the axes named in ``axes``:
    ``("rows", "columns", "channels")`` or ``("slices", "rows", "columns", "channels")``.
    """

    values: npt.NDArray[np.float32]
    axes: tuple[str, ...]
    spacing_mm: tuple[float, ...] | None
    """Distance between neighbours along each spatial axis of ``values`` after resampling."""
    sop_instance_uids: tuple[str, ...]
    """The instances the pixels came from, in slice order."""
    preprocessing_digest: str
    notes: Mapping[str, object] = field(default_factory=dict)
    """Facts for ``explain``: intensity range used, source shape, photometric interpretation."""


class PresenceValues(StrEnum):
    """What is said about a finding (CID 240)."""

    PRESENT = "Present"
    ABSENT = "Absent"
    UNDETERMINED = "Undetermined"


@dataclass(frozen=True, slots=True)
class Finding:
    """One label of a model, judged."""

    label: str
    """The name shown to people and written as tracking identifier, for example ``Pneumonia``."""
    code: Code
    site: Code | None
    presence: PresenceValues
    probability: float
    """0..1, after the model's output was turned into a probability."""
    threshold: float
    undetermined_low: float
    undetermined_high: float
    """Scores in [low, high) are Undetermined; low == high means there is no band."""

    @property
    def certainty_percent(self) -> float:
        """The device's certainty, 0.1..99.9, rounded to one decimal as it is reported."""
        return _certainty_percent(self.probability)


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Which model spoke; part of every result and of the UIDs derived from it."""

    name: str
    version: str
    weights_sha256: str
    title: str
    """The name for people, for example ``Paediatric chest X-ray pneumonia``."""
    intended_use: str
    demonstration: bool = False
    """True for packages that prove a path and make no clinical claim; stated in every result."""

    @property
    def at_version(self) -> str:
        """``name@version``, as shown in the worklist and the logs."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True)
class Explanation:
    """Where in its input a model saw what speaks for one finding, or why that cannot be said.

    Says where the model looked; never where a disease ends.
    """

    label: str
    """The finding's label."""
    method: str = ""
    """``Grad-CAM`` or ``HiResCAM``; empty when there is no map."""
    layers: tuple[str, ...] = ()
    """The network's layers it was taken from, several when networks were averaged."""
    values: npt.NDArray[np.float32] | None = None
    """(rows, columns) or (slices, rows, columns), float32 in [0, 1], 1 where the finding is spoken
    for most: cells that divide the model's input evenly, coarser than it. None without a map."""
    strength: float = 0.0
    """What 1 stands for, in units of the network's score."""
    region: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    """Top, left, bottom and right of the source image as parts of the model's input plane; beyond
    0 and 1 lies what the model was not shown."""
    source_slices: int = 1
    """Slices of the source series; 1 for an image."""
    reason: str = ""
    """Why there is no map, as a sentence; empty when there is one."""

    @property
    def is_available(self) -> bool:
        """True when there is a map."""
        return self.values is not None


@dataclass(frozen=True, slots=True)
class RegionOutline:
    """A region on one image, or on one frame of it."""

    sop_instance_uid: str
    points: tuple[tuple[float, float], ...]
    """Column and row in pixels of the source, 0 at the outer edge of the first; the last point is
    the first one again (PS3.3 C.18.6.1.1)."""
    certainty: float
    """0..1: the highest on this image."""
    frame_number: int | None = None
    """From 1; None for instances of one frame."""
    long_axis_mm: float | None = None
    """The longer side; None where the header states no spacing in the patient."""

    @property
    def certainty_percent(self) -> float:
        """0.1..99.9, rounded to one decimal as it is reported."""
        return _certainty_percent(self.certainty)


@dataclass(frozen=True, slots=True)
class Region:
    """One place that a detecting network itself marked, read from its map of logits.

    Never made from what explains a finding: that says where a network looked.
    """

    label: str
    """The finding's label."""
    number: int
    """From 1, the most certain first."""
    name: str
    """What such a region is called, for example ``Nodule``."""
    code: Code
    site: Code | None
    certainty: float
    """0..1: the highest in the region."""
    threshold: float
    outlines: tuple[RegionOutline, ...]
    """One for each image it is seen on, in slice order; boxes."""

    @property
    def tracked_as(self) -> str:
        """Its name with its number: ``Nodule 1``."""
        return f"{self.name} {self.number}"

    @property
    def certainty_percent(self) -> float:
        """0.1..99.9, rounded to one decimal as it is reported."""
        return _certainty_percent(self.certainty)

    @property
    def long_axis_mm(self) -> float | None:
        """The longest on any image; None where the header states no spacing."""
        known = [each.long_axis_mm for each in self.outlines if each.long_axis_mm is not None]
        return max(known, default=None)

    @property
    def strongest(self) -> RegionOutline:
        """The outline on the image where it is most certain; of equals the middle one."""
        highest = max(each.certainty for each in self.outlines)
        equal = [each for each in self.outlines if each.certainty >= highest]
        return equal[len(equal) // 2]


@dataclass(frozen=True, slots=True)
class Detection:
    """What a detecting network says of places, beside a finding that is not absent."""

    regions: tuple[Region, ...] = ()
    note: str = ""
    """Why there are none, or not all of them; empty when nothing needs to be said."""


def _certainty_percent(score: float) -> float:
    """Round for a reader: no model is certain, so no score reads as 0 % or 100 %."""
    return min(max(round(score * 100, 1), 0.1), 99.9)
