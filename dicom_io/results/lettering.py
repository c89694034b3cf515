"""What every part of the result card is drawn with: colours, letters, and pictures brought to size.

Owns the measures of a row of two pictures, no wording.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, lru_cache
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import ImageFont

from dicom_io.vocabulary import Code

Colour = tuple[int, int, int]

BACKGROUND: Colour = (16, 18, 22)
WHITE: Colour = (240, 240, 240)
MUTED: Colour = (170, 174, 180)
RED: Colour = (255, 84, 64)
AMBER: Colour = (255, 184, 48)

CELL_SIDE = 448
STRIP_HEIGHT = 96
ROW_HEIGHT = CELL_SIDE + STRIP_HEIGHT
ROW_WIDTH = 2 * CELL_SIDE
"""A row and the panel beside it take 2 MB uncompressed; only positive results have any."""

MARGIN = 12


def in_square(values: npt.NDArray[np.float32], side: int) -> npt.NDArray[np.float32]:
    """Return values in [0, 1] scaled into a square, aspect kept, 0 around them.

    Two arrays of one shape come to lie at the same place. What is not a number becomes 0.
    """
    rows, columns = values.shape
    scale = side / max(rows, columns)
    height, width = max(1, round(rows * scale)), max(1, round(columns * scale))
    smooth = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    finite = np.nan_to_num(values, nan=0.0, posinf=1.0, neginf=0.0).astype(np.float32, copy=False)
    square = np.zeros((side, side), dtype=np.float32)
    top, left = (side - height) // 2, (side - width) // 2
    resized = cv2.resize(finite, (width, height), interpolation=smooth)
    square[top : top + height, left : left + width] = np.clip(resized, 0.0, 1.0)
    return square


def grey_square(picture: npt.NDArray[np.float32], side: int) -> npt.NDArray[np.uint8]:
    """Return a display image in a square, black around it, as RGB."""
    values = np.rint(in_square(picture, side) * 255).astype(np.uint8)
    return np.repeat(values[:, :, np.newaxis], 3, axis=2)


def wrapped(text: str, size: int, width: int) -> Iterator[str]:
    """Yield the lines of a text; a word wider than a line is broken inside."""
    letters, current = font(size, text), ""
    for word in text.split():
        candidate = f"{current} {word}".strip()
        if letters.getlength(candidate) <= width:
            current = candidate
            continue
        if current:
            yield current
        current = word
        while letters.getlength(current) > width:
            kept = next(
                count
                for count in range(len(current) - 1, 0, -1)
                if count == 1 or letters.getlength(current[:count]) <= width
            )
            yield current[:kept]
            current = current[kept:]
    if current:
        yield current


def on_one_line(name: str, rest: str, size: int, width: int) -> str:
    """Return a name and what follows it; a name too long for one line ends in an ellipsis."""
    shortened = (f"{name[:length].rstrip()}…{rest}" for length in range(len(name) - 1, 0, -1))
    candidates = chain([name + rest], shortened)
    return next((each for each in candidates if is_on_one_line(each, size, width)), rest.strip())


def is_on_one_line(text: str, size: int, width: int) -> bool:
    """Return True when a text is no wider than so many pixels."""
    return font(size, text).getlength(text) <= width


def font(size: int, text: str = "") -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the letters to draw a text with; no font of the host is needed.

    Pillow's own font knows English only. What it has no letters for is drawn with the one that
    comes with matplotlib: Latin, Greek, Cyrillic and more, but no Chinese, Japanese or Korean.
    """
    return _plain(size) if all(map(_is_plain, text)) else _wide(size)


def is_drawable(text: str) -> bool:
    """Return True when every letter of a text shows as itself and not as an empty box."""
    return all(_is_plain(letter) or _is_wide(letter) for letter in text)


def drawable_name(name: str, code: Code) -> str:
    """Return what is found, in letters that can be drawn: its name, its code's meaning, or code.

    A row of empty boxes would not say what it is.
    """
    names = (name, code.meaning)
    return next((each for each in names if is_drawable(each)), f"{code.value} ({code.scheme})")


_NO_LETTER = "\uffff"
_PROBE_SIZE = 20


@lru_cache(maxsize=16)
def _plain(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


@lru_cache(maxsize=16)
def _wide(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    # Found without importing matplotlib, which takes longer than a card.
    found = find_spec("matplotlib")
    if found is None or found.origin is None:
        return _plain(size)
    try:
        return ImageFont.truetype(
            Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf", size
        )
    except OSError:
        return _plain(size)


@cache
def _is_plain(letter: str) -> bool:
    return _is_in(_plain(_PROBE_SIZE), letter)


@cache
def _is_wide(letter: str) -> bool:
    return _is_in(_wide(_PROBE_SIZE), letter)


def _is_in(letters: ImageFont.FreeTypeFont | ImageFont.ImageFont, letter: str) -> bool:
    return bytes(letters.getmask(letter)) != bytes(letters.getmask(_NO_LETTER))
