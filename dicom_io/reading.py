"""A stored Part 10 file as a pydicom data set, however broken or hostile the file is.

Owns opening, inflating and parsing, and the translation of every fault of the parser. It must not
know what the attributes are wanted for; ``header`` and ``decoding`` do.
"""

from __future__ import annotations

import errno
import io
import logging
import struct
import threading
import warnings
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pydicom.config import IGNORE
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
)

from dicom_io.errors import InstanceUnavailable, UnreadableInstance

PARSER_FAULTS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BytesLengthException,
    EOFError,
    InvalidDicomError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
"""What pydicom is known to raise on hostile input; RecursionError is a RuntimeError.

Not OSError, of which pydicom raises some of its own (`is_machine_fault` tells), nor MemoryError.
"""

CONVERSION_FAULTS = (*PARSER_FAULTS, OSError)
"""What asking a parsed data set for a value raises. Values are converted from memory, so that an
OSError then is pydicom's own, about a sequence that ends too early, and no fault of the machine."""

HEADER_INFLATE_BYTES = 64 * 1024 * 1024
"""How much of a deflated data set is inflated for its header: a bomb must not fill the memory."""

_META_START = 132
_PREFIX = b"DICM"
_LONG_VRS = frozenset({b"OB", b"OW", b"UN", b"SQ", b"UT", b"OD", b"OF", b"OL", b"UC", b"UR"})
_UNDEFINED_LENGTH = 0xFFFFFFFF
_TRANSFER_SYNTAX_TAG = 0x0010
_DEFLATED = frozenset({str(DeflatedExplicitVRLittleEndian), "1.2.840.10008.1.2.4.95"})
_IMPLICIT = frozenset({str(ImplicitVRLittleEndian), "1.2.840.113619.5.2"})
PIXEL_DATA_TAG = 0x7FE00010
_ANY_PIXEL_TAG = frozenset({0x7FE00008, 0x7FE00009, PIXEL_DATA_TAG})

_quiet = threading.RLock()


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Keep pydicom from warning or logging: its messages quote values, names among them.

    Warning filters and logger flags belong to the whole process, so one thread at a time is inside.
    """
    logger = logging.getLogger("pydicom")
    with _quiet, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        propagated, logger.propagate = logger.propagate, False
        try:
            yield
        finally:
            logger.propagate = propagated


def is_machine_fault(error: BaseException) -> bool:
    """True when the machine failed, not the file.

    The operating system's errors carry a number; libraries raise OSError without one for contents
    they dislike.
    """
    if isinstance(error, OSError):
        return error.errno is not None
    return isinstance(error, MemoryError)


@contextmanager
def machine_faults(path: Path) -> Iterator[None]:
    """Raise a fault of the machine while `path` is read or decoded as InstanceUnavailable."""
    try:
        yield
    except (OSError, MemoryError) as error:
        if not is_machine_fault(error):
            raise
        raise _unavailable(path, error) from error


def _unavailable(path: Path, error: OSError | MemoryError) -> InstanceUnavailable:
    if isinstance(error, MemoryError):
        return InstanceUnavailable(
            f"{path} could not be read for want of memory: it is tried again later; "
            "give the service more memory if this stays"
        )
    name = errno.errorcode.get(error.errno or 0, f"error {error.errno}")
    return InstanceUnavailable(
        f"{path} cannot be read ({name}: {error.strerror}): it is tried again later; "
        "check the disk, its mount and the limit of open files"
    )


def syntax_name(transfer_syntax_uid: str) -> str:
    """Return a transfer syntax as people name it, the UID itself where it has no name."""
    return UID(transfer_syntax_uid, validation_mode=IGNORE).name


@dataclass(frozen=True, slots=True)
class EncodedDataSet:
    """A stream positioned at the first byte of an inflated data set, and how it is encoded."""

    stream: BinaryIO
    transfer_syntax_uid: str
    size: int
    """Where the stream ends, in the stream's own offsets."""

    @property
    def is_implicit_vr(self) -> bool:
        """True when elements carry no VR of their own."""
        return self.transfer_syntax_uid in _IMPLICIT

    @property
    def is_deflated(self) -> bool:
        """True when the stream was inflated, perhaps not to its end."""
        return self.transfer_syntax_uid in _DEFLATED

    @property
    def is_little_endian(self) -> bool:
        """True except for the retired Explicit VR Big Endian."""
        return self.transfer_syntax_uid != ExplicitVRBigEndian


