"""A multi-frame object of any size, made on the way and never held whole.

Owns its data set: a short header and frames of one pattern over and over, so that what was stored
can be compared with what was sent.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random

from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import (
    ExplicitVRLittleEndian,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    generate_uid,
)

SIDE = 1024
_PATTERN_FRAMES = 2
_PIXEL_DATA_HEAD = b"\xe0\x7f\x10\x00OW\x00\x00"


@dataclass(frozen=True)
class MultiFrame:
    """Frames of 1024 x 1024, 16 bit, uncompressed: 2 MiB each."""

    study_instance_uid: str
    sop_instance_uid: str
    frames: int

    sop_class_uid = str(MultiFrameGrayscaleWordSecondaryCaptureImageStorage)
    transfer_syntax_uid = str(ExplicitVRLittleEndian)

    @classmethod
    def fresh(cls, size: int) -> MultiFrame:
        """Return one of about `size` bytes, under UIDs never used before."""
        return cls(generate_uid(), generate_uid(), size // (2 * SIDE * SIDE))

    @classmethod
    def from_argument(cls, argument: str) -> MultiFrame:
        """Return what `argument` described."""
        study, instance, frames = argument.split(",")
        return cls(study, instance, int(frames))

    @property
    def argument(self) -> str:
        """The description, for a command line."""
        return f"{self.study_instance_uid},{self.sop_instance_uid},{self.frames}"

    @property
    def size(self) -> int:
        """Bytes of the data set."""
        return len(self.header) + self._pixel_bytes

    @cached_property
    def header(self) -> bytes:
        """The data set up to the first pixel."""
        ds = Dataset()
        ds.SOPClassUID, ds.SOPInstanceUID = self.sop_class_uid, self.sop_instance_uid
        ds.StudyInstanceUID = self.study_instance_uid
        ds.SeriesInstanceUID = generate_uid(entropy_srcs=[self.study_instance_uid])
        ds.Modality, ds.ConversionType = "OT", "SYN"
        ds.Rows = ds.Columns = SIDE
        ds.NumberOfFrames, ds.SamplesPerPixel = self.frames, 1
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
        ds.PhotometricInterpretation = "MONOCHROME2"
        encoded = DicomBytesIO()
        encoded.is_little_endian, encoded.is_implicit_VR = True, False
        write_dataset(encoded, ds)
        return encoded.getvalue() + _PIXEL_DATA_HEAD + struct.pack("<L", self._pixel_bytes)

    def pieces(self) -> Iterator[memoryview]:
        """Yield the data set."""
        yield memoryview(self.header)
        pattern = memoryview(Random(1).randbytes(_PATTERN_FRAMES * 2 * SIDE * SIDE))
        left = self._pixel_bytes
        while left:
            piece = pattern[:left]
            left -= len(piece)
            yield piece

    def equals(self, stored: Path) -> bool:
        """True when the data set of a stored file is this one, byte for byte."""
        with stored.open("rb") as file:
            head = file.read(144)
            file.seek(int.from_bytes(head[140:144], "little"), 1)
            return all(file.read(len(piece)) == piece for piece in self.pieces()) and not file.read(
                1
            )

    @property
    def _pixel_bytes(self) -> int:
        return self.frames * 2 * SIDE * SIDE
