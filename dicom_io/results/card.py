"""The result card as a picture: what was analysed on the left, what the model says on the right.

Owns layout, colours and wording of the drawing. Knows no DICOM; text in, RGB pixels out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from dicom_io.results.request import OutcomeValues, ReportRequest, one_line, operating_point
from dicom_io.vocabulary import Finding, PresenceValues

Colour = tuple[int, int, int]

PICTURE_SIDE = 544
PANEL_WIDTH = 360
"""Together 1.5 MB uncompressed, as every result is kept and sent: the source holds the detail."""
_MARGIN = 18

_BACKGROUND: Colour = (16, 18, 22)
_WHITE: Colour = (240, 240, 240)
_MUTED: Colour = (170, 174, 180)
_RED: Colour = (255, 84, 64)
_AMBER: Colour = (255, 184, 48)
# Absent is grey, not green: below a threshold is not a clean bill of health.
_PRESENCE_COLOURS = MappingProxyType(
    {
        PresenceValues.PRESENT: _RED,
        PresenceValues.UNDETERMINED: _AMBER,
        PresenceValues.ABSENT: _MUTED,
    }
)
_OUTCOME_COLOURS = MappingProxyType(
    {
        OutcomeValues.POSITIVE: _RED,
        OutcomeValues.UNDETERMINED: _AMBER,
        OutcomeValues.NEGATIVE: _MUTED,
        OutcomeValues.NOT_ANALYSED: _AMBER,
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
    request: ReportRequest, picture: npt.NDArray[np.float32] | None, time_shown: str
) -> npt.NDArray[np.uint8]:
    """Return the card, RGB with axes (rows, columns, channels), uint8.

    Parameters
    ----------
    picture : ndarray or None
        Display image (rows, columns), float32 in [0, 1], 0 is black. None when there is nothing
        that can be shown.
    time_shown : str
        When the analysis started, as people read it.
    """
    panel = _panel(list(_lines(request, time_shown)))
    # The panel grows with the number of findings: none is ever cut off.
    card = np.empty((panel.shape[0], PICTURE_SIDE + PANEL_WIDTH, 3), dtype=np.uint8)
    card[:] = np.array(_BACKGROUND, dtype=np.uint8)
    card[:PICTURE_SIDE, :PICTURE_SIDE] = _no_picture() if picture is None else fit(picture)
    card[:, PICTURE_SIDE:] = panel
    return card


def fit(picture: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Return a picture scaled into the square, aspect kept, black around it, as RGB.

    Anything drawn over the picture (an attention map, say) belongs on this square.
    """
    rows, columns = picture.shape
    scale = PICTURE_SIDE / max(rows, columns)
    height, width = max(1, round(rows * scale)), max(1, round(columns * scale))
    smooth = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    grey = np.nan_to_num(picture, nan=0.0, posinf=1.0, neginf=0.0).astype(np.float32, copy=False)
    resized = np.clip(cv2.resize(grey, (width, height), interpolation=smooth), 0.0, 1.0)
    square = np.zeros((PICTURE_SIDE, PICTURE_SIDE, 3), dtype=np.uint8)
    top, left = (PICTURE_SIDE - height) // 2, (PICTURE_SIDE - width) // 2
    values = np.rint(resized * 255).astype(np.uint8)
    square[top : top + height, left : left + width] = values[:, :, np.newaxis]
    return square


def _no_picture() -> npt.NDArray[np.uint8]:
    image = Image.new("RGB", (PICTURE_SIDE, PICTURE_SIDE), _BACKGROUND)
    draw = ImageDraw.Draw(image)
    frame = (_MARGIN, _MARGIN, PICTURE_SIDE - _MARGIN, PICTURE_SIDE - _MARGIN)
    draw.rectangle(frame, outline=_MUTED, width=2)
    middle = (PICTURE_SIDE / 2, PICTURE_SIDE / 2)
    draw.text(middle, "No picture can be shown", font=_font(26), fill=_MUTED, anchor="mm")
    return np.asarray(image, dtype=np.uint8)


def _lines(request: ReportRequest, time_shown: str) -> Iterator[_Line]:
    colour = _OUTCOME_COLOURS[request.outcome]
    yield _Line("AI result - not verified by a physician", 17, _WHITE)
    if request.model.demonstration:
        yield _Line("DEMONSTRATION MODEL - no clinical claim", 15, _AMBER, 4)
    yield _Line(request.outcome, 38, colour, 13)
    if request.refusal is None:
        yield from _finding_lines(request.findings)
    else:
        yield from _refusal_lines(request)
    yield _Line(request.model.title, 17, _WHITE, 26)
    yield _Line(request.model.at_version, 15, _MUTED, 3)
    yield _Line(f"Analysis started {time_shown}", 15, _MUTED, 3)
    yield _Line("Not for measurement", 15, _MUTED, 3)


def _finding_lines(findings: tuple[Finding, ...]) -> Iterator[_Line]:
    for finding in sorted(findings, key=lambda one: _READING_ORDER.index(one.presence)):
        colour = _PRESENCE_COLOURS[finding.presence]
        word = finding.presence.value
        word = word if finding.presence is PresenceValues.ABSENT else word.upper()
        stated = f"{word}, certainty of finding {finding.certainty_percent:g} %"
        yield _Line(finding.label, 21, colour, 13)
        yield _Line(stated, 16, colour, 2)
        yield _Line(operating_point(finding), 14, _MUTED, 1)


def _refusal_lines(request: ReportRequest) -> Iterator[_Line]:
    refusal = request.refusal
    if refusal is None:
        return
    headline = "The analysis failed" if refusal.failed else "The analysis was not performed"
    yield _Line(headline, 19, _WHITE, 9)
    yield _Line(f"Reason: {refusal.reason}", 18, _AMBER, 13)
    yield _Line(one_line(refusal.message), 15, _WHITE, 6)
    yield _Line("No statement about any finding is made.", 18, _AMBER, 18)


def _panel(lines: list[_Line]) -> npt.NDArray[np.uint8]:
    width = PANEL_WIDTH - 2 * _MARGIN
    placed: list[tuple[int, str, _Line]] = []
    top = _MARGIN
    for line in lines:
        top += line.space_before
        for part in _wrapped(line.text, line.size, width):
            placed.append((top, part, line))
            top += round(line.size * 1.3)
    image = Image.new("RGB", (PANEL_WIDTH, max(PICTURE_SIDE, top + _MARGIN)), _BACKGROUND)
    draw = ImageDraw.Draw(image)
    for position, part, line in placed:
        draw.text((_MARGIN, position), part, font=_font(line.size), fill=line.colour)
    return np.asarray(image, dtype=np.uint8)


def _wrapped(text: str, size: int, width: int) -> Iterator[str]:
    """Yield the lines of a text; a word wider than the panel is broken inside."""
    font, current = _font(size), ""
    for word in text.split():
        candidate = f"{current} {word}".strip()
        if font.getlength(candidate) <= width:
            current = candidate
            continue
        if current:
            yield current
        current = word
        while font.getlength(current) > width:
            kept = next(
                count
                for count in range(len(current) - 1, 0, -1)
                if count == 1 or font.getlength(current[:count]) <= width
            )
            yield current[:kept]
            current = current[kept:]
    if current:
        yield current


@lru_cache(maxsize=16)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return Pillow's own scalable font: no font of the host is needed."""
    return ImageFont.load_default(size)
