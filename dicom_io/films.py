"""Films that come as PNG or JPEG rather than DICOM, for training.

Owns reading them into the same grey values a DICOM film gives, so that a model meets in the
hospital what it was trained on.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from dicom_io.errors import CannotDecode
from dicom_io.intensity import Values, luminance
from dicom_io.reading import machine_faults

MAX_FILM_PIXELS = 100_000_000
"""Radiographs stay below 30 million pixels; beyond this a file is a mistake or a bomb."""


def read_film(path: Path) -> Values:
    """Read a PNG or JPEG as grey.

    Parameters
    ----------
    path : Path
        An 8 or 16 bit file, grey or RGB; an alpha channel is left out, and an EXIF orientation is
        not applied.

    Returns
    -------
    numpy.ndarray
        (rows, columns) float32 BT.601 luma in the unit of the file, as ``grayscale.grey_frame``
        gives for the same samples in DICOM.

    Raises
    ------
    InstanceUnavailable
        The file is missing or cannot be read now.
    CannotDecode
        The file is not an image that can be decoded.
    """
    with machine_faults(path):
        return _grey_of(path, np.frombuffer(path.read_bytes(), dtype=np.uint8))


def _grey_of(path: Path, encoded: npt.NDArray[np.uint8]) -> Values:
    try:
        samples = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED) if encoded.size else None
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise MemoryError from error
        raise CannotDecode(f"{path} cannot be decoded as PNG or JPEG") from error
    if samples is None or samples.dtype not in (np.uint8, np.uint16):
        raise CannotDecode(f"{path} is not a PNG or JPEG of 8 or 16 bits, or it is damaged")
    if samples.shape[0] * samples.shape[1] > MAX_FILM_PIXELS:
        raise CannotDecode(f"{path} has more than {MAX_FILM_PIXELS} pixels")
    if samples.ndim == 2:
        return samples.astype(np.float32)
    if samples.shape[2] < 3:
        return samples[..., 0].astype(np.float32)
    # OpenCV orders colours blue, green, red.
    return luminance(samples[..., 2::-1].astype(np.uint16))
