"""The source study, as far as a result needs it: a small, legal header and the list of evidence.

Owns the repair of real-life headers: what is missing becomes empty, what breaks its VR is
reformatted where the meaning is certain and left out where it is not. Knows no findings.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import MappingProxyType

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.uid import UID

from dicom_io.errors import CannotCompose, InvalidUID, UnreadableInstance
from dicom_io.header import read_header, read_reference
from dicom_io.reading import PARSER_FAULTS, quiet_pydicom
from dicom_io.results.request import ReportRequest
from dicom_io.vocabulary import Code, checked_uid

_CODE_SEQUENCES = (
    "ProcedureCodeSequence",
    "AnatomicRegionSequence",
    "DeidentificationMethodCodeSequence",
)
_IDENTITY = ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID")

_SHORT, _LONG = 16, 64
_DATE = re.compile(r"(\d{4})[.\-/]?(\d{2})[.\-/]?(\d{2})")
_TIME = re.compile(r"(\d{2})(?::?(\d{2})(?::?(\d{2})(?:\.(\d{1,}))?)?)?")
_AGE = re.compile(r"(\d{1,3})([DWMY])")
_CODE_STRING = re.compile(r"[A-Z0-9 _]{1,16}")
_PREGNANCY = frozenset({"1", "2", "3", "4"})
_TIMEZONE = re.compile(r"[+-](?:0\d|1[0-4])[0-5]\d")
_DECIMAL = re.compile(r"(?=.{1,16}\Z)\d+(?:\.\d+)?")


@dataclass(frozen=True, slots=True)
class InstanceReference:
    """One instance of the source study, as references name it."""

    series_instance_uid: str
    sop_class_uid: str
    sop_instance_uid: str

    @property
    def is_image(self) -> bool:
        """True for the image classes of the standard; readers refuse other classes as images."""
        return "Image Storage" in UID(self.sop_class_uid).name


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a result knows about its source."""

    header: Dataset
    """The normalised header of the first cited instance; every attribute in it is legal."""
    instances: tuple[InstanceReference, ...]
    cited: tuple[InstanceReference, ...]

    @property
    def study_instance_uid(self) -> str:
        """The study that the result joins."""
        return str(self.header.StudyInstanceUID)


def read_evidence(request: ReportRequest) -> Evidence:
    """Read the headers a request names; pixels and everything not needed stay on the disk.

    Raises
    ------
    CannotCompose
        When a file cannot be read, has no usable UIDs, or belongs to another study.
    """
    try:
        header = normalise_reference(read_reference(request.cited[0]))
        headers = {path: read_header(path) for path in request.evidence}
    except (UnreadableInstance, InvalidUID) as error:
        raise CannotCompose(f"an instance named as evidence cannot be read: {error}") from error
    references: dict[Path, InstanceReference] = {}
    for path, found in headers.items():
        if found.study_instance_uid != header.StudyInstanceUID:
            raise CannotCompose(
                "evidence must belong to one study: received StudyInstanceUID "
                f"{header.StudyInstanceUID} and {found.study_instance_uid}"
            )
        references[path] = InstanceReference(
            found.series_instance_uid, found.sop_class_uid, found.sop_instance_uid
        )
    # The same instance may lie in two files; a reference to it is written once.
    return Evidence(
        header,
        tuple(dict.fromkeys(references[path] for path in request.evidence)),
        tuple(dict.fromkeys(references[path] for path in request.cited)),
    )


def normalise_reference(source: Dataset) -> Dataset:
    """Return a new header-only data set in which every attribute keeps its rules.

    Type 2 attributes that are absent or broken become empty; type 3 attributes are left out.
    Free text that is too long is cut. An identifier that is too long, holds control characters or
    has several values becomes empty: a part of it could be another patient's or another order's.
    Values are Unicode whatever character set the source was written in, to be encoded as
    ISO_IR 192.

    Raises
    ------
    CannotCompose
        When one of the four UIDs that place an instance is missing or is not a UID.
    """
    header = Dataset()
    with quiet_pydicom():
        for keyword in _IDENTITY:
            setattr(header, keyword, _uid(source, keyword))
        for keyword, rule in _TYPE_2.items():
            setattr(header, keyword, _ruled(source, keyword, rule))
        for keyword, rule in _TYPE_3.items():
            value = _ruled(source, keyword, rule)
            if value:
                setattr(header, keyword, value)
        if (pregnancy := _value(source, "PregnancyStatus")) in _PREGNANCY:
            header.PregnancyStatus = int(pregnancy)
        if requests := [
            _request_item(item) for item in _items(source, "RequestAttributesSequence")
        ]:
            header.RequestAttributesSequence = requests
        for keyword in _CODE_SEQUENCES:
            if found := _codes(source, keyword):
                setattr(header, keyword, [coded_item(code) for code in found])
    return header


