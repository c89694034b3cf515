"""Films as DICOM, wrapped as different devices would: bits, photometric interpretation, rescale."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

Wrap = Callable[[np.ndarray], dict[str, object]]


def eight_bit(film: np.ndarray) -> dict[str, object]:
    return {"stored": film.astype(np.uint8), "bits": 8, "photometric": "MONOCHROME2"}


def eight_bit_inverted(film: np.ndarray) -> dict[str, object]:
    return {"stored": (255 - film).astype(np.uint8), "bits": 8, "photometric": "MONOCHROME1"}


def twelve_bit(film: np.ndarray) -> dict[str, object]:
    stored = np.rint(film * (4095 / 255)).astype(np.uint16)
    return {"stored": stored, "bits": 12, "photometric": "MONOCHROME2"}


def twelve_bit_inverted(film: np.ndarray) -> dict[str, object]:
    stored = (4095 - np.rint(film * (4095 / 255))).astype(np.uint16)
    return {"stored": stored, "bits": 12, "photometric": "MONOCHROME1"}


def sixteen_bit_rescaled(film: np.ndarray) -> dict[str, object]:
    stored = (film * 100 + 7).astype(np.uint16)
    return {"stored": stored, "bits": 16, "photometric": "MONOCHROME2", "rescale": (0.5, -20)}


def colour(film: np.ndarray) -> dict[str, object]:
    stored = np.repeat(film.astype(np.uint8)[..., None], 3, axis=2)
    return {"stored": stored, "bits": 8, "photometric": "RGB"}


WRAPS = (
    eight_bit, eight_bit_inverted, twelve_bit, twelve_bit_inverted, sixteen_bit_rescaled, colour,
)  # fmt: skip


def bordered(film: np.ndarray) -> dict[str, object]:
    return eight_bit(np.pad(film, round(0.08 * film.shape[0])))


def bordered_above(film: np.ndarray) -> dict[str, object]:
    return twelve_bit_inverted(np.pad(film, ((round(0.12 * film.shape[0]), 0), (0, 0))))


def enlarged(film: np.ndarray) -> dict[str, object]:
    return twelve_bit(np.kron(film, np.ones((3, 3))))


FRAMES = (bordered, bordered_above, enlarged)
"""The same film with other edges; its score may differ, what it shows does not."""


def lied_about(film: np.ndarray) -> dict[str, object]:
    """Inverted, and the header says that it is not."""
    return {**eight_bit_inverted(film), "photometric": "MONOCHROME2"}


def write_film(path: Path, wrapped: dict[str, object], **attributes: object) -> Path:
    stored = np.ascontiguousarray(wrapped["stored"])
    bits = int(str(wrapped["bits"]))
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    ds.SOPClassUID = DigitalXRayImageStorageForPresentation
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID
    ds.StudyInstanceUID, ds.SeriesInstanceUID = generate_uid(), generate_uid()
    ds.Modality, ds.BodyPartExamined, ds.ViewPosition = "DX", "CHEST", "PA"
    ds.PatientAge = "003Y"
    ds.Rows, ds.Columns = stored.shape[:2]
    ds.SamplesPerPixel = 3 if stored.ndim == 3 else 1
    if stored.ndim == 3:
        ds.PlanarConfiguration = 0
    ds.PhotometricInterpretation = wrapped["photometric"]
    ds.BitsAllocated = stored.dtype.itemsize * 8
    ds.BitsStored, ds.HighBit, ds.PixelRepresentation = bits, bits - 1, 0
    if "rescale" in wrapped:
        ds.RescaleSlope, ds.RescaleIntercept = wrapped["rescale"]
    ds.PixelData = stored.tobytes()
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    ds.save_as(path, enforce_file_format=True)
    return path
