"""What the index, the selection and the report builder read from one stored instance.

Owns the choice of attributes and the checks of the UIDs an instance is filed under. It must not
touch pixel data: that is ``decoding``'s.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    JPEG2000MC,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSNearLossless,
)
from pydicom.valuerep import PersonName

from dicom_io.attributes import (
    AttributeValue,
    age_years,
    attribute_value,
    integer,
    items,
    number,
    numbers,
    raw_value,
    readable_groups,
    text,
)
from dicom_io.errors import UnreadableInstance
from dicom_io.reading import CONVERSION_FAULTS, machine_faults, parse_header, quiet_pydicom
from dicom_io.vocabulary import MANUFACTURER, InstanceHeader, checked_uid

__all__ = [
    "AttributeValue",
    "is_known_keyword",
    "is_person_name",
    "read_attributes",
    "read_header",
    "read_reference",
]

MAX_HEADER_VALUE_BYTES = 64 * 1024
"""Longer values say nothing an index or a report needs; they are left out."""

MAX_INDEXED_CHARACTERS = 1024
"""Longer text is cut for the index; the longest legal value, a person name, has 194."""

MAX_REFERENCE_DEPTH = 12
"""Sequences nested deeper than any information object needs are left out of reference headers."""

PSEUDO_KEYWORDS = frozenset({"age_years", "lossy_ratio"})
"""Derived values that conditions may name beside DICOM keywords; lower case, so never confused."""

_UID_KEYWORDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
_HEADER_KEYWORDS = (
    *_UID_KEYWORDS,
    "Modality",
    "StudyDate",
    "StudyTime",
    "StudyDescription",
    "SeriesDescription",
    "SeriesNumber",
    "InstanceNumber",
    "BodyPartExamined",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "ContributingEquipmentSequence",
    "PatientID",
    "PatientName",
    "AccessionNumber",
)
_AGE_KEYWORDS = ("PatientAge", "PatientBirthDate", "StudyDate")
_LOSSY_KEYWORDS = (
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "BitsAllocated",
)
_FUNCTIONAL_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_LOSSY_SYNTAXES = frozenset(
    str(uid)
    for uid in (
        HTJ2K,
        JPEGBaseline8Bit,
        JPEGExtended12Bit,
        JPEGLSNearLossless,
        JPEG2000,
        JPEG2000MC,
    )
)


def read_header(path: Path) -> InstanceHeader:
    """Read what the index keeps of a stored Part 10 file, without its pixels.

    Works as well on the temporary file the receiver has just written. Text that cannot be decoded
    and numbers that are illegal come back empty; text is printable and at most
    ``MAX_INDEXED_CHARACTERS`` long. UIDs are checked, because they become paths.

    Raises
    ------
    UnreadableInstance
        The file is not Part 10, truncated, hostile, or lacks a UID it is filed under.
    InvalidUID
        A UID breaks PS3.5 section 9.1.
    InstanceUnavailable
        The file is missing or cannot be read now.
    """
    ds = parse_header(path, _HEADER_KEYWORDS, MAX_HEADER_VALUE_BYTES)
    with machine_faults(path), quiet_pydicom():
        return _header_of(path, ds)


def _header_of(path: Path, ds: Dataset) -> InstanceHeader:
    study, series, instance, sop_class = (_uid(path, ds, keyword) for keyword in _UID_KEYWORDS)
    return InstanceHeader(
        study_instance_uid=study,
        series_instance_uid=series,
        sop_instance_uid=instance,
        sop_class_uid=sop_class,
        transfer_syntax_uid=checked_uid(
            str(ds.file_meta.TransferSyntaxUID), "TransferSyntaxUID (0002,0010)"
        ),
        modality=_indexed(ds, "Modality"),
        study_date=_indexed(ds, "StudyDate"),
        study_time=_indexed(ds, "StudyTime"),
        study_description=_indexed(ds, "StudyDescription"),
        series_description=_indexed(ds, "SeriesDescription"),
        series_number=integer(ds, "SeriesNumber"),
        instance_number=integer(ds, "InstanceNumber"),
        body_part_examined=_indexed(ds, "BodyPartExamined"),
        number_of_frames=max(integer(ds, "NumberOfFrames") or 1, 1),
        rows=max(integer(ds, "Rows") or 0, 0),
        columns=max(integer(ds, "Columns") or 0, 0),
        is_own=_is_own(ds),
        patient_id=_indexed(ds, "PatientID"),
        patient_name=_patient_name(ds),
        accession_number=_indexed(ds, "AccessionNumber"),
    )


def _indexed(ds: Dataset, keyword: str) -> str:
    return text(ds, keyword)[:MAX_INDEXED_CHARACTERS].rstrip()


def _patient_name(ds: Dataset) -> str:
    """Return every group of the name that is filled, between equals signs as in a PN value.

    A name is looked for as a ward writes it, be it in Latin letters or not.
    """
    value = raw_value(ds, "PatientName")
    if not isinstance(value, PersonName):
        return _indexed(ds, "PatientName")
    return "=".join(readable_groups(value))[:MAX_INDEXED_CHARACTERS].rstrip()


def _uid(path: Path, ds: Dataset, keyword: str) -> str:
    value = text(ds, keyword)
    if not value:
        tag = tag_for_keyword(keyword) or 0
        raise UnreadableInstance(
            f"{path}: {keyword} ({tag >> 16:04X},{tag & 0xFFFF:04X}) is missing or empty; "
            "an instance without it cannot be filed: correct it at the sender"
        )
    return checked_uid(value, keyword)


def _is_own(ds: Dataset) -> bool:
    """Recognise our results by the equipment that contributed to them (PS3.3 C.12.1.1.5)."""
    equipment = items(ds, "ContributingEquipmentSequence")
    return any(text(item, "Manufacturer") == MANUFACTURER for item in equipment)


def is_known_keyword(keyword: str) -> bool:
    """Return True for the DICOM keywords and pseudo keywords ``read_attributes`` answers for."""
    return keyword in PSEUDO_KEYWORDS or tag_for_keyword(keyword) is not None


def is_person_name(keyword: str) -> bool:
    """Return True for keywords of attributes that hold a person's name (VR PN)."""
    tag = tag_for_keyword(keyword)
    return tag is not None and dictionary_VR(tag) == "PN"