def coded_item(code: Code) -> Dataset:
    """Return a code as an item of a code sequence (PS3.3 section 8.8)."""
    item = Dataset()
    item.CodeValue = code.value
    item.CodingSchemeDesignator = code.scheme
    item.CodeMeaning = code.meaning
    return item


def code_of(item: Dataset) -> Code:
    """Return the code that `coded_item` wrote."""
    return Code(str(item.CodeValue), str(item.CodingSchemeDesignator), str(item.CodeMeaning))


def _value(source: Dataset, keyword: str) -> str:
    """Return the first value as clean text, empty when absent or not to be understood."""
    try:
        value = source.get(keyword)
        if isinstance(value, MultiValue):
            value = value[0] if value else None
        return _clean("" if value is None else str(value))
    except PARSER_FAULTS:
        return ""


def _whole(source: Dataset, keyword: str) -> str:
    """Return the value as it stands, empty when absent, one of several, or in need of cleaning."""
    try:
        value = source.get(keyword)
        several = isinstance(value, MultiValue)
        values = [str(each) for each in value if each] if several else [str(value or "")]
    except PARSER_FAULTS:
        return ""
    text = values[0].strip(" \0") if len(values) == 1 else ""
    return text if _clean(text) == text else ""


def _ruled(source: Dataset, keyword: str, rule: Callable[[str], str]) -> str:
    """Return a value by its rule; an identifier is taken whole or not at all."""
    read = _whole if isinstance(rule, _Identifier) else _value
    return rule(read(source, keyword))


def _clean(text: str) -> str:
    """Return text without control characters, surrogates and backslashes, blanks trimmed."""
    return "".join(
        " " if character == "\\" or unicodedata.category(character)[0] == "C" else character
        for character in text
    ).strip()


def _uid(source: Dataset, keyword: str) -> str:
    try:
        return checked_uid(_value(source, keyword), keyword)
    except InvalidUID as error:
        raise CannotCompose(f"the source instance cannot be referenced: {error}") from error


@dataclass(frozen=True, slots=True)
class _Identifier:
    """The rule of what names a patient, an order or a concept."""

    limit: int

    def __call__(self, value: str) -> str:
        return value if len(value) <= self.limit else ""


def _text(limit: int) -> Callable[[str], str]:
    return lambda value: value[:limit].rstrip()


def _person_name(value: str) -> str:
    """Return at most three representations of five components (PS3.5 6.2.1)."""
    groups = []
    for group in value.split("=")[:3]:
        *components, rest = group.split("^", 4)
        groups.append("^".join((*components, rest.replace("^", " ")))[:_LONG].strip())
    return "=".join(groups).rstrip("=")


def _date(value: str) -> str:
    match = _DATE.fullmatch(value)
    if match is None:
        return ""
    digits = "".join(match.groups())
    try:
        datetime.strptime(digits, "%Y%m%d")  # noqa: DTZ007  # a calendar date has no zone
    except ValueError:
        return ""
    return digits


def _time(value: str) -> str:
    match = _TIME.fullmatch(value)
    if match is None:
        return ""
    hours, minutes, seconds, fraction = match.groups()
    if int(hours) > 23 or int(minutes or 0) > 59 or int(seconds or 0) > 59:
        return ""
    whole = f"{hours}{minutes or ''}{seconds or ''}"
    return f"{whole}.{fraction[:6]}" if fraction else whole


def _sex(value: str) -> str:
    return value if value in {"M", "F", "O"} else ""


