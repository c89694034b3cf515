"""The row of the result card that shows where a detecting model marked something: boxes on a slice.

Owns its layout and the words that say whose boxes they are. Knows no DICOM; the boxes come in parts
of the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from dicom_io.intensity import Values
from dicom_io.results.lettering import (
    AMBER,
    BACKGROUND,
    CELL_SIDE,
    MARGIN,
    MUTED,
    ROW_WIDTH,
    STRIP_HEIGHT,
    WHITE,
    Colour,
    drawable_name,
    font,
    grey_square,
    is_on_one_line,
    on_one_line,
    wrapped,
)
from dicom_io.results.request import ReportRequest
from dicom_io.vocabulary import Region

BY_THE_MODEL = "MARKED BY THE MODEL, NOT BY A PHYSICIAN"
_CAUTION = (
    "Each box surrounds positions that the model's own detection map holds for the finding. It is "
    "no measured outline, and what lies outside is not cleared."
)
_BLACK: Colour = (0, 0, 0)
_LINE = 2
_LINE_WIDTH = CELL_SIDE - 2 * MARGIN
_MOST_NAMED = 3


@dataclass(frozen=True, slots=True)
class ShownBox:
    """One region on the slice that is shown."""

    number: int
    """The region's."""
    left: float
    """In parts of the picture's columns, 0 to 1; the others likewise."""
    top: float
    right: float
    bottom: float


@dataclass(frozen=True, slots=True)
class ShownRegions:
    """The slice with most certainty, and the boxes of all regions on it."""

    picture: Values
    """Display image (rows, columns), float32 in [0, 1], 0 is black."""
    boxes: tuple[ShownBox, ...]
    place: str = ""
    """Which part of the input is shown, for example ``slice 31 of 60``; empty for all of it."""


def draw_regions(request: ReportRequest, shown: ShownRegions) -> npt.NDArray[np.uint8]:
    """Return the row, RGB with axes (rows, columns, channels): the slice, and with its boxes."""
    picture = grey_square(shown.picture, CELL_SIDE)
    marked = _with_boxes(picture, shown)
    strip = _strip(request, shown)
    return np.concatenate([np.concatenate([picture, marked], axis=1), strip])


def _with_boxes(square: npt.NDArray[np.uint8], shown: ShownRegions) -> npt.NDArray[np.uint8]:
    image = Image.fromarray(square)
    draw = ImageDraw.Draw(image)
    rows, columns = shown.picture.shape
    height, width = (edge * CELL_SIDE / max(rows, columns) for edge in (rows, columns))
    top, left = (CELL_SIDE - height) / 2, (CELL_SIDE - width) / 2
    for box in shown.boxes:
        corners = (
            left + box.left * width, top + box.top * height,
            left + box.right * width, top + box.bottom * height,
        )  # fmt: skip
        _draw_box(draw, corners, str(box.number))
    return np.asarray(image, dtype=np.uint8)


def _draw_box(
    draw: ImageDraw.ImageDraw, corners: tuple[float, float, float, float], name: str
) -> None:
    """Draw a light line between dark ones outside the box: it stands out on any ground."""
    left, top, right, bottom = (round(edge) for edge in corners)
    # Outside the box, so that it covers nothing of what it marks.
    for grown, colour, width in ((2 * _LINE, _BLACK, 2 * _LINE), (2 * _LINE - 1, AMBER, _LINE)):
        frame = (left - grown, top - grown, right + grown, bottom + grown)
        draw.rectangle(frame, outline=colour, width=width)
    beside = min(right + 3 * _LINE, CELL_SIDE - 12), max(top - 2 * _LINE, 0)
    draw.text(beside, name, font=font(15), fill=AMBER, stroke_width=2, stroke_fill=_BLACK)


def _strip(request: ReportRequest, shown: ShownRegions) -> npt.NDArray[np.uint8]:
    """Return the words below the two pictures."""
    image = Image.new("RGB", (ROW_WIDTH, STRIP_HEIGHT), BACKGROUND)
    draw = ImageDraw.Draw(image)
    place = f", {shown.place}" if shown.place else ""
    draw.text((MARGIN, 8), f"Source image{place}", font=font(15), fill=WHITE)
    for number, line in enumerate(wrapped(_CAUTION, 13, CELL_SIDE - 2 * MARGIN)):
        draw.text((MARGIN, 30 + 17 * number), line, font=font(13), fill=MUTED)
    left = CELL_SIDE + MARGIN
    heading = _named(request.regions, shown)
    draw.text((left, 8), heading, font=font(15, heading), fill=AMBER)
    draw.text((left, 30), BY_THE_MODEL, font=font(13), fill=AMBER)
    source, version = f"Detection map of {request.model.name}", f"@{request.model.version}"
    line = on_one_line(source, version, 13, _LINE_WIDTH)
    draw.text((left, 47), line, font=font(13, line), fill=MUTED)
    draw.text((left, 66), _counted(request.regions, shown), font=font(13), fill=MUTED)
    return np.asarray(image, dtype=np.uint8)


def _named(regions: Sequence[Region], shown: ShownRegions) -> str:
    """Return the regions on this slice with their certainty, as many as the line holds."""
    numbers = {box.number for box in shown.boxes}
    here = [each for each in regions if each.number in numbers]
    named = [(drawable_name(each.name, each.code), _stated(each)) for each in here]
    for count in range(min(len(here), _MOST_NAMED), 1, -1):
        more = ", …" if len(here) > count else ""
        line = ", ".join(name + stated for name, stated in named[:count]) + more
        if is_on_one_line(line, 15, _LINE_WIDTH):
            return line
    (name, stated), more = named[0], ", …" if len(here) > 1 else ""
    return on_one_line(name, stated + more, 15, _LINE_WIDTH)


def _stated(region: Region) -> str:
    return f" {region.number} ({region.certainty_percent:g} %)"


def _counted(regions: Sequence[Region], shown: ShownRegions) -> str:
    elsewhere = len(regions) - len(shown.boxes)
    total = f"{len(regions)} region{'s' * (len(regions) != 1)}"
    return f"{total}, {elsewhere} on other slices only" if elsewhere else f"{total}, shown here"
