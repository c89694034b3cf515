"""Part 10 files made in the test, small enough that every pixel can be checked by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

STUDY_UID = "1.2.3.1"
SERIES_UID = "1.2.3.1.1"
CT_CLASS = "1.2.840.10008.5.1.4.1.1.2"
FRAME_OF_REFERENCE_UID = "1.2.3.9"

WriteImage = Callable[..., Path]


def image_data_set(pixels: np.ndarray, number: int = 1, **attributes: Any) -> Dataset:
    """Describe an array as an image: grey when 2-D, RGB when its last axis is 3.

    A keyword set to None is left out of the data set.
    """
    ds = Dataset()
    ds.SOPClassUID = CT_CLASS
    ds.SOPInstanceUID = f"{SERIES_UID}.{number}"
    ds.StudyInstanceUID = STUDY_UID
    ds.SeriesInstanceUID = SERIES_UID
    ds.Modality = "CT"
    ds.PatientName = "Doe^Jane"
    is_colour = pixels.ndim == 3 and pixels.shape[-1] == 3
    ds.SamplesPerPixel = 3 if is_colour else 1
    ds.PhotometricInterpretation = "RGB" if is_colour else "MONOCHROME2"
    if is_colour:
        ds.PlanarConfiguration = 0
    if pixels.ndim == 3 and not is_colour:
        ds.NumberOfFrames, (ds.Rows, ds.Columns) = pixels.shape[0], pixels.shape[1:]
    else:
        ds.Rows, ds.Columns = pixels.shape[:2]
    ds.BitsAllocated = pixels.dtype.itemsize * 8
    ds.BitsStored = ds.BitsAllocated
    ds.HighBit = ds.BitsStored - 1
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    encoded = pixels.tobytes()
    ds["PixelData"] = _pixel_element(encoded + b"\0" * (len(encoded) % 2), ds.BitsAllocated)
    for keyword, value in attributes.items():
        if value is None:
            del ds[keyword]
        else:
            setattr(ds, keyword, value)
    return ds


def _pixel_element(encoded: bytes, bits_allocated: int) -> Any:
    return DataElement(0x7FE00010, "OB" if bits_allocated <= 8 else "OW", encoded)


def save(ds: Dataset, path: Path, transfer_syntax_uid: str = ExplicitVRLittleEndian) -> Path:
    """Write a data set as a Part 10 file."""
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = UID(transfer_syntax_uid)
    ds.file_meta.MediaStorageSOPClassUID = ds.get("SOPClassUID", CT_CLASS)
    ds.file_meta.MediaStorageSOPInstanceUID = ds.get("SOPInstanceUID") or "1.2.3.4"
    ds.save_as(path, enforce_file_format=True)
    return path
