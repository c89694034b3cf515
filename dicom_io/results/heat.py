"""An attention map in colour over the image it explains, and the scale that says how to read it.

Owns colours and blending. The scale grows lighter from end to end and avoids the pairs that the
colour-blind confuse; a dashed line carries the shape to screens that show grey only.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from dicom_io.intensity import Values

RGB = npt.NDArray[np.uint8]

HALF = 0.5
"""Where the dashed line runs: half of the strongest attention."""

_OPACITY = 0.62
"""Of the strongest attention; the image stays visible below it."""
_FAINTEST = 0.08
"""Below this share of the strongest, nothing is coloured."""
_DASH_PIXELS = 6
_LEGEND_GREY = 0.4
_LIGHT, _DARK = (255, 255, 255), (0, 0, 0)


@dataclass(frozen=True, slots=True)
class ShownExplanation:
    """One finding's map as it is drawn, or why there is none."""

    label: str
    """The finding's label."""
    picture: Values | None = None
    """Display image (rows, columns), float32 in [0, 1], 0 is black."""
    attention: Values | None = None
    """(rows, columns) of `picture`, float32 in [0, 1], 1 the strongest anywhere in the input."""
    method: str = ""
    """``Grad-CAM`` or ``HiResCAM``."""
    place: str = ""
    """Which part of the input is shown, for example ``slice 31 of 60``; empty for all of it."""
    reason: str = ""
    """Why there is no map; empty when there is one."""

    @property
    def is_available(self) -> bool:
        """True when there is something to draw."""
        return self.picture is not None and self.attention is not None


def coloured(picture: RGB, attention: Values) -> RGB:
    """Return a grey picture with the map over it.

    Parameters
    ----------
    picture : numpy.ndarray
        (rows, columns, 3) uint8, its channels equal.
    attention : numpy.ndarray
        (rows, columns) float32 in [0, 1].
    """
    blended = _blended(picture, attention)
    for outline in _outlines(attention):
        _draw_dashed(blended, outline)
    return blended


def legend(width: int, height: int) -> RGB:
    """Return the scale from no attention on the left to the strongest on the right, over grey."""
    grey = np.full((height, width, 3), round(_LEGEND_GREY * 255), dtype=np.uint8)
    ramp = np.linspace(0, 1, width, dtype=np.float32)
    scale = _blended(grey, np.repeat(ramp[np.newaxis], height, axis=0))
    _draw_dashed(scale, np.array([[width // 2, row] for row in range(height)]))
    return scale


def _blended(picture: RGB, attention: Values) -> RGB:
    steps = np.rint(np.clip(attention, 0, 1) * 255).astype(np.uint8)
    colours = cv2.applyColorMap(steps, cv2.COLORMAP_INFERNO)[..., ::-1].astype(np.float32)
    rise = np.clip((attention - _FAINTEST) / (1 - _FAINTEST), 0, 1)
    opacity = (_OPACITY * np.sqrt(rise))[..., np.newaxis]
    mixed = picture.astype(np.float32) * (1 - opacity) + colours * opacity
    blended: RGB = np.rint(mixed).astype(np.uint8)
    return blended


def _outlines(attention: Values) -> list[npt.NDArray[np.int32]]:
    inside = (attention >= HALF).astype(np.uint8)
    found, _ = cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return [np.asarray(outline, dtype=np.int32).reshape(-1, 2) for outline in found]


def _draw_dashed(image: RGB, points: npt.NDArray[np.integer]) -> None:
    """Draw light and dark dashes in turn: one of them stands out on any ground."""
    for start in range(0, len(points), _DASH_PIXELS):
        dash = points[start : start + _DASH_PIXELS + 1].reshape(-1, 1, 2).astype(np.int32)
        colour = _LIGHT if start // _DASH_PIXELS % 2 == 0 else _DARK
        cv2.polylines(image, [dash], isClosed=False, color=colour, thickness=1)
