"""A stored image as people look at it: one frame, windowed, upright in grey, small enough to show.

Owns the picture on result cards. Uses the steps of the tensor path, never its recipes: what is
shown to people must not depend on what a model wants.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from dicom_io.decoding import iter_frames, open_image
from dicom_io.grayscale import grey_frame, grey_transform
from dicom_io.intensity import VOI_FALLBACK, percentile_limits, scaled
from dicom_io.reading import machine_faults
from dicom_io.resampling import padded, resized

LONGEST_EDGE = 1024
"""Enough for a result card; the source image stays in the archive."""


def display_image(
    path: Path, longest_edge: int = LONGEST_EDGE, frame_number: int | None = None
) -> npt.NDArray[np.float32]:
    """Return a frame of a stored image, ready to be shown.

    The first VOI window or table of the header decides the contrast; where there is none, the
    percentiles of the image do. MONOCHROME1 is inverted, colour becomes luminance, padding black.

    Parameters
    ----------
    path : Path
        A stored instance.
    longest_edge : int
        Larger images are shrunk to it, smaller ones stay as they are.
    frame_number : int, optional
        From 0; the middle one when None.

    Returns
    -------
    numpy.ndarray
        (rows, columns) float32 in [0, 1], 0 black.

    Raises
    ------
    UnreadableInstance, Refusal
        The file cannot be parsed or decoded, or the image is blank.
    InstanceUnavailable
        The file cannot be read now, or the memory does not suffice.

    References
    ----------
    PS3.3 C.11.1, C.11.2, C.7.6.3.1.2.
    """
    with machine_faults(path):
        return _shown(path, longest_edge, frame_number)


def _shown(path: Path, longest_edge: int, wanted: int | None) -> npt.NDArray[np.float32]:
    image = open_image(path)
    frame_number = image.pixel.frames // 2 if wanted is None else wanted
    transform = grey_transform(image, frame_number)
    (stored,) = iter_frames(image, [frame_number])
    frame = grey_frame(stored, transform)
    fallback = VOI_FALLBACK
    scaling = transform.voi or percentile_limits(
        frame.values, fallback.low, fallback.high, frame.padding
    )
    unit = scaled(frame.values, scaling)
    if transform.is_inverted:
        unit = np.subtract(1.0, unit, out=unit)
    if frame.padding is not None:
        unit[frame.padding] = 0.0
    rows, columns = unit.shape
    if max(rows, columns) <= longest_edge:
        return unit
    fitted = padded((rows, columns), longest_edge, longest_edge, None)
    return resized(unit, fitted.rows, fitted.columns)