@dataclass(frozen=True, slots=True)
class PixelElement:
    """Where the pixel data element of a file lies."""

    tag: int
    vr: str | None
    length: int
    offset: int
    """Of the first byte of the value, in the offsets of the (inflated) stream."""

    @property
    def is_encapsulated(self) -> bool:
        """True when the length is undefined: fragments follow (PS3.5 A.4)."""
        return self.length == _UNDEFINED_LENGTH


@contextmanager
def open_data_set(
    path: Path, inflate_bytes: int = HEADER_INFLATE_BYTES
) -> Iterator[EncodedDataSet]:
    """Open a Part 10 file behind its File Meta Information; a deflated data set is inflated.

    Parameters
    ----------
    path : Path
        The stored file.
    inflate_bytes : int
        How much of a deflated data set is inflated at most; the rest is left out.

    Raises
    ------
    UnreadableInstance
        The file is not Part 10, or its meta information names no transfer syntax.
    InstanceUnavailable
        The file cannot be opened or read; also for what fails inside the ``with`` block.
    """
    with machine_faults(path), path.open("rb") as file:
        try:
            encoded = _after_meta(path, file, inflate_bytes)
        except (struct.error, zlib.error) as error:
            raise UnreadableInstance(
                f"{path}: the File Meta Information or the deflated data set is damaged ({error})"
            ) from error
        yield encoded


def _after_meta(path: Path, file: BinaryIO, inflate_bytes: int) -> EncodedDataSet:
    file.seek(0, io.SEEK_END)
    size = file.tell()
    file.seek(_META_START - len(_PREFIX))
    if file.read(len(_PREFIX)) != _PREFIX:
        raise UnreadableInstance(
            f"{path} is not a DICOM Part 10 file (PS3.10 7.1): no DICM prefix at byte 128"
        )
    transfer_syntax_uid = _transfer_syntax(path, file, size)
    if transfer_syntax_uid not in _DEFLATED:
        return EncodedDataSet(file, transfer_syntax_uid, size)
    # One input buffer is bounded as the output is: deflate never shrinks below a thousandth.
    inflated = zlib.decompressobj(-zlib.MAX_WBITS).decompress(file.read(), inflate_bytes)
    return EncodedDataSet(io.BytesIO(inflated), transfer_syntax_uid, len(inflated))


def _transfer_syntax(path: Path, file: BinaryIO, size: int) -> str:
    """Walk group 0002 (always Explicit VR Little Endian), leaving the file behind it.

    The group length element is not believed: files in the field have it wrong.
    """
    found = ""
    while True:
        start = file.tell()
        group, element, vr, length = struct.unpack("<HH2sH", file.read(8).ljust(8, b"\xff"))
        if group != 2:
            file.seek(start)
            break
        if vr in _LONG_VRS:
            (length,) = struct.unpack("<L", file.read(4))
        if length > size - file.tell():
            raise UnreadableInstance(
                f"{path}: element (0002,{element:04X}) says {length} bytes, "
                f"{size - file.tell()} remain: the file is truncated"
            )
        value = file.read(length)
        if element == _TRANSFER_SYNTAX_TAG:
            found = value.decode("ascii", "replace").strip("\0 ")
    if not found:
        raise UnreadableInstance(
            f"{path}: TransferSyntaxUID (0002,0010) is missing or empty; PS3.10 7.1 requires it"
        )
    return found


