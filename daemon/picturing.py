"""From what is kept with a result to what its card draws: the right slice, and the map or boxes.

Owns the choice of the picture. A map that cannot be drawn keeps its reason, regions are told in
words then; neither ever stops a result from being composed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from daemon.logs import ACTION, RESULT
from dicom_io.attention import aligned_map, slice_of, strongest_slice
from dicom_io.display import display_image
from dicom_io.errors import MedimgdError
from dicom_io.header import read_header
from dicom_io.intensity import Values
from dicom_io.results.heat import ShownExplanation
from dicom_io.results.region_rows import ShownBox, ShownRegions
from dicom_io.vocabulary import Explanation, Finding, PresenceValues, Region, RegionOutline
from dicom_io.volume import open_series
from storage.results import ResultRecord

_logger = logging.getLogger(__name__)

_NOT_KEPT = "none was computed when this study was analysed"
_CANNOT_BE_SHOWN = "the image it belongs to cannot be shown"


@dataclass(frozen=True, slots=True)
class PicturedExplanation:
    """What is drawn, and of which instance."""

    shown: ShownExplanation
    path: Path | None = None
    """The instance that is shown; None when there is no map."""


@dataclass(frozen=True, slots=True)
class PicturedRegions:
    """What is drawn, and of which instance."""

    shown: ShownRegions
    path: Path


@dataclass(frozen=True, slots=True)
class _Slice:
    """One plane of the input, with the cells of the map that lie on it."""

    path: Path
    frame_number: int | None
    cells: Values
    place: str


def pictured_explanations(
    result: ResultRecord, stored: Sequence[Explanation], evidence: Sequence[Path]
) -> tuple[PicturedExplanation, ...]:
    """Return one entry for each finding of a result that is present, the most certain first.

    Parameters
    ----------
    result : ResultRecord
        Whose findings are explained.
    stored : sequence of Explanation
        What was kept with it; a finding without an entry is said to have none.
    evidence : sequence of Path
        The instances that were analysed.
    """
    known = {each.label: each for each in stored}
    return tuple(
        _pictured(result, finding, known.get(finding.label), evidence)
        for finding in sorted(result.findings, key=lambda each: -each.probability)
        if finding.presence is PresenceValues.PRESENT
    )


def _pictured(
    result: ResultRecord,
    finding: Finding,
    explanation: Explanation | None,
    evidence: Sequence[Path],
) -> PicturedExplanation:
    if explanation is None or explanation.values is None:
        reason = _NOT_KEPT if explanation is None else explanation.reason
        return PicturedExplanation(ShownExplanation(finding.label, reason=reason))
    try:
        return _drawn(explanation, explanation.values, evidence)
    except MedimgdError as error:
        _logger.warning(
            "the result card has no map: %s", error, extra={ACTION: "no_map", RESULT: result.id}
        )
        return PicturedExplanation(ShownExplanation(finding.label, reason=_CANNOT_BE_SHOWN))


def _drawn(
    explanation: Explanation, values: Values, evidence: Sequence[Path]
) -> PicturedExplanation:
    found = _strongest(values, evidence)
    picture = display_image(found.path, frame_number=found.frame_number)
    attention = aligned_map(found.cells, explanation.region, *picture.shape)
    shown = ShownExplanation(explanation.label, picture, attention, explanation.method, found.place)
    return PicturedExplanation(shown, found.path)


def _strongest(values: Values, evidence: Sequence[Path]) -> _Slice:
    """Return the image itself, or of a volume the slice on which the map is strongest."""
    if values.ndim == 2:
        return _Slice(evidence[0], None, values, "")
    # Sorted by the same rule as when the tensor was made: by position, not by file.
    slices = open_series(evidence).stack.slices
    number = strongest_slice(values, len(slices))
    plane = slices[number]
    place = f"slice {number + 1} of {len(slices)} along the stack"
    return _Slice(plane.path, plane.frame, slice_of(values, number, len(slices)), place)


def pictured_regions(result: ResultRecord, evidence: Sequence[Path]) -> PicturedRegions | None:
    """Return the image with the most certain region and the boxes of all regions on it.

    Parameters
    ----------
    result : ResultRecord
        Whose regions are shown.
    evidence : sequence of Path
        The instances that were analysed, in the result's order.

    Returns
    -------
    PicturedRegions or None
        None when there are no regions, or their image cannot be shown.
    """
    if result.detection is None or not result.detection.regions:
        return None
    try:
        return _marked(result, result.detection.regions, evidence)
    except MedimgdError as error:
        _logger.warning(
            "the result card has no boxes: %s", error, extra={ACTION: "no_boxes", RESULT: result.id}
        )
        return None


def _marked(
    result: ResultRecord, regions: Sequence[Region], evidence: Sequence[Path]
) -> PicturedRegions:
    chosen = regions[0].strongest
    number = result.sop_instance_uids.index(chosen.sop_instance_uid)
    path = evidence[number]
    header = read_header(path)
    frame = None if chosen.frame_number is None else chosen.frame_number - 1
    picture = display_image(path, frame_number=frame)
    boxes = [
        _box(region.number, outline, header.rows, header.columns)
        for region in regions
        for outline in region.outlines
        if (outline.sop_instance_uid, outline.frame_number)
        == (chosen.sop_instance_uid, chosen.frame_number)
    ]
    return PicturedRegions(ShownRegions(picture, tuple(boxes), _place(result, chosen)), path)


def _box(number: int, outline: RegionOutline, rows: int, columns: int) -> ShownBox:
    across = [column / columns for column, _ in outline.points]
    down = [row / rows for _, row in outline.points]
    return ShownBox(number, min(across), min(down), max(across), max(down))


def _place(result: ResultRecord, outline: RegionOutline) -> str:
    if outline.frame_number is not None:
        return f"frame {outline.frame_number}"
    uids = result.sop_instance_uids
    if len(uids) == 1:
        return ""
    return f"slice {uids.index(outline.sop_instance_uid) + 1} of {len(uids)} along the stack"
