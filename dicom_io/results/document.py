"""What every result object has around its content: patient, study, series, equipment, encoding.

Owns the common modules of reports and captures and their byte-exact encoding. Reads no clock:
the same request gives the same bytes. VERIFIED and FINAL are not in its vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from io import BytesIO

from pydicom.config import RAISE
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.multival import MultiValue
from pydicom.uid import UID, ExplicitVRLittleEndian
from pydicom.valuerep import validate_value

from dicom_io.errors import CannotCompose
from dicom_io.reading import quiet_pydicom
from dicom_io.results import codes, identity
from dicom_io.results.reference import PATIENT_AND_STUDY, Evidence, InstanceReference, coded_item
from dicom_io.results.request import DocumentRole, EncodedDocument, ReportRequest
from dicom_io.vocabulary import (
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION_NAME,
    MANUFACTURER,
)

APPLICATION_NAME = "medimgd"
_LONG_STRING_MAX_LENGTH = 64
_TEXT_VRS = frozenset(
    {"AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT"}
)
_MODALITY = {
    DocumentRole.REPORT: "SR",
    DocumentRole.REGIONS: "SR",
    DocumentRole.CAPTURE: "OT",
}


@contextmanager
def composing(what: str) -> Iterator[None]:
    """Translate what the DICOM libraries raise about values into `CannotCompose`.

    Raises
    ------
    CannotCompose
        The cause is dropped on purpose: the libraries quote the values they dislike.
    """
    try:
        with quiet_pydicom():
            yield
    except (ValueError, TypeError, AttributeError, LookupError, OverflowError) as error:
        raise CannotCompose(
            f"{what} could not be composed ({type(error).__name__}); check the codes and names "
            "in the model package"
        ) from None


def new_document(
    request: ReportRequest, evidence: Evidence, role: DocumentRole, sop_class_uid: str
) -> Dataset:
    """Return a data set with the modules common to all results; its own UID is set by `encode`."""
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    for keyword in PATIENT_AND_STUDY:
        if keyword in evidence.header:
            ds[keyword] = evidence.header[keyword]
    _add_series(ds, request, role)
    _add_times(ds, analysis_time(request, evidence))
    ds.SOPClassUID = str(sop_class_uid)
    ds.InstanceNumber = request.version_number
    ds.Manufacturer = MANUFACTURER
    ds.ManufacturerModelName = APPLICATION_NAME
    ds.DeviceSerialNumber = _long_string(request.node_id)
    ds.SoftwareVersions = _long_string(request.software_version)
    ds.ContributingEquipmentSequence = [*_acquisition(evidence.header), _processing(request)]
    return ds


def analysis_time(request: ReportRequest, evidence: Evidence) -> datetime:
    """Return when the analysis started, in the zone that all times of the study are written in.

    The study's own offset wins where it states one; else the zone of ``analysis_started`` is
    kept, which the caller chooses to be the hospital's, as times without offset are read there.
    """
    offset = str(evidence.header.get("TimezoneOffsetFromUTC", ""))
    if not offset:
        return request.analysis_started
    minutes = int(offset[1:3]) * 60 + int(offset[3:5])
    zone = timezone(timedelta(minutes=-minutes if offset[0] == "-" else minutes))
    return request.analysis_started.astimezone(zone)


def reference_item(sop_class_uid: str, sop_instance_uid: str) -> Dataset:
    """Return an item that names one instance (PS3.3 Table 10-11)."""
    item = Dataset()
    item.ReferencedSOPClassUID = str(sop_class_uid)
    item.ReferencedSOPInstanceUID = sop_instance_uid
    return item


def reference_tree(study_instance_uid: str, references: Iterable[InstanceReference]) -> Dataset:
    """Return instances of one study grouped by series (PS3.3 Table C.17-3)."""
    by_series: dict[str, list[Dataset]] = {}
    for reference in references:
        by_series.setdefault(reference.series_instance_uid, []).append(
            reference_item(reference.sop_class_uid, reference.sop_instance_uid)
        )
    study = Dataset()
    study.StudyInstanceUID = study_instance_uid
    study.ReferencedSeriesSequence = []
    for series_instance_uid, instances in by_series.items():
        series = Dataset()
        series.SeriesInstanceUID = series_instance_uid
        series.ReferencedSOPSequence = instances
        study.ReferencedSeriesSequence.append(series)
    return study


def encode(ds: Dataset, request: ReportRequest, role: DocumentRole) -> EncodedDocument:
    """Check a complete data set, name it after its own content and write it as a Part 10 file.

    Raises
    ------
    ValueError
        When a value breaks its VR: pydicom by itself would warn and write it.
    """
    _check(ds)
    ds.SOPInstanceUID = identity.instance_uid(
        request.site_namespace, ds.SeriesInstanceUID, ds.SOPClassUID, _content_sha256(ds)
    )
    buffer = BytesIO()
    FileDataset(
        buffer, ds, preamble=b"\0" * 128, file_meta=_file_meta(ds), is_implicit_VR=False
    ).save_as(buffer, enforce_file_format=True)
    return EncodedDocument(
        role=role,
        study_instance_uid=str(ds.StudyInstanceUID),
        series_instance_uid=str(ds.SeriesInstanceUID),
        sop_class_uid=str(ds.SOPClassUID),
        sop_instance_uid=str(ds.SOPInstanceUID),
        data=buffer.getvalue(),
    )


def _add_series(ds: Dataset, request: ReportRequest, role: DocumentRole) -> None:
    ds.Modality = _MODALITY[role]
    ds.SeriesDescription = request.described(role)
    ds.SeriesNumber = identity.series_number(request.model, role)
    ds.SeriesInstanceUID = identity.series_uid(
        request.site_namespace,
        str(ds.StudyInstanceUID),
        request.model,
        role,
        ds.SeriesDescription,
    )


def _add_times(ds: Dataset, moment: datetime) -> None:
    ds.ContentDate = ds.InstanceCreationDate = moment.strftime("%Y%m%d")
    ds.ContentTime = ds.InstanceCreationTime = moment.strftime("%H%M%S.%f")


def _processing(request: ReportRequest) -> Dataset:
    """Return the algorithm as contributing equipment: how our own objects are known again."""
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = [coded_item(codes.PROCESSING_EQUIPMENT)]
    item.Manufacturer = MANUFACTURER
    item.ManufacturerModelName = _long_string(request.model.name)
    item.SoftwareVersions = _long_string(request.model.version)
    item.DeviceUID = identity.model_uid(request.site_namespace, request.model)
    item.ContributionDateTime = request.analysis_started.strftime("%Y%m%d%H%M%S.%f%z")
    item.ContributionDescription = "Preliminary AI analysis, not verified by a physician"
    return item


def _acquisition(header: Dataset) -> list[Dataset]:
    if "Manufacturer" not in header:
        return []
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = [coded_item(codes.ACQUISITION_EQUIPMENT)]
    for keyword in ("Manufacturer", "ManufacturerModelName", "DeviceSerialNumber"):
        if keyword in header:
            item[keyword] = header[keyword]
    return [item]


def _long_string(text: str) -> str:
    return text[:_LONG_STRING_MAX_LENGTH]


def _check(ds: Dataset) -> None:
    for element in ds:
        if element.VR == "SQ":
            for item in element.value:
                _check(item)
        elif element.VR in _TEXT_VRS:
            values = element.value if isinstance(element.value, MultiValue) else [element.value]
            for value in values:
                validate_value(element.VR, "" if value is None else str(value), RAISE)


def _content_sha256(ds: Dataset) -> str:
    """Return the digest of the encoded data set, which has no SOP Instance UID yet."""
    buffer = DicomBytesIO()
    buffer.is_little_endian = True
    buffer.is_implicit_VR = False
    write_dataset(buffer, ds)
    return hashlib.sha256(buffer.getvalue()).hexdigest()


def _file_meta(ds: Dataset) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = ds.SOPClassUID
    meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    return meta