def _age(value: str) -> str:
    """Return an age with its unit; a bare number may be years or months and is left out."""
    match = _AGE.fullmatch(value)
    return f"{int(match[1]):03d}{match[2]}" if match else ""


def _matching(pattern: re.Pattern[str]) -> Callable[[str], str]:
    return lambda value: value if pattern.fullmatch(value) else ""


def _timezone(value: str) -> str:
    """Return the offset; what says minus nothing is written as the standard has it (+0000)."""
    # PS3.3 C.12.1.1.8 forbids -0000, which software that follows RFC 5322 writes.
    return "+0000" if value == "-0000" else _matching(_TIMEZONE)(value)


def _one_of(*allowed: str) -> Callable[[str], str]:
    return lambda value: value if value in allowed else ""


def _items(source: Dataset, keyword: str) -> list[Dataset]:
    try:
        return [item for item in source.get(keyword) or () if isinstance(item, Dataset)]
    except PARSER_FAULTS:
        return []


def _request_item(source: Dataset) -> Dataset:
    item = Dataset()
    for keyword, rule in _REQUEST_ATTRIBUTES.items():
        setattr(item, keyword, _ruled(source, keyword, rule))
    item.RequestedProcedureCodeSequence = [
        coded_item(code) for code in _codes(source, "RequestedProcedureCodeSequence")[:1]
    ]
    return item


def _codes(source: Dataset, keyword: str) -> list[Code]:
    """Return the codes that are complete; many modalities send empty or halved ones."""
    found = []
    for item in _items(source, keyword):
        value = _ruled(item, "CodeValue", _Identifier(_SHORT))
        scheme = _ruled(item, "CodingSchemeDesignator", _Identifier(_SHORT))
        meaning = _text(_LONG)(_value(item, "CodeMeaning"))
        if value and scheme and meaning:
            found.append(Code(value, scheme, meaning))
    return found


_Rules = Mapping[str, Callable[[str], str]]

_TYPE_2: _Rules = MappingProxyType(
    {
        "PatientName": _person_name,
        "PatientID": _Identifier(_LONG),
        "PatientBirthDate": _date,
        "PatientSex": _sex,
        "StudyDate": _date,
        "StudyTime": _time,
        "StudyID": _Identifier(_SHORT),
        "AccessionNumber": _Identifier(_SHORT),
        "ReferringPhysicianName": _person_name,
        "Modality": _matching(_CODE_STRING),
    }
)
_TYPE_3: _Rules = MappingProxyType(
    {
        "IssuerOfPatientID": _Identifier(_LONG),
        "PatientAge": _age,
        "PatientSize": _matching(_DECIMAL),
        "PatientWeight": _matching(_DECIMAL),
        "PatientIdentityRemoved": _one_of("YES", "NO"),
        "DeidentificationMethod": _text(_LONG),
        "StudyDescription": _text(_LONG),
        "TimezoneOffsetFromUTC": _timezone,
        "BodyPartExamined": _matching(_CODE_STRING),
        "Laterality": _one_of("L", "R"),
        "ImageLaterality": _one_of("L", "R"),
        "BurnedInAnnotation": _one_of("YES", "NO"),
        "LossyImageCompression": _one_of("00", "01"),
        "LossyImageCompressionRatio": _matching(_DECIMAL),
        "LossyImageCompressionMethod": _matching(_CODE_STRING),
        "Manufacturer": _text(_LONG),
        "ManufacturerModelName": _text(_LONG),
        "DeviceSerialNumber": _text(_LONG),
    }
)
_REQUEST_ATTRIBUTES: _Rules = MappingProxyType(
    {
        "AccessionNumber": _Identifier(_SHORT),
        "PlacerOrderNumberImagingServiceRequest": _Identifier(_LONG),
        "FillerOrderNumberImagingServiceRequest": _Identifier(_LONG),
        "RequestedProcedureID": _Identifier(_SHORT),
        "RequestedProcedureDescription": _text(_LONG),
    }
)
PATIENT_AND_STUDY = (
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "PregnancyStatus",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
    "StudyDescription",
    "TimezoneOffsetFromUTC",
)
"""The attributes every result repeats from its source (IHE: same patient, same study)."""
