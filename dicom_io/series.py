"""Slices in space: which belong to a stack, in which order, and whether the stack is sound.

Owns the geometry of CT and MR series, single-frame and enhanced, from headers alone. It must not
read pixels: that is ``volume``'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from dicom_io.attributes import LONGEST_MM, integer, items, numbers, spacing_mm, text, texts
from dicom_io.errors import RefusalReason, UnsuitableSeries
from dicom_io.grayscale import FUNCTIONAL_GROUPS, macro_item
from dicom_io.reading import parse_header, quiet_pydicom
from dicom_io.wording import number_of

MINIMUM_SLICES = 2
"""One slice has no neighbour to measure a distance to."""

GAP_FACTOR = 1.5
"""A step longer than this many median steps means that slices are missing."""

SPACING_TOLERANCE = 0.1
"""Steps may differ from their median by this share: positions are rounded in real headers."""

SAME_POSITION_MM = 0.01
"""Slices closer than this lie in the same place; no scanner spaces slices so finely."""

TILT_TOLERANCE = 0.02
"""Sideways drift per distance along the normal, about one degree of gantry tilt."""

TILT_SLACK_MM = 0.1
"""Sideways jitter that rounding of positions explains."""

ORIENTATION_TOLERANCE = 1e-3
SPACING_MATCH = 1e-3
UNIT_TOLERANCE = 0.01
"""Direction cosines may miss unit length and right angles by this much: they are rounded."""

_LOCALISER_TYPES = frozenset({"LOCALIZER", "SCOUT"})
_GEOMETRY_KEYWORDS = (
    "SOPClassUID",
    "SOPInstanceUID",
    "ImageType",
    "FrameOfReferenceUID",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "Rows",
    "Columns",
    "NumberOfFrames",
    *FUNCTIONAL_GROUPS,
)

Vector = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class SliceGeometry:
    """One plane of pixels in patient space; absent attributes are None or empty."""

    path: Path
    frame: int
    """Zero-based; 0 for single-frame instances."""
    sop_instance_uid: str
    rows: int
    columns: int
    position_mm: Vector | None
    """Image Position (Patient): x, y, z of the first pixel."""
    orientation: Vector | None
    """Image Orientation (Patient): direction of the row, then of the column."""
    spacing_mm: Vector | None
    """Pixel Spacing: distance between rows, then between columns."""
    frame_of_reference_uid: str = ""
    is_localiser: bool = False
    undescribed_frames: int = 0
    """Frames of the same instance that no functional group places."""

    @property
    def label(self) -> str:
        """How messages name the slice."""
        frame = f" frame {self.frame + 1}" if self.frame else ""
        return f"{self.sop_instance_uid}{frame}"


@dataclass(frozen=True, slots=True)
class SliceStack:
    """Slices in ascending position along the normal, evenly spaced."""

    slices: tuple[SliceGeometry, ...]
    slice_spacing_mm: float
    notes: dict[str, object] = field(default_factory=dict)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between slices, rows and columns."""
        row_mm, column_mm = self.slices[0].spacing_mm or (0.0, 0.0)
        return self.slice_spacing_mm, row_mm, column_mm


def read_slices(path: Path) -> list[SliceGeometry]:
    """Read the plane of each frame of an instance from its header.

    Raises
    ------
    UnreadableInstance
        The file cannot be parsed.
    """
    return slices_of(path, parse_header(path, _GEOMETRY_KEYWORDS))


def slices_of(path: Path, ds: Dataset) -> list[SliceGeometry]:
    """Return the planes of a header already read; per-frame positions of enhanced objects count.

    References
    ----------
    PS3.3 C.7.6.2 (image plane), C.7.6.16.2.1, .3 and .4 (plane macros of functional groups)
    """
    with quiet_pydicom():
        frames = max(integer(ds, "NumberOfFrames") or 1, 1)
        # A frame count that no functional groups back up must not become a list of that length.
        described = max(*(len(items(ds, sequence)) for sequence in FUNCTIONAL_GROUPS), 1)
        planes = [_plane(path, ds, frame) for frame in range(min(frames, described))]
        return [replace(plane, undescribed_frames=frames - len(planes)) for plane in planes]


