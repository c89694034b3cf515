"""Whether this installation decodes each transfer syntax, tried on a known frame.

Owns 64 by 64 pixels in thirteen encodings (``known_frames``) and what they must decode
to. For ``medimgd doctor``: a codec that is missing or wrong is found before a patient's image is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dicom_io.decoding import iter_frames, open_image
from dicom_io.errors import MedimgdError

KNOWN_FRAMES = Path(__file__).resolve().parent / "known_frames"

_LARGEST_ERROR = {
    "jpeg_baseline_50": 4,
    "jpeg_extended_51": 16,
    "jpegls_near_81": 1,
    "j2k_91": 4,
}
"""In stored units; what is not named here must be exact."""


@dataclass(frozen=True, slots=True)
class DecoderTrial:
    """One transfer syntax, tried."""

    name: str
    available: bool
    detail: str


def known_values(bits_stored: int) -> npt.NDArray[np.int64]:
    """Return the frame, (rows, columns): a ramp over the whole range of 8 or 12 bits."""
    rows, columns = np.mgrid[0:64, 0:64].astype(np.int64)
    ramp: npt.NDArray[np.int64] = rows + 64 * columns
    return ramp // 16 if bits_stored == 8 else ramp


def try_decoders() -> Iterator[DecoderTrial]:
    """Decode the known frame in every encoding and compare it with what went in."""
    for path in sorted(KNOWN_FRAMES.glob("*.dcm")):
        yield _tried(path)


def _tried(path: Path) -> DecoderTrial:
    try:
        image = open_image(path)
        (stored,) = iter_frames(image, [0])
    except MedimgdError as error:
        return DecoderTrial(path.stem, available=False, detail=str(error))
    error_found = int(np.abs(stored.astype(np.int64) - known_values(image.pixel.bits_stored)).max())
    allowed = _LARGEST_ERROR.get(path.stem, 0)
    return DecoderTrial(
        path.stem,
        available=error_found <= allowed,
        detail=f"known frame decoded, largest error {error_found} (allowed {allowed})",
    )
