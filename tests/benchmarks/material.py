"""What the benchmarks are fed: real studies under fresh UIDs, and one synthetic film.

Owns the scratch folder and the setting that says where the real material lies.
"""

from __future__ import annotations

import os
import secrets
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count as counting
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    generate_uid,
)

from daemon.demo import SAMPLES
from tests.conftest import _BESIDE_THE_CHECKOUT, TESTDATA_SETTING

FILM = SAMPLES / "chest-xray" / "film.dcm"
"""The bundled film: 224 x 224, 8 bit, uncompressed."""
LARGE_ROWS, LARGE_COLUMNS = 2560, 2048


class MaterialMissing(Exception):
    """The real test material is not where the setting says."""


@dataclass(frozen=True)
class StudyFiles:
    """A study on disk, ready to be sent."""

    study_instance_uid: str
    paths: tuple[Path, ...]

    def beginning(self, share: float) -> StudyFiles:
        """Return the same study without its last instances; at least one is left."""
        return replace(self, paths=self.paths[: max(1, round(share * len(self.paths)))])


@dataclass
class Workshop:
    """A scratch folder, the material, and how thorough a run is asked for."""

    folder: Path
    quick: bool
    _numbers: Iterator[int] = field(default_factory=counting)

    def room(self, name: str) -> Path:
        """Return a new folder."""
        room = self.folder / f"{name}-{next(self._numbers)}"
        room.mkdir()
        return room

    @contextmanager
    def passing_room(self, name: str) -> Iterator[Path]:
        """Give a new folder for the block, on a disk that is at rest.

        What others left in the page cache would be written during the block, and what is written
        in it during the next one. Its files are emptied at the end and removed only with the whole
        workshop: ext4 spends a quarter of a receiver's time on looking for new inodes while those
        of files just deleted lie among them.
        """
        room = self.room(name)
        os.sync()
        try:
            yield room
        finally:
            for path in room.rglob("*"):
                if path.is_file():
                    os.truncate(path, 0)

    def rounds(self, full: int, quick: int = 1) -> int:
        """Return how often to repeat."""
        return quick if self.quick else full

    @cached_property
    def testdata(self) -> Path:
        """The folder of the real material."""
        return _testdata()

    @cached_property
    def ct_series(self) -> tuple[Path, ...]:
        """The real CT series: 60 slices of 512 x 512, 16 bit, uncompressed."""
        return self._series("ct-chest-60")

    @cached_property
    def mr_series(self) -> tuple[Path, ...]:
        """The real MR series: 60 slices of a head."""
        return self._series("mr-head-t1-60")

    def _series(self, name: str) -> tuple[Path, ...]:
        with zipfile.ZipFile(self.testdata / f"{name}.zip") as packed:
            packed.extractall(self.folder / name)
        return tuple(sorted((self.folder / name).rglob("*.dcm")))


def _testdata() -> Path:
    folder = Path(os.environ.get(TESTDATA_SETTING, _BESIDE_THE_CHECKOUT))
    if not (folder / "MANIFEST.tsv").is_file():
        raise MaterialMissing(
            f"no test material at {folder}: set {TESTDATA_SETTING} to the testdata folder "
            "(the benchmarks 'queue', 'status' and 'memory' need none)"
        )
    return folder


@dataclass(frozen=True)
class _Original:
    """A file, and where its UIDs lie in it."""

    data: bytes
    study: slice
    series: slice
    instance: tuple[slice, slice]
    """In group 2 and in the data set."""

    @classmethod
    def read(cls, path: Path) -> _Original:
        """Find the UIDs of a file whose data set is not deflated."""
        data, ds = path.read_bytes(), pydicom.dcmread(path, stop_before_pixels=True)
        # Group 2 is always explicit little endian: tag, VR, then a length of two bytes.
        at = data.index(b"\x02\x00\x03\x00UI") + 8
        in_group_2 = slice(at, at + int.from_bytes(data[at - 2 : at], "little"))
        study, series, instance = (
            _place(ds, each) for each in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
        )
        return cls(data, study, series, (in_group_2, instance))

    def renamed(self, study: str, series: str, instance: str) -> bytes:
        """Return the same file under other UIDs, which must be as long as the old ones."""
        copy = bytearray(self.data)
        instances = ((place, instance) for place in self.instance)
        for place, uid in ((self.study, study), (self.series, series), *instances):
            assert place.stop - place.start == len(uid)
            copy[place] = uid.encode()
        return bytes(copy)


def _place(ds: Dataset, keyword: str) -> slice:
    raw = ds.get_item(keyword)
    assert isinstance(raw, RawDataElement)
    return slice(raw.value_tell, raw.value_tell + raw.length)


def _fresh_uid(place: slice) -> str:
    """Return a UID never used before that fills a place, padding included."""
    digits = place.stop - place.start - len("2.25.1")
    return f"2.25.1{secrets.randbelow(10**digits):0{digits}}"


def fresh_studies(
    source: Sequence[Path], count: int, folder: Path, instances: int | None = None
) -> Iterator[StudyFiles]:
    """Write the instances of `source` again and again as studies that were never seen.

    Only the UIDs differ from the originals, byte for byte; each file bears its SOP Instance UID as
    its name. A study has as many instances as `source`, or `instances`, however few the originals.

    Yields
    ------
    StudyFiles
        Each when it is written, so that a caller may send it before the next one is.
    """
    originals = [_Original.read(path) for path in source]
    for number in range(count):
        study, series = _fresh_uid(originals[0].study), _fresh_uid(originals[0].series)
        target = folder / f"study-{number:04d}"
        target.mkdir(parents=True)
        paths = []
        for original in islice(cycle(originals), instances or len(originals)):
            uid = _fresh_uid(original.instance[0])
            paths.append(target / f"{uid}.dcm")
            paths[-1].write_bytes(original.renamed(study, series, uid))
        yield StudyFiles(study, tuple(paths))


def write_large_film(path: Path, rows: int = LARGE_ROWS, columns: int = LARGE_COLUMNS) -> Path:
    """Write a synthetic film, 12 of 16 bits, uncompressed; 5 megapixels unless told otherwise."""
    # A smooth lung-like field with grain: flat values would make percentiles and caches too easy.
    down, across = np.ogrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
    field = 2000 + 1400 * np.cos(3 * across) * np.cos(2 * down)
    grain = np.random.default_rng(1).normal(0, 40, (rows, columns))
    return _write(path, DigitalXRayImageStorageForPresentation, "DX", field + grain)


def write_tiny_slice(path: Path) -> Path:
    """Write a synthetic CT slice of 60 x 60: 8 KB with its header."""
    return _write(path, CTImageStorage, "CT", np.random.default_rng(1).normal(2000, 40, (60, 60)))


def _write(path: Path, sop_class_uid: str, modality: str, pixels: NDArray[np.float64]) -> Path:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = sop_class_uid
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.Modality = (
        generate_uid(),
        generate_uid(),
        modality,
    )
    (ds.Rows, ds.Columns), ds.SamplesPerPixel = pixels.shape, 1
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.RescaleSlope, ds.RescaleIntercept = 1, 0
    ds.PixelData = np.clip(pixels, 0, 4095).astype("<u2").tobytes()
    ds.save_as(path, enforce_file_format=True)
    return path