def _plane(path: Path, ds: Dataset, frame: int) -> SliceGeometry:
    return SliceGeometry(
        path=path,
        frame=frame,
        sop_instance_uid=text(ds, "SOPInstanceUID"),
        rows=integer(ds, "Rows") or 0,
        columns=integer(ds, "Columns") or 0,
        position_mm=_vector(
            macro_item(ds, frame, "PlanePositionSequence"), "ImagePositionPatient", 3
        ),
        orientation=_vector(
            macro_item(ds, frame, "PlaneOrientationSequence"), "ImageOrientationPatient", 6
        ),
        spacing_mm=spacing_mm(macro_item(ds, frame, "PixelMeasuresSequence"), "PixelSpacing"),
        frame_of_reference_uid=text(ds, "FrameOfReferenceUID"),
        is_localiser=bool(_LOCALISER_TYPES & {part.upper() for part in texts(ds, "ImageType")}),
    )


def _vector(item: Dataset, keyword: str, length: int) -> Vector | None:
    values = numbers(item, keyword)
    return values if len(values) == length else None


def order_slices(planes: Iterable[SliceGeometry]) -> SliceStack:
    """Sort slices by position along the normal and check that they make one even stack.

    Localisers among the slices are left out and noted. The same frame given twice counts once.

    Raises
    ------
    UnsuitableSeries
        Missing attributes, frames without a place, mixed matrices, spacings, orientations or
        frames of reference, several slices in one place, sheared stacks (gantry tilt), uneven
        spacing; with reason INCOMPLETE_SERIES, slices that are missing.
    """
    unique = list({(plane.sop_instance_uid, plane.frame): plane for plane in planes}.values())
    kept = [plane for plane in unique if not plane.is_localiser]
    notes: dict[str, object] = {}
    if len(kept) < len(unique):
        notes["localisers_excluded"] = len(unique) - len(kept)
    _check_all_placed(kept)
    if len(kept) < MINIMUM_SLICES:
        raise UnsuitableSeries(
            f"a volume needs at least {MINIMUM_SLICES} slices: the series has {len(kept)}"
            f" and {number_of(len(unique) - len(kept), 'localiser')}"
        )
    positions = _checked_planes(kept)
    normal = _normal(kept[0])
    distances = positions @ normal
    order = np.argsort(distances, kind="stable")
    ordered = tuple(kept[index] for index in order)
    spacing = _checked_spacing(ordered, distances[order])
    _check_tilt(positions[order], normal, spacing)
    return SliceStack(ordered, spacing, notes)


def _check_all_placed(planes: Sequence[SliceGeometry]) -> None:
    """Refuse frames that nothing places: a stack of the others alone could look even."""
    for plane in planes:
        if plane.undescribed_frames:
            raise UnsuitableSeries(
                f"{number_of(plane.undescribed_frames, 'frame')} of {plane.sop_instance_uid} "
                f"{'has' if plane.undescribed_frames == 1 else 'have'} no item in "
                "PerFrameFunctionalGroupsSequence (5200,9230): it is not known where they lie"
            )


def _checked_planes(planes: Sequence[SliceGeometry]) -> npt.NDArray[np.float64]:
    """Return the positions, (slices, 3), of planes that are alike in all but position."""
    for plane in planes:
        _check_present(plane)
    first = planes[0]
    for plane in planes:
        _check_alike(first, plane)
    _check_orthonormal(first)
    return np.array([plane.position_mm for plane in planes], dtype=np.float64)


def _check_present(plane: SliceGeometry) -> None:
    attributes: dict[str, object] = {
        "ImagePositionPatient (0020,0032)": plane.position_mm is not None
        and all(abs(part) <= LONGEST_MM for part in plane.position_mm),
        "ImageOrientationPatient (0020,0037)": plane.orientation,
        "PixelSpacing (0028,0030)": plane.spacing_mm is not None
        and all(part > 0 for part in plane.spacing_mm),
    }
    for attribute, value in attributes.items():
        if not value:
            raise UnsuitableSeries(
                f"{attribute} is missing or illegal in slice {plane.label}: "
                "the series has no geometry to be sorted by"
            )


