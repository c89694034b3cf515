"""The result card as a picture: what was analysed on the left, what the model says on the right.

Owns layout, colours and wording of the drawing; ``explained_rows`` draws the maps of findings and
``region_rows`` the regions. Knows no DICOM; text in, RGB pixels out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from dicom_io.results.explained_rows import draw_rows
from dicom_io.results.heat import ShownExplanation
from dicom_io.results.lettering import (
    AMBER,
    BACKGROUND,
    MUTED,
    RED,
    WHITE,
    Colour,
    drawable_name,
    font,
    grey_square,
    wrapped,
)
from dicom_io.results.region_rows import ShownRegions, draw_regions
from dicom_io.results.request import OutcomeValues, ReportRequest, one_line, operating_point
from dicom_io.vocabulary import Finding, PresenceValues

PICTURE_SIDE = 544
PANEL_WIDTH = 360
"""Together 1.5 MB uncompressed, as every result is kept and sent: the source holds the detail."""
_MARGIN = 18

# Absent is grey, not green: below a threshold is not a clean bill of health.
_PRESENCE_COLOURS = MappingProxyType(
    {
        PresenceValues.PRESENT: RED,
        PresenceValues.UNDETERMINED: AMBER,
        PresenceValues.ABSENT: MUTED,
    }
)
_OUTCOME_COLOURS = MappingProxyType(
    {
        OutcomeValues.POSITIVE: RED,
        OutcomeValues.UNDETERMINED: AMBER,
        OutcomeValues.NEGATIVE: MUTED,
        OutcomeValues.NOT_ANALYSED: AMBER,
    }
)
_READING_ORDER = (PresenceValues.PRESENT, PresenceValues.UNDETERMINED, PresenceValues.ABSENT)


@dataclass(frozen=True, slots=True)
class _Line:
    text: str
    size: int
    colour: Colour
    space_before: int = 0


def draw_card(
    request: ReportRequest,
    picture: npt.NDArray[np.float32] | None,
    time_shown: str,
    explanations: Sequence[ShownExplanation] = (),
    regions: ShownRegions | None = None,
) -> npt.NDArray[np.uint8]:
    """Return the card, RGB with axes (rows, columns, channels), uint8.

    Parameters
    ----------
    picture : ndarray or None
        Display image (rows, columns), float32 in [0, 1], 0 is black. None when there is nothing
        that can be shown.
    time_shown : str
        When the analysis started, as people read it.
    explanations : sequence of ShownExplanation
        Of findings that are present; those with a map take the place of the picture, the reason
        of those without is said in words.
    regions : ShownRegions, optional
        Where the model itself marked something; a row above the maps.
    """
    panel = _panel(list(_lines(request, time_shown, explanations)))
    rows = [] if regions is None else [draw_regions(request, regions)]
    if any(each.is_available for each in explanations):
        rows.append(draw_rows(request, explanations))
    pictures = np.concatenate(rows) if rows else _single(picture)
    # The panel grows with the number of findings: none is ever cut off.
    height, width = max(panel.shape[0], pictures.shape[0]), pictures.shape[1]
    card = np.empty((height, width + PANEL_WIDTH, 3), dtype=np.uint8)
    card[:] = np.array(BACKGROUND, dtype=np.uint8)
    card[: pictures.shape[0], :width] = pictures
    card[: panel.shape[0], width:] = panel
    return card


def _single(picture: npt.NDArray[np.float32] | None) -> npt.NDArray[np.uint8]:
    return _no_picture() if picture is None else grey_square(picture, PICTURE_SIDE)


def _no_picture() -> npt.NDArray[np.uint8]:
    image = Image.new("RGB", (PICTURE_SIDE, PICTURE_SIDE), BACKGROUND)
    draw = ImageDraw.Draw(image)
    frame = (_MARGIN, _MARGIN, PICTURE_SIDE - _MARGIN, PICTURE_SIDE - _MARGIN)
    draw.rectangle(frame, outline=MUTED, width=2)
    middle = (PICTURE_SIDE / 2, PICTURE_SIDE / 2)
    draw.text(middle, "No picture can be shown", font=font(26), fill=MUTED, anchor="mm")
    return np.asarray(image, dtype=np.uint8)


def _lines(
    request: ReportRequest, time_shown: str, explanations: Sequence[ShownExplanation]
) -> Iterator[_Line]:
    colour = _OUTCOME_COLOURS[request.outcome]
    yield _Line("AI result - not verified by a physician", 17, WHITE)
    if request.model.demonstration:
        yield _Line("DEMONSTRATION MODEL - no clinical claim", 15, AMBER, 4)
    yield _Line(request.outcome, 38, colour, 13)
    if request.refusal is None:
        yield from _finding_lines(request.findings, explanations)
        yield from _place_lines(request)
    else:
        yield from _refusal_lines(request)
    yield _Line(request.model.title, 17, WHITE, 26)
    yield _Line(request.model.at_version, 15, MUTED, 3)
    yield _Line(f"Analysis started {time_shown}", 15, MUTED, 3)
    yield _Line("Not for measurement", 15, MUTED, 3)


def _finding_lines(
    findings: tuple[Finding, ...], explanations: Sequence[ShownExplanation]
) -> Iterator[_Line]:
    missing = {each.label: each.reason for each in explanations if not each.is_available}
    for finding in sorted(findings, key=lambda one: _READING_ORDER.index(one.presence)):
        colour = _PRESENCE_COLOURS[finding.presence]
        word = finding.presence.value
        word = word if finding.presence is PresenceValues.ABSENT else word.upper()
        stated = f"{word}, certainty of finding {finding.certainty_percent:g} %"
        yield _Line(drawable_name(finding.label, finding.code), 21, colour, 13)
        yield _Line(stated, 16, colour, 2)
        yield _Line(operating_point(finding), 14, MUTED, 1)
        if finding.label in missing:
            reason = one_line(missing[finding.label]).rstrip(".")
            yield _Line(f"Explanation map not available: {reason}.", 14, WHITE, 4)


def _place_lines(request: ReportRequest) -> Iterator[_Line]:
    """Yield what is said of places; nothing for models that tell none."""
    if request.places:
        yield _Line(request.places, 15, WHITE, 13)


def _refusal_lines(request: ReportRequest) -> Iterator[_Line]:
    refusal = request.refusal
    if refusal is None:
        return
    headline = "The analysis failed" if refusal.failed else "The analysis was not performed"
    yield _Line(headline, 19, WHITE, 9)
    yield _Line(f"Reason: {refusal.reason}", 18, AMBER, 13)
    yield _Line(one_line(refusal.message), 15, WHITE, 6)
    yield _Line("No statement about any finding is made.", 18, AMBER, 18)


def _panel(lines: list[_Line]) -> npt.NDArray[np.uint8]:
    width = PANEL_WIDTH - 2 * _MARGIN
    placed: list[tuple[int, str, _Line]] = []
    top = _MARGIN
    for line in lines:
        top += line.space_before
        for part in wrapped(line.text, line.size, width):
            placed.append((top, part, line))
            top += round(line.size * 1.3)
    image = Image.new("RGB", (PANEL_WIDTH, max(PICTURE_SIDE, top + _MARGIN)), BACKGROUND)
    draw = ImageDraw.Draw(image)
    for position, part, line in placed:
        draw.text((_MARGIN, position), part, font=font(line.size, part), fill=line.colour)
    return np.asarray(image, dtype=np.uint8)