def parse_header(
    path: Path, keywords: Iterable[str] | None = None, max_value_bytes: int | None = None
) -> Dataset:
    """Parse the elements before the pixel data.

    Parameters
    ----------
    path : Path
        A stored Part 10 file.
    keywords : iterable of str, optional
        Only these elements are kept, and reading stops behind the last of them; all when absent.
    max_value_bytes : int, optional
        Longer values are left out.

    Returns
    -------
    pydicom.Dataset
        With ``file_meta.TransferSyntaxUID``. Values are converted when they are asked for: ask
        inside ``quiet_pydicom`` and expect ``CONVERSION_FAULTS``.

    Raises
    ------
    UnreadableInstance
        The file is not Part 10, truncated, or nested beyond what can be parsed.
    InstanceUnavailable
        The file cannot be read now.
    """
    with open_data_set(path) as encoded:
        return parse_open(path, encoded, keywords, max_value_bytes)[0]


def parse_open(
    path: Path,
    encoded: EncodedDataSet,
    keywords: Iterable[str] | None = None,
    max_value_bytes: int | None = None,
) -> tuple[Dataset, PixelElement | None]:
    """Parse an open data set up to its pixel data and say where that lies.

    The second value is None when there is none, or when `keywords` ended the reading before it.
    """
    tags = None if keywords is None else _tags_of(keywords)
    stop = _Stop(path, encoded, tags)
    try:
        with quiet_pydicom():
            ds = read_dataset(
                encoded.stream,
                encoded.is_implicit_vr,
                encoded.is_little_endian,
                stop_when=stop,
                defer_size=max_value_bytes,
                specific_tags=None if tags is None else list(tags),
            )
            _drop_deferred(ds)
            ds.file_meta = FileMetaDataset()
            ds.file_meta.TransferSyntaxUID = UID(encoded.transfer_syntax_uid)
            ds.set_original_encoding(encoded.is_implicit_vr, encoded.is_little_endian)
    except RecursionError as error:
        raise UnreadableInstance(
            f"{path}: sequences are nested too deeply to be parsed; damaged or hostile"
        ) from error
    except (*PARSER_FAULTS, OSError) as error:
        if is_machine_fault(error):
            raise
        raise UnreadableInstance(
            f"{path}: the data set cannot be parsed ({type(error).__name__}); send the object again"
        ) from error
    return ds, stop.pixels


class _Stop:
    """Ends the reading at the pixel data, and refuses lengths that the file cannot hold."""

    def __init__(self, path: Path, encoded: EncodedDataSet, tags: set[int] | None) -> None:
        self._path = path
        self._encoded = encoded
        self._last = max(tags) if tags else 0xFFFFFFFF
        self.pixels: PixelElement | None = None

    def __call__(self, tag: BaseTag, vr: str | None, length: int) -> bool:
        offset = self._encoded.stream.tell()
        if tag in _ANY_PIXEL_TAG:
            self.pixels = PixelElement(int(tag), vr, length, offset)
            return True
        if tag > self._last:
            return True
        remaining = self._encoded.size - offset
        if length != _UNDEFINED_LENGTH and length > remaining:
            raise UnreadableInstance(
                f"{self._path}: element ({tag >> 16:04X},{tag & 0xFFFF:04X}) says {length} bytes, "
                f"{remaining} remain: the data set is truncated; send the object again"
            )
        return False


def _tags_of(keywords: Iterable[str]) -> set[BaseTag | int]:
    """Return the tags of known keywords; Specific Character Set is always read by pydicom."""
    tags = (tag_for_keyword(keyword) for keyword in keywords)
    return {BaseTag(tag) for tag in tags if tag is not None}


def _drop_deferred(ds: Dataset) -> None:
    """Remove elements pydicom did not read: a plain data set cannot fetch them later."""
    deferred = [
        element.tag
        for element in ds.values()
        if element.value is None and getattr(element, "length", 0) > 0
    ]
    for tag in deferred:
        del ds[tag]