def _check_alike(first: SliceGeometry, plane: SliceGeometry) -> None:
    if (plane.rows, plane.columns) != (first.rows, first.columns):
        raise UnsuitableSeries(
            f"the series mixes matrices: {first.rows} x {first.columns} in {first.label}, "
            f"{plane.rows} x {plane.columns} in {plane.label}"
        )
    if not _close(first.spacing_mm, plane.spacing_mm, SPACING_MATCH):
        raise UnsuitableSeries(
            f"the series mixes pixel spacings: {first.spacing_mm} mm in {first.label}, "
            f"{plane.spacing_mm} mm in {plane.label}"
        )
    if not _close(first.orientation, plane.orientation, ORIENTATION_TOLERANCE):
        raise UnsuitableSeries(
            f"the series mixes orientations: {first.orientation} in {first.label}, "
            f"{plane.orientation} in {plane.label}"
        )
    if plane.frame_of_reference_uid != first.frame_of_reference_uid:
        raise UnsuitableSeries(
            f"the series has more than one frame of reference: {first.label} and {plane.label} "
            "are positioned in different spaces"
        )


def _close(first: Vector | None, second: Vector | None, tolerance: float) -> bool:
    return (
        first is not None
        and second is not None
        and bool(np.allclose(first, second, rtol=0, atol=tolerance))
    )


def _check_orthonormal(plane: SliceGeometry) -> None:
    row, column = np.reshape(np.array(plane.orientation), (2, 3))
    faults = (np.linalg.norm(row) - 1, np.linalg.norm(column) - 1, row @ column)
    if any(abs(float(fault)) > UNIT_TOLERANCE for fault in faults):
        raise UnsuitableSeries(
            f"ImageOrientationPatient (0020,0037) {plane.orientation} in {plane.label} must be "
            "two unit vectors at right angles (PS3.3 C.7.6.2.1.1)"
        )


def _normal(plane: SliceGeometry) -> npt.NDArray[np.float64]:
    row, column = np.reshape(np.array(plane.orientation, dtype=np.float64), (2, 3))
    normal = np.cross(row, column)
    unit: npt.NDArray[np.float64] = normal / np.linalg.norm(normal)
    return unit


def _checked_spacing(ordered: Sequence[SliceGeometry], distances: npt.NDArray[np.float64]) -> float:
    steps = np.diff(distances)
    doubled = np.flatnonzero(steps < SAME_POSITION_MM)
    if doubled.size:
        index = int(doubled[0])
        raise UnsuitableSeries(
            f"{doubled.size + 1} or more slices share a position, such as "
            f"{ordered[index].label} and {ordered[index + 1].label} at {distances[index]:.2f} mm: "
            "the series holds several phases, echoes or repeats"
        )
    median = float(np.median(steps))
    _check_gaps(steps, distances, median)
    uneven = float(np.max(np.abs(steps - median)))
    if uneven > SPACING_TOLERANCE * median:
        raise UnsuitableSeries(
            f"slices are unevenly spaced: steps from {steps.min():.2f} to {steps.max():.2f} mm, "
            f"median {median:.2f} mm; at most {SPACING_TOLERANCE:.0%} off is analysed"
        )
    return float(distances[-1] - distances[0]) / (len(ordered) - 1)


def _check_gaps(
    steps: npt.NDArray[np.float64], distances: npt.NDArray[np.float64], median: float
) -> None:
    gaps = np.flatnonzero(steps > GAP_FACTOR * median)
    if not gaps.size:
        return
    missing = int(sum(max(round(float(steps[index]) / median) - 1, 1) for index in gaps))
    first = int(gaps[0])
    raise UnsuitableSeries(
        f"about {number_of(missing, 'slice is', 'slices are')} missing: "
        f"a step of {steps[first]:.2f} mm after "
        f"{distances[first]:.2f} mm, where the median step is {median:.2f} mm; "
        "send the missing instances",
        RefusalReason.INCOMPLETE_SERIES,
    )


def _check_tilt(
    positions: npt.NDArray[np.float64], normal: npt.NDArray[np.float64], spacing: float
) -> None:
    offsets = positions - positions[0]
    along = offsets @ normal
    sideways = np.linalg.norm(offsets - along[:, None] * normal, axis=1)
    if not np.any(sideways > TILT_SLACK_MM + TILT_TOLERANCE * along):
        return
    worst = int(np.argmax(sideways))
    angle = float(np.degrees(np.arctan2(sideways[worst], max(along[worst], spacing))))
    raise UnsuitableSeries(
        f"the stack is sheared: slices drift {sideways[worst]:.1f} mm sideways over "
        f"{along[worst]:.1f} mm, {angle:.1f} degrees (gantry tilt); "
        "only straight stacks are analysed"
    )
