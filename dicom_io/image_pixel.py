"""The Image Pixel module of a header: which cells an image has, and what they hold.

Owns the attributes of PS3.3 C.7.6.3 and their agreement with each other. Must not know the pixel
data itself: whether there is as much as they promise is ``decoding``'s.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydicom.dataset import Dataset

from dicom_io.attributes import integer, raw_value, text
from dicom_io.errors import CannotDecode

MONOCHROME = frozenset({"MONOCHROME1", "MONOCHROME2"})
PALETTE = "PALETTE COLOR"
_SINGLE_SAMPLE = MONOCHROME | {PALETTE}
_COLOURED = frozenset({"COLOR", "MIXED"})
_BYTE_BITS = 8
_REPRESENTATIONS = frozenset({0, 1})
_BITS_ALLOCATED = frozenset({1, 8, 16, 32})


@dataclass(frozen=True, slots=True)
class ImagePixel:
    """The Image Pixel module of a header, checked (PS3.3 C.7.6.3)."""

    rows: int
    columns: int
    frames: int
    samples: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    is_signed: bool
    photometric_interpretation: str
    planar_configuration: int

    @property
    def decoded_bits(self) -> int:
        """The size of all frames when decoded."""
        return self.rows * self.columns * self.samples * self.frames * self.bits_allocated

    @property
    def encoded_bytes(self) -> int:
        """The size of all frames in native encoding, padding byte left out."""
        bits = self.decoded_bits
        if self.photometric_interpretation == "YBR_FULL_422":
            bits = bits * 2 // 3
        return -(-bits // 8)


def image_pixel(ds: Dataset) -> ImagePixel:
    """Read the module; what is absent and can be told from the rest takes that.

    Raises
    ------
    CannotDecode
        A dimension is absent or not positive, values may be signed or not, or the attributes
        contradict each other.
    """
    bits_allocated = _required(ds, "BitsAllocated")
    bits_stored = _default(integer(ds, "BitsStored"), bits_allocated)
    pixel = ImagePixel(
        rows=_required(ds, "Rows"),
        columns=_required(ds, "Columns"),
        frames=_frames(ds),
        samples=_default(integer(ds, "SamplesPerPixel"), 1),
        bits_allocated=bits_allocated,
        bits_stored=bits_stored,
        high_bit=_default(integer(ds, "HighBit"), bits_stored - 1),
        is_signed=_is_signed(ds, bits_stored),
        photometric_interpretation=text(ds, "PhotometricInterpretation").upper(),
        planar_configuration=_default(integer(ds, "PlanarConfiguration"), 0),
    )
    _check_consistent(pixel)
    _check_grey(ds, pixel)
    return pixel


def _check_grey(ds: Dataset, pixel: ImagePixel) -> None:
    """Refuse grey that is colour above some value (PS3.3 C.7.6.23): it would read as brightest."""
    is_coloured = text(ds, "PixelPresentation").upper() in _COLOURED and (
        raw_value(ds, "RedPaletteColorLookupTableDescriptor") is not None
    )
    if pixel.photometric_interpretation in MONOCHROME and is_coloured:
        raise CannotDecode(
            "PixelPresentation (0008,9205) says that some values are colours of a supplemental "
            "palette where grey is expected: send the object without colour"
        )


def _frames(ds: Dataset) -> int:
    """Return how many frames are promised; an illegal number must not pass for one frame."""
    frames = integer(ds, "NumberOfFrames")
    if frames is None and text(ds, "NumberOfFrames"):
        raise CannotDecode(
            "NumberOfFrames (0028,0008) must be a whole number (PS3.3 C.7.6.6): correct the sender"
        )
    return _default(frames, 1)


def _is_signed(ds: Dataset, bits_stored: int) -> bool:
    """Return the sign; what is absent is taken for unsigned up to 8 bits alone.

    A negative number read without its sign is the largest there is: black becomes white.
    """
    representation = integer(ds, "PixelRepresentation")
    is_absent = representation is None and not text(ds, "PixelRepresentation")
    if representation not in _REPRESENTATIONS and not (is_absent and bits_stored <= _BYTE_BITS):
        raise CannotDecode(
            "PixelRepresentation (0028,0103) must be 0 or 1 (PS3.3 C.7.6.3): received "
            f"{'nothing' if is_absent else 'something else'}; it is not known whether values "
            "are signed, correct the sender"
        )
    return representation == 1


def _default(value: int | None, default: int) -> int:
    return default if value is None else value


def _required(ds: Dataset, keyword: str) -> int:
    value = integer(ds, keyword)
    if value is None or value <= 0:
        raise CannotDecode(
            f"{keyword} must be a positive whole number (PS3.3 C.7.6.3): received "
            f"{'nothing' if value is None else value}"
        )
    return value


def _check_consistent(pixel: ImagePixel) -> None:
    single = pixel.photometric_interpretation in _SINGLE_SAMPLE
    rules = (
        (pixel.frames >= 1, "NumberOfFrames (0028,0008)", pixel.frames),
        (pixel.samples in {1, 3}, "SamplesPerPixel (0028,0002)", pixel.samples),
        (
            pixel.bits_allocated in _BITS_ALLOCATED,
            "BitsAllocated (0028,0100)",
            pixel.bits_allocated,
        ),
        (
            1 <= pixel.bits_stored <= pixel.bits_allocated,
            "BitsStored (0028,0101)",
            pixel.bits_stored,
        ),
        (
            pixel.bits_stored - 1 <= pixel.high_bit < pixel.bits_allocated,
            "HighBit (0028,0102)",
            pixel.high_bit,
        ),
        (
            bool(pixel.photometric_interpretation) and single == (pixel.samples == 1),
            "PhotometricInterpretation (0028,0004)",
            pixel.photometric_interpretation or "nothing",
        ),
    )
    for holds, attribute, received in rules:
        if not holds:
            raise CannotDecode(
                f"{attribute} does not fit the other attributes of the image (PS3.3 C.7.6.3): "
                f"received {received}"
            )
