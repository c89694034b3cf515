"""One row of the result card for each explained finding: the image, and the map over it.

Owns their layout and the words that keep a map from being taken for the outline of a disease.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from dicom_io.results.heat import HALF, ShownExplanation, coloured, legend
from dicom_io.results.lettering import (
    AMBER,
    BACKGROUND,
    CELL_SIDE,
    MARGIN,
    MUTED,
    RED,
    ROW_WIDTH,
    STRIP_HEIGHT,
    WHITE,
    drawable_name,
    font,
    grey_square,
    in_square,
    on_one_line,
    wrapped,
)
from dicom_io.results.request import ReportRequest, percent

_SCALE_SIZE = (140, 12)

NOT_A_SEGMENTATION = "EXPLANATION, NOT A SEGMENTATION"
_CAUTION = (
    "The map shows which parts of the image spoke for the finding in the model's computation. "
    "It does not outline a disease, and what it leaves dark is not cleared."
)


def draw_rows(
    request: ReportRequest, explanations: Sequence[ShownExplanation]
) -> npt.NDArray[np.uint8]:
    """Return the rows of the findings that have a map, RGB with axes (rows, columns, channels)."""
    rows = [_row(request, each) for each in explanations if each.is_available]
    return np.concatenate(rows)


def _row(request: ReportRequest, shown: ShownExplanation) -> npt.NDArray[np.uint8]:
    assert shown.picture is not None  # noqa: S101 - the caller leaves out what has no map
    assert shown.attention is not None  # noqa: S101
    picture = grey_square(shown.picture, CELL_SIDE)
    heat = coloured(picture, in_square(shown.attention, CELL_SIDE))
    strip = _strip(request, shown)
    return np.concatenate([np.concatenate([picture, heat], axis=1), strip])


def _strip(request: ReportRequest, shown: ShownExplanation) -> npt.NDArray[np.uint8]:
    """Return the words below the two pictures, and the colour scale."""
    image = Image.new("RGB", (ROW_WIDTH, STRIP_HEIGHT), BACKGROUND)
    draw = ImageDraw.Draw(image)
    place = f", {shown.place}" if shown.place else ""
    draw.text((MARGIN, 8), f"Source image{place}", font=font(15), fill=WHITE)
    for number, line in enumerate(wrapped(_CAUTION, 13, CELL_SIDE - 2 * MARGIN)):
        draw.text((MARGIN, 30 + 17 * number), line, font=font(13), fill=MUTED)
    left = CELL_SIDE + MARGIN
    (finding,) = [each for each in request.findings if each.label == shown.label]
    stated = f" {finding.presence.upper()}, certainty {finding.certainty_percent:g} %"
    name = drawable_name(finding.label, finding.code)
    heading = on_one_line(name, stated, 15, CELL_SIDE - 2 * MARGIN)
    draw.text((left, 8), heading, font=font(15, heading), fill=RED)
    draw.text((left, 30), NOT_A_SEGMENTATION, font=font(13), fill=AMBER)
    source, version = f"{shown.method} by {request.model.name}", f"@{request.model.version}"
    line = on_one_line(source, version, 13, CELL_SIDE - 2 * MARGIN)
    draw.text((left, 47), line, font=font(13, line), fill=MUTED)
    _draw_scale(image, draw, left, 69)
    return np.asarray(image, dtype=np.uint8)


def _draw_scale(image: Image.Image, draw: ImageDraw.ImageDraw, left: int, top: int) -> None:
    width, height = _SCALE_SIZE
    draw.text((left, top - 3), "none", font=font(13), fill=MUTED)
    start = left + 34
    image.paste(Image.fromarray(legend(width, height)), (start, top))
    words = f"strongest in this input; dashed: {percent(HALF)} of it"
    draw.text((start + width + 6, top - 3), words, font=font(13), fill=MUTED)