def read_attributes(path: Path, keywords: Iterable[str]) -> dict[str, AttributeValue]:
    """Read attributes by keyword, in the plain types that selection conditions compare.

    Attributes of enhanced objects are looked up in the shared functional groups, then in those of
    the first frame, when the top level does not hold them. ``age_years`` is the patient's age
    as number of years; ``lossy_ratio`` is 1 for images never compressed lossily, else the largest
    ratio stated, else the ratio of pixel bytes to file size, and None where pixels that were
    compressed lossily once no longer are.

    Parameters
    ----------
    path : Path
        A stored Part 10 file.
    keywords : iterable of str
        DICOM keywords and pseudo keywords. An unknown one is None; check with
        ``is_known_keyword`` where it is configured.

    Returns
    -------
    dict of str to AttributeValue
        One entry per keyword asked for.

    Raises
    ------
    UnreadableInstance
        The file is not Part 10, truncated or hostile.
    InstanceUnavailable
        The file is missing or cannot be read now.
    """
    wanted = list(dict.fromkeys(keywords))
    ds = parse_header(path, _elements_for(wanted), MAX_HEADER_VALUE_BYTES)
    with machine_faults(path), quiet_pydicom():
        found = {keyword: _answer(path, ds, keyword) for keyword in wanted}
        absent = [keyword for keyword in wanted if found[keyword] is None]
        if absent and integer(ds, "NumberOfFrames") is not None:
            found.update(_grouped(path, absent))
    return found


def _elements_for(wanted: list[str]) -> list[str]:
    elements = ["SOPClassUID", "NumberOfFrames", *wanted]
    if "age_years" in wanted:
        elements += _AGE_KEYWORDS
    if "lossy_ratio" in wanted:
        elements += _LOSSY_KEYWORDS
    return elements


def _answer(path: Path, ds: Dataset, keyword: str) -> AttributeValue:
    if keyword == "age_years":
        return age_years(ds)
    if keyword == "lossy_ratio":
        return _lossy_ratio(path, ds)
    return attribute_value(ds, keyword)


def _grouped(path: Path, absent: list[str]) -> dict[str, AttributeValue]:
    """Find attributes in the functional groups of an enhanced object (PS3.3 C.7.6.16)."""
    ds = parse_header(path, _FUNCTIONAL_GROUPS)
    groups = [
        macro
        for sequence in _FUNCTIONAL_GROUPS
        for item in items(ds, sequence)[:1]
        for element in _keywords_of(item)
        for macro in items(item, element)[:1]
    ]
    found: dict[str, AttributeValue] = {}
    for keyword in absent:
        values = (attribute_value(macro, keyword) for macro in groups if keyword in macro)
        found[keyword] = next((value for value in values if value is not None), None)
    return found


def _keywords_of(item: Dataset) -> list[str]:
    return [str(keyword) for keyword in item.dir()]


def _lossy_ratio(path: Path, ds: Dataset) -> float | None:
    """Return the strongest lossy compression the pixels went through (PS3.3 C.7.6.1.1.5)."""
    # A ratio below 1 is none: some devices write 0 where they know nothing.
    stated = max(numbers(ds, "LossyImageCompressionRatio"), default=0.0)
    if stated >= 1:
        return stated
    if str(ds.file_meta.TransferSyntaxUID) in _LOSSY_SYNTAXES:
        return _size_ratio(path, ds)
    # The size of pixels that were decompressed since says nothing of what they went through.
    return None if text(ds, "LossyImageCompression") == "01" else 1.0


def _size_ratio(path: Path, ds: Dataset) -> float | None:
    factors = [number(ds, keyword) for keyword in ("Rows", "Columns", "BitsAllocated")]
    if any(not factor for factor in factors):
        return None
    pixel_bytes = (number(ds, "SamplesPerPixel") or 1) * (number(ds, "NumberOfFrames") or 1) / 8
    for factor in factors:
        pixel_bytes *= factor or 0
    return max(pixel_bytes / path.stat().st_size, 1.0)


def read_reference(path: Path) -> Dataset:
    """Read the whole header, for reports that copy patient and study from it.

    No pixel data, no value above ``MAX_HEADER_VALUE_BYTES``; every element is already converted,
    and those that cannot be are left out, so that using it later neither raises nor warns.
    ``file_meta`` holds the transfer syntax.

    Raises
    ------
    UnreadableInstance
        The file is not Part 10, truncated or hostile.
    InstanceUnavailable
        The file is missing or cannot be read now.
    """
    ds = parse_header(path, None, MAX_HEADER_VALUE_BYTES)
    with machine_faults(path), quiet_pydicom():
        _settle(ds, MAX_REFERENCE_DEPTH)
    return ds


def _settle(ds: Dataset, depth: int) -> None:
    """Convert every element now; drop what cannot be converted or is nested below `depth`."""
    for tag in list(ds.keys()):
        try:
            value = ds[tag].value
            too_deep = isinstance(value, DicomSequence) and depth == 0
        except CONVERSION_FAULTS:
            too_deep = True
        if too_deep:
            del ds[tag]
        elif isinstance(value, DicomSequence):
            for item in value:
                _settle(item, depth - 1)
