"""Real series as volumes, and altered copies of them as series on disk.

Owns the way from files to arrays and back, by ``dicom_io``'s own steps. What is altered, and
what is said of it, comes from outside.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from dicom_io.derived import Derivation, write_derived
from dicom_io.header import read_attributes
from dicom_io.image_files import FileKindValues, file_kind
from dicom_io.volume import iter_slices, open_series
from model.errors import TrainingDataFault
from model.training.sources import opened

Volume = npt.NDArray[np.float32]
"""(slices, rows, columns) in modality units."""

MANIFEST = "manifest.csv"


@dataclass(frozen=True, slots=True)
class SourceSeries:
    """A real series: its volume, and the file that each slice came from."""

    values: Volume
    spacing_mm: tuple[float, float, float]
    """Between slices, rows and columns."""
    paths: tuple[Path, ...]
    patient: str
    """De-identified; the test material's own."""


@dataclass(frozen=True, slots=True)
class Placement:
    """How a copy lies in the plane, against its source; the same for all its slices."""

    is_mirrored: bool = False
    """Left and right exchanged."""
    degrees: float = 0.0
    zoom: float = 1.0
    shift_pixels: tuple[float, float] = (0.0, 0.0)
    """Along rows and columns."""

    @property
    def in_words(self) -> str:
        """The placement for a manifest's column."""
        parts = ["mirrored"] if self.is_mirrored else []
        if self.degrees or self.zoom != 1 or any(self.shift_pixels):
            parts.append(f"turned {self.degrees:.1f} degrees, enlarged {self.zoom:.3f}")
        return "; ".join(parts) or "as it is"


@dataclass(frozen=True, slots=True)
class SeriesRow:
    """One line of the manifest: a series folder and what is known of it."""

    name: str
    labels: str
    split: str
    patient: str
    columns: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def source_series(source: Path) -> Iterator[SourceSeries]:
    """Yield the one series of a folder or zip; a zip is unpacked for the while.

    Raises
    ------
    TrainingDataFault
        There is no DICOM file in it.
    UnsuitableSeries, CannotDecode, UnreadableInstance
        Its files make no even stack of grey slices.
    """
    with opened(source) as folder:
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        paths = [path for path in files if file_kind(path) is FileKindValues.DICOM]
        if not paths:
            raise TrainingDataFault(f"{source.name}: holds no DICOM file")
        series = open_series(paths)
        first = series.stack.slices[0]
        values = np.empty((len(series.stack.slices), first.rows, first.columns), dtype=np.float32)
        for index, grey in iter_slices(series):
            values[index] = grey.values
        patient = str(read_attributes(first.path, ["PatientID"])["PatientID"] or "unknown")
        ordered = tuple(plane.path for plane in series.stack.slices)
        yield SourceSeries(values, series.stack.spacing_mm, ordered, patient)


def placed(volume: Volume, placement: Placement, fill: float) -> Volume:
    """Return the volume mirrored, turned, enlarged and shifted in its plane.

    Parameters
    ----------
    volume : numpy.ndarray
        (slices, rows, columns).
    placement : Placement
    fill : float
        What comes in from outside.
    """
    flipped = volume[:, :, ::-1] if placement.is_mirrored else volume
    if placement.degrees == 0 and placement.zoom == 1 and not any(placement.shift_pixels):
        return np.ascontiguousarray(flipped)
    rows, columns = volume.shape[1:]
    matrix = cv2.getRotationMatrix2D(
        ((columns - 1) / 2, (rows - 1) / 2), placement.degrees, placement.zoom
    )
    matrix[:, 2] += np.array(placement.shift_pixels[::-1])
    planes = [
        # Cubic keeps the grain of the image; linear interpolation would smooth it away.
        cv2.warpAffine(
            np.ascontiguousarray(plane), matrix, (columns, rows),
            flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_CONSTANT, borderValue=fill,
        )
        for plane in flipped
    ]  # fmt: skip
    return np.stack(planes).astype(np.float32)


def random_placement(rng: np.random.Generator, moved_share: float = 0.6) -> Placement:
    """Draw a placement: half of them mirrored, a part of them moved a little besides."""
    is_mirrored = bool(rng.random() < 0.5)
    if rng.random() >= moved_share:
        return Placement(is_mirrored)
    down, right = rng.uniform(-12.0, 12.0, size=2)
    return Placement(
        is_mirrored,
        degrees=float(rng.uniform(-8.0, 8.0)),
        zoom=float(np.exp(rng.uniform(-0.1, 0.1))),
        shift_pixels=(float(down), float(right)),
    )


def write_series(
    folder: Path, sources: Sequence[Path], planes: Volume, derivation: Derivation
) -> tuple[str, ...]:
    """Write a copy of some slices with other pixels into a folder of its own.

    Returns
    -------
    tuple of str
        SOP Instance UIDs, in the order of the slices.
    """
    folder.mkdir(parents=True)
    return tuple(
        write_derived(source, folder / f"{number:03}.dcm", plane, derivation)
        for number, (source, plane) in enumerate(zip(sources, planes, strict=True))
    )


def write_manifest(folder: Path, rows: Sequence[SeriesRow]) -> Path:
    """Write the CSV manifest of a set, as ``medimgd data check`` and training read it."""
    path = folder / MANIFEST
    further = list(dict.fromkeys(name for row in rows for name in row.columns))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "labels", "split", "patient", *further])
        for row in rows:
            cells = [row.columns.get(name, "") for name in further]
            writer.writerow([row.name, row.labels, row.split, row.patient, *cells])
    return path
