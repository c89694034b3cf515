"""What the benchmarks are fed: real studies under fresh UIDs, and one synthetic film.

Owns the scratch folder and the setting that says where the real material lies.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

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


@dataclass
class Workshop:
    """A scratch folder, the material, and how thorough a run is asked for."""

    folder: Path
    quick: bool

    def room(self, name: str) -> Path:
        """Return a new folder."""
        number = sum(1 for each in self.folder.iterdir() if each.name.startswith(name))
        room = self.folder / f"{name}-{number}"
        room.mkdir()
        return room

    def rounds(self, full: int, quick: int = 1) -> int:
        """Return how often to repeat."""
        return quick if self.quick else full

    @cached_property
    def ct_series(self) -> tuple[Path, ...]:
        """The real CT series: 60 slices of 512 x 512, 16 bit, uncompressed."""
        archive = _testdata() / "ct-chest-60.zip"
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(self.folder / "ct")
        return tuple(sorted((self.folder / "ct").rglob("*.dcm")))


def _testdata() -> Path:
    folder = Path(os.environ.get(TESTDATA_SETTING, _BESIDE_THE_CHECKOUT))
    if not (folder / "MANIFEST.tsv").is_file():
        raise MaterialMissing(
            f"no test material at {folder}: set {TESTDATA_SETTING} to the testdata folder "
            "(the benchmarks 'queue', 'status' and 'memory' need none)"
        )
    return folder


def fresh_studies(source: Sequence[Path], count: int, folder: Path) -> Iterator[StudyFiles]:
    """Write the instances of `source` again and again as studies that were never seen.

    Yields
    ------
    StudyFiles
        Each when it is written, so that a caller may send it before the next one is.
    """
    originals = [pydicom.dcmread(path) for path in source]
    for number in range(count):
        study, series = generate_uid(), generate_uid()
        target = folder / f"study-{number:04d}"
        target.mkdir()
        paths = []
        for position, ds in enumerate(originals):
            ds.StudyInstanceUID, ds.SeriesInstanceUID = study, series
            ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            paths.append(target / f"{position:04d}.dcm")
            ds.save_as(paths[-1])
        yield StudyFiles(study, tuple(paths))


def write_large_film(path: Path) -> Path:
    """Write a synthetic film of 5 megapixels, 12 of 16 bits, uncompressed."""
    # A smooth lung-like field with grain: flat values would make percentiles and caches too easy.
    down, across = np.ogrid[-1 : 1 : LARGE_ROWS * 1j, -1 : 1 : LARGE_COLUMNS * 1j]
    field = 2000 + 1400 * np.cos(3 * across) * np.cos(2 * down)
    grain = np.random.default_rng(1).normal(0, 40, (LARGE_ROWS, LARGE_COLUMNS))
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.Modality = generate_uid(), generate_uid(), "DX"
    ds.Rows, ds.Columns, ds.SamplesPerPixel = LARGE_ROWS, LARGE_COLUMNS, 1
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.RescaleSlope, ds.RescaleIntercept = 1, 0
    ds.PixelData = np.clip(field + grain, 0, 4095).astype("<u2").tobytes()
    ds.save_as(path, enforce_file_format=True)
    return path
