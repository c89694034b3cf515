"""Small labelled images whose brightness says what a tiny model answers, and a stub predictor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid

from model.runtimes.port import FloatArray, PredictorDescription

EDGE = 72
"""Large enough for the gate."""


def grey(brightness: float, seed: int, edge: int = EDGE) -> np.ndarray:
    """Return 8 bit noise around a mean brightness in 0..1; no two seeds give the same."""
    rng = np.random.default_rng(seed)
    noisy = brightness * 255 + rng.normal(0, 8, (edge, edge))
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def put_film(path: Path, brightness: float, seed: int, edge: int = EDGE) -> Path:
    """Write a PNG or JPEG, as the name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), grey(brightness, seed, edge))
    return path


def put_dicom(path: Path, pixels: np.ndarray, **attributes: Any) -> Path:
    """Write pixels as a CR instance; attributes of None are left out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid(
        entropy_srcs=[str(path)]
    )
    ds.StudyInstanceUID = ds.SeriesInstanceUID = f"{ds.SOPInstanceUID[:50]}.1"
    ds.Modality, ds.PatientID = "CR", path.stem
    ds.Rows, ds.Columns = pixels.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    bits = pixels.dtype.itemsize * 8
    ds.BitsAllocated = ds.BitsStored = bits
    ds.HighBit, ds.PixelRepresentation = bits - 1, 0
    for keyword, value in attributes.items():
        if value is None:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    ds.PixelData = pixels.tobytes()
    ds.save_as(path, enforce_file_format=True)
    return path


class MeanPredictor:
    """A predictor of ``sigmoid(weight * mean + bias)`` for each label, with numpy only."""

    device = "CPU"

    def __init__(self, *weights: tuple[float, float]) -> None:
        self._weights = weights or ((8.0, -4.0),)

    def load(self) -> None:
        """Nothing to load."""

    def warm_up(self) -> float:
        """Nothing to compile."""
        return 0.0

    @property
    def description(self) -> PredictorDescription:
        """What stands in reports."""
        return PredictorDescription("stub", "numpy", "CPU", "float64", len(self._weights))

    def predict(self, batch: FloatArray) -> FloatArray:
        """Return (batch, labels)."""
        means = batch.mean(axis=tuple(range(1, batch.ndim)), dtype=np.float64)[:, np.newaxis]
        slopes = np.array([weight for weight, _ in self._weights])
        biases = np.array([bias for _, bias in self._weights])
        return (1 / (1 + np.exp(-(means * slopes + biases)))).astype(np.float32)
