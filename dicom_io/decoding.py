"""Frames of a stored image as the stored values its header promises, one frame at a time.

Owns every check between a file and an array, and the translation of every decoder's fault. It must
not know what the values mean: that is ``grayscale``'s.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.pixels.decoders.base import Decoder, get_decoder
from pydicom.uid import (
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
)

from dicom_io.attributes import raw_value, text
from dicom_io.codestreams import check_fragments
from dicom_io.errors import CannotDecode
from dicom_io.image_pixel import MONOCHROME, PALETTE, ImagePixel, image_pixel
from dicom_io.palettes import coloured, read_palette
from dicom_io.reading import (
    PARSER_FAULTS,
    PIXEL_DATA_TAG,
    EncodedDataSet,
    PixelElement,
    is_machine_fault,
    open_data_set,
    parse_open,
    quiet_pydicom,
    syntax_name,
)

StoredValues = npt.NDArray[np.integer[Any]]
"""One frame, (rows, columns) or (rows, columns, samples), native byte order."""

MAX_DECODED_BYTES = 2 * 1024**3
"""An image larger than this when decoded is refused: no radiograph or enhanced series needs it."""

EXCESS = 2
"""Native pixel data so many times as long as promised has wider cells or more frames than its
header says; less is what devices leave behind the pixels."""

LEAST_BYTES = 64
"""What is padded to the size of a block may be many times as long as a few pixels."""

MAX_LOOKUP_BYTES = 16 * 1024 * 1024
"""Header values above this are left out; palettes and lookup tables stay far below."""

_UNMASKED_SYNTAXES = frozenset(
    str(uid) for uid in (JPEG2000Lossless, HTJ2KLossless, HTJ2KLosslessRPCL, JPEGLSLossless)
)
"""Codestreams may carry more bits than Bits Stored, and pydicom gives all of them. Lossy ones are
left alone: what overshoots the largest value by a little would become black."""


@dataclass(frozen=True, slots=True)
class StoredImage:
    """A file whose header was read and whose pixel data was found complete; nothing is decoded."""

    path: Path
    header: Dataset
    pixel: ImagePixel
    element: PixelElement
    transfer_syntax_uid: str

    @property
    def end_offset(self) -> int:
        """Where native pixel data ends; how far a deflated data set must be inflated."""
        return self.element.offset + self.pixel.encoded_bytes


def open_image(path: Path) -> StoredImage:
    """Read the header of an image and check that its pixel data can be what the header says.

    Nothing in the size of the image is allocated: dimensions are checked against the bytes there
    are (native), against the codestream's own (compressed), and against ``MAX_DECODED_BYTES``.

    Raises
    ------
    UnreadableInstance
        The file cannot be parsed.
    CannotDecode
        No pixel data, a transfer syntax without decoder, attributes that contradict each other,
        or pixel data that is truncated.
    InstanceUnavailable
        The file is missing or cannot be read now.

    References
    ----------
    PS3.3 C.7.6.3, PS3.5 section 8 and Annex A.4
    """
    with open_data_set(path) as encoded:
        ds, found = parse_open(path, encoded, None, MAX_LOOKUP_BYTES)
        element = _checked_element(found)
        with quiet_pydicom():
            pixel = image_pixel(ds)
        image = StoredImage(path, ds, pixel, element, encoded.transfer_syntax_uid)
        decoder = _decoder(image)
        _check_size(image, encoded)
        if decoder.is_encapsulated:
            offsets, _ = _extended_offsets(image)
            check_fragments(encoded, element, pixel, image.transfer_syntax_uid, offsets)
        elif not encoded.is_deflated:
            _check_native(image, encoded)
    if encoded.is_deflated:
        # Opened again, inflated as far as its pixels reach.
        with open_data_set(path, image.end_offset) as inflated:
            _check_native(image, inflated)
    return image


def instance_uid(image: StoredImage) -> str:
    """Return the SOP Instance UID, empty when absent."""
    with quiet_pydicom():
        return text(image.header, "SOPInstanceUID")


def iter_frames(image: StoredImage, indices: Sequence[int] | None = None) -> Iterator[StoredValues]:
    """Decode frames one after the other, so that memory holds one at a time.

    Parameters
    ----------
    image : StoredImage
        From ``open_image``.
    indices : sequence of int, optional
        Zero-based frame numbers, in the order wanted; all frames when absent.

    Yields
    ------
    numpy.ndarray
        Stored values, (rows, columns), or (rows, columns, 3) as RGB for colour and palette images.
        Bits above Bits Stored (overlays in old files) are masked, signed values sign-extended.

    Raises
    ------
    CannotDecode
        The decoder failed, or gave fewer frames or another shape than the header promises.
    InstanceUnavailable
        The file cannot be read now, or the memory does not suffice.

    References
    ----------
    PS3.5 8.1.1 (unused bits), PS3.3 C.7.6.3.1.2 (photometric interpretation)
    """
    wanted = range(image.pixel.frames) if indices is None else indices
    with open_data_set(image.path, image.end_offset) as encoded:
        encoded.stream.seek(image.element.offset)
        decoded = _decoder(image).iter_array(
            encoded.stream, indices=None if indices is None else list(indices), **_options(image)
        )
        for index in wanted:
            yield _next_frame(image, decoded, index)


def _next_frame(
    image: StoredImage, decoded: Iterator[tuple[Any, dict[str, Any]]], index: int
) -> StoredValues:
    try:
        with quiet_pydicom(), _swallowed_faults_raised():
            values, properties = next(decoded)
            return _finished(image, values, str(properties["photometric_interpretation"]))
    except StopIteration as error:
        _refuse(image, f"frame {index + 1} of {image.pixel.frames} is missing", error)
    except (*PARSER_FAULTS, OSError) as error:
        if is_machine_fault(error):
            raise
        _refuse(image, f"the decoder failed on frame {index + 1}", error)
    except BaseException as error:
        # The RLE decoder is written in Rust: its panic is no Exception and would end the process.
        if type(error).__name__ != "PanicException":
            raise
        _refuse(image, f"the decoder failed on frame {index + 1}", error)


@contextmanager
def _swallowed_faults_raised() -> Iterator[None]:
    """Raise a machine's fault inside a decoder plug-in as itself.

    pydicom tries the plug-ins in turn and reports the failure of all as one RuntimeError; their
    exceptions are told to its logger alone.
    """
    listener = _FaultListener()
    logger = logging.getLogger("pydicom")
    logger.addHandler(listener)
    try:
        yield
    except RuntimeError:
        if listener.machine_fault is not None:
            raise listener.machine_fault from None
        raise
    finally:
        logger.removeHandler(listener)


class _FaultListener(logging.Handler):
    """Keeps the last fault of the machine among the exceptions logged; writes nothing."""

    machine_fault: BaseException | None = None

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and is_machine_fault(error):
            self.machine_fault = error


def _refuse(image: StoredImage, what: str, cause: BaseException) -> NoReturn:
    """Refuse without quoting the decoder: its messages may quote the data."""
    raise CannotDecode(
        f"PixelData (7FE0,0010) in {syntax_name(image.transfer_syntax_uid)}: {what} "
        f"({type(cause).__name__}); send the object again, or uncompressed"
    ) from cause


def _finished(image: StoredImage, values: StoredValues, photometric: str) -> StoredValues:
    pixel = image.pixel
    if values.shape[:2] != (pixel.rows, pixel.columns):
        raise ValueError(f"decoded shape {values.shape[:2]}")
    if _needs_shift(image):
        values = masked(values, pixel.bits_stored, pixel.high_bit, is_signed=pixel.is_signed)
    elif _keeps_unused_bits(image, values):
        high_bit = pixel.bits_stored - 1
        values = masked(values, pixel.bits_stored, high_bit, is_signed=pixel.is_signed)
    if photometric == PALETTE:
        values = coloured(values, read_palette(image.header))
    elif photometric not in MONOCHROME | {"RGB"}:
        raise CannotDecode(
            f"PhotometricInterpretation (0028,0004) {photometric} cannot be turned into RGB or "
            "grey; send the object as MONOCHROME2 or RGB"
        )
    return np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("="))


def masked(
    values: StoredValues, bits_stored: int, high_bit: int, *, is_signed: bool
) -> StoredValues:
    """Return the stored bits of each cell, right-aligned and sign-extended (PS3.5 8.1.1).

    Parameters
    ----------
    values : numpy.ndarray
        Cells of 8, 16 or 32 bits in which the sample ends at bit `high_bit`.
    bits_stored, high_bit : int
        (0028,0101) and (0028,0102).
    is_signed : bool
        True when Pixel Representation (0028,0103) is 1.

    Returns
    -------
    numpy.ndarray
        Same shape; the signed or unsigned type of the same width.
    """
    width = values.dtype.itemsize * 8
    kind = "i" if is_signed else "u"
    cells = values.astype(values.dtype.newbyteorder("="), copy=False)
    cells = cells.view(f"{kind}{values.dtype.itemsize}")
    # Shifting up drops what lies above the sample; shifting back down extends the sign.
    shifted: StoredValues = np.right_shift(
        np.left_shift(cells, width - 1 - high_bit), width - bits_stored
    )
    return shifted


def _needs_shift(image: StoredImage) -> bool:
    """Native cells may hold the sample anywhere; codecs always deliver it right-aligned."""
    pixel = image.pixel
    return not image.element.is_encapsulated and pixel.high_bit != pixel.bits_stored - 1


def _keeps_unused_bits(image: StoredImage, values: StoredValues) -> bool:
    """True when what a codec delivered may hold bits above the sample, or a sign not extended."""
    is_wider = image.pixel.bits_stored < values.dtype.itemsize * 8
    return is_wider and image.transfer_syntax_uid in _UNMASKED_SYNTAXES


def _options(image: StoredImage) -> dict[str, Any]:
    pixel = image.pixel
    options: dict[str, Any] = {
        "rows": pixel.rows,
        "columns": pixel.columns,
        "number_of_frames": pixel.frames,
        "samples_per_pixel": pixel.samples,
        "bits_allocated": pixel.bits_allocated,
        "bits_stored": pixel.bits_stored,
        "pixel_representation": int(pixel.is_signed),
        "photometric_interpretation": pixel.photometric_interpretation,
        "pixel_keyword": "PixelData",
        "pixel_vr": image.element.vr or "OW",
        "allow_excess_frames": False,
    }
    if image.transfer_syntax_uid == JPEGBaseline8Bit and pixel.bits_stored <= 8:
        options["bits_allocated"] = 8  # whatever cells the header speaks of
    if pixel.samples > 1:
        options["planar_configuration"] = pixel.planar_configuration
    if _needs_shift(image):
        options["correct_unused_bits"] = False
    offsets, lengths = _extended_offsets(image)
    if offsets:
        options["extended_offsets"] = (offsets, lengths)
    return options


def _extended_offsets(image: StoredImage) -> tuple[bytes, bytes]:
    """Return the Extended Offset Table and its lengths, empty where one of them is absent."""
    offsets = raw_value(image.header, "ExtendedOffsetTable")
    lengths = raw_value(image.header, "ExtendedOffsetTableLengths")
    if isinstance(offsets, bytes) and isinstance(lengths, bytes):
        return offsets, lengths
    return b"", b""


def _checked_element(element: PixelElement | None) -> PixelElement:
    if element is None:
        raise CannotDecode("PixelData (7FE0,0010) is missing: the object holds no image")
    if element.tag != PIXEL_DATA_TAG:
        raise CannotDecode(
            f"pixel data is floating point ({element.tag >> 16:04X},{element.tag & 0xFFFF:04X}); "
            "only integer PixelData (7FE0,0010) is analysed"
        )
    return element


def _decoder(image: StoredImage) -> Decoder:
    name = syntax_name(image.transfer_syntax_uid)
    try:
        with quiet_pydicom():
            decoder = get_decoder(image.transfer_syntax_uid)
    except NotImplementedError as error:
        raise CannotDecode(
            f"transfer syntax {name} ({image.transfer_syntax_uid}) has no decoder; "
            "send the object uncompressed"
        ) from error
    if not decoder.is_available:
        raise CannotDecode(
            f"the decoder for {name} is not installed; install pylibjpeg and pyjpegls"
        )
    if decoder.is_encapsulated != image.element.is_encapsulated:
        raise CannotDecode(
            f"PixelData (7FE0,0010) is {'' if image.element.is_encapsulated else 'not '}"
            f"encapsulated, against its transfer syntax {name}; send the object again"
        )
    return decoder


def _check_native(image: StoredImage, encoded: EncodedDataSet) -> None:
    pixel, element = image.pixel, image.element
    there = min(element.length, encoded.size - element.offset)
    if there < pixel.encoded_bytes:
        raise CannotDecode(
            f"PixelData (7FE0,0010) holds {there} bytes; Rows {pixel.rows} x Columns "
            f"{pixel.columns} x {pixel.frames} frames x {pixel.samples} samples of "
            f"{pixel.bits_allocated} bits need {pixel.encoded_bytes}: truncated, send it again"
        )
    if element.length >= EXCESS * max(pixel.encoded_bytes, LEAST_BYTES):
        raise CannotDecode(
            f"PixelData (7FE0,0010) says {element.length} bytes, several times the "
            f"{pixel.encoded_bytes} that Rows {pixel.rows} x Columns {pixel.columns} x "
            f"{pixel.frames} frames x {pixel.samples} samples of {pixel.bits_allocated} bits need: "
            "the object contradicts itself, correct the sender"
        )


def _check_size(image: StoredImage, encoded: EncodedDataSet) -> None:
    """Native data is bounded by the bytes there are; what is compressed only by this ceiling."""
    pixel = image.pixel
    compressed = image.element.is_encapsulated or encoded.is_deflated
    if compressed and pixel.decoded_bits > MAX_DECODED_BYTES * 8:
        raise CannotDecode(
            f"Rows {pixel.rows} x Columns {pixel.columns} x {pixel.frames} frames would decode to "
            f"{pixel.decoded_bits // 8} bytes; at most {MAX_DECODED_BYTES} are decoded"
        )
