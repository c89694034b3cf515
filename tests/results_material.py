"""Films and requests for the tests of results: one place that knows what a complete one holds."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian

from dicom_io.errors import RefusalReason
from dicom_io.reading import quiet_pydicom
from dicom_io.results.request import RefusalDetail, ReportRequest
from dicom_io.vocabulary import Code, Finding, ModelIdentity, PresenceValues

SITE = uuid.UUID("6ba7b810-9dad-11d1-80b4-00c04fd430c8")
LUNG = Code("39607008", "SCT", "Lung")
CODES = {
    "Pneumonia": Code("233604007", "SCT", "Pneumonia"),
    "Pneumothorax": Code("36118008", "SCT", "Pneumothorax"),
    "Effusion": Code("60046008", "SCT", "Pleural effusion"),
}
MODEL = ModelIdentity(
    name="cxr-pneumonia",
    version="1.0.0",
    weights_sha256="ab" * 32,
    title="Paediatric chest X-ray pneumonia",
    intended_use="Second look at frontal films of children",
)
REFUSAL = RefusalDetail(RefusalReason.CANNOT_DECODE, "JPEG Extended 12 bit cannot be decoded.")


def _request_attributes() -> Dataset:
    item = Dataset()
    item.AccessionNumber = "ACC-1"
    item.RequestedProcedureID = "RP-1"
    item.RequestedProcedureDescription = "Chest in one plane"
    item.PlacerOrderNumberImagingServiceRequest = "PLACER-1"
    item.FillerOrderNumberImagingServiceRequest = "FILLER-1"
    return item


def make_film_header(**changes: Any) -> Dataset:
    """Return a complete CR data set; ``None`` removes an attribute, any other value replaces it."""
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SOPClassUID = ComputedRadiographyImageStorage
    ds.SOPInstanceUID = "2.25.1003"
    ds.StudyInstanceUID = "2.25.1001"
    ds.SeriesInstanceUID = "2.25.1002"
    ds.PatientName = "Muster^Mara"
    ds.PatientID = "P-1"
    ds.IssuerOfPatientID = "HOSPITAL"
    ds.PatientBirthDate = "20200102"
    ds.PatientSex = "F"
    ds.PatientAge = "004Y"
    ds.PatientWeight = "17.5"
    ds.StudyDate = "20240506"
    ds.StudyTime = "101500"
    ds.StudyID = "S-1"
    ds.StudyDescription = "Chest frontal"
    ds.AccessionNumber = "ACC-1"
    ds.ReferringPhysicianName = "Doctor^Dora"
    ds.Modality = "CR"
    ds.Manufacturer = "Film Maker"
    ds.ManufacturerModelName = "F-1"
    ds.BodyPartExamined = "CHEST"
    ds.InstanceNumber = 1
    ds.PatientOrientation = ["L", "F"]
    ds.RequestAttributesSequence = [_request_attributes()]
    ds.Rows = ds.Columns = 4
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit = 7
    ds.PixelRepresentation = 0
    ds.PixelData = bytes(range(16))
    for keyword, value in changes.items():
        if value is None:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    return ds


def write_film(folder: Path, header: Dataset | None = None, **changes: Any) -> Path:
    """Write a film, values that break their VR included, as a Part 10 file."""
    with quiet_pydicom():
        ds = make_film_header(**changes) if header is None else header
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
        meta.MediaStorageSOPInstanceUID = "2.25.1003"
        path = folder / f"{ds.SOPInstanceUID}.dcm"
        FileDataset(path, ds, preamble=b"\0" * 128, file_meta=meta).save_as(path)
        return path


def damaged_film(folder: Path, removed: set[str], emptied: set[str], odd: dict[str, str]) -> Path:
    """Write a film from whose header attributes are removed, emptied or overwritten."""
    with quiet_pydicom():
        ds = make_film_header()
        for keyword, value in odd.items():
            if ds[keyword].VR in {"PN", "LO", "SH"} or value.isascii():
                ds[keyword].value = value
        for keyword in emptied:
            ds[keyword].value = [] if ds[keyword].VR == "SQ" else None
        for keyword in removed:
            del ds[keyword]
        return write_film(folder, ds)


IDENTITY = ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID")
DAMAGED = sorted(set(make_film_header().dir()) - set(IDENTITY) - {"PixelData"})
TEXTUAL = [
    name for name in DAMAGED if make_film_header()[name].VR not in {"US", "SQ", "IS", "DS", "OB"}
]
ODD_VALUES = ("", "x", "\\", "^^^^^^=^=^=", "99999999", "-1", "日本", "a" * 200, "\x1b$B;3")
damage = st.tuples(
    st.sets(st.sampled_from(DAMAGED)),
    st.sets(st.sampled_from(DAMAGED)),
    st.dictionaries(st.sampled_from(TEXTUAL), st.sampled_from(ODD_VALUES)),
)
"""What may happen to a header: attributes removed, emptied, overwritten."""


def make_finding(label: str, presence: PresenceValues, probability: float) -> Finding:
    return Finding(
        label=label,
        code=CODES.get(label, Code(label.upper()[:16], "99TEST", label[:64])),
        site=LUNG,
        presence=presence,
        probability=probability,
        threshold=0.5,
        undetermined_low=0.4,
        undetermined_high=0.6,
    )


POSITIVE = make_finding("Pneumonia", PresenceValues.PRESENT, 0.83)
NEGATIVE = make_finding("Pneumothorax", PresenceValues.ABSENT, 0.0412345)
UNCLEAR = make_finding("Effusion", PresenceValues.UNDETERMINED, 0.5)


def make_request(*paths: Path, **changes: Any) -> ReportRequest:
    """Return a request over `paths`, citing the first; a refusal replaces the findings."""
    fields: dict[str, Any] = {
        "evidence": paths,
        "cited": paths[:1],
        "model": MODEL,
        "findings": () if "refusal" in changes else (POSITIVE, NEGATIVE, UNCLEAR),
        "analysis_started": datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC),
        "result_digest": "cd" * 32,
        "node_id": "node-1",
        "software_version": "0.1.0",
        "site_namespace": SITE,
    }
    return ReportRequest(**{**fields, **changes})


def make_picture(rows: int = 60, columns: int = 40) -> npt.NDArray[np.float32]:
    return np.linspace(0, 1, rows * columns, dtype=np.float32).reshape(rows, columns)
