"""Single attribute values as plain Python: text, numbers, codes, or None when absent.

Owns the tolerance the field needs: an illegal value reads as absent and never raises. It must not
know which attributes matter to whom.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from datetime import date

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence as DicomSequence
from pydicom.valuerep import PersonName

from dicom_io.reading import CONVERSION_FAULTS

AttributeValue = str | float | tuple[str, ...] | tuple[float, ...] | None
"""None means absent, empty or illegal; numbers are floats; several values are a tuple."""

SHORTEST_MM, LONGEST_MM = 1e-6, 1e6
"""A nanometre and a kilometre: what is beyond them is no distance in an image."""

_NUMBER_VRS = frozenset({"DS", "FD", "FL", "IS", "SL", "SS", "SV", "UL", "US", "UV"})
_INTEGER_LOW, _INTEGER_HIGH = -(2**31), 2**31 - 1
_AGE_PATTERN = re.compile(r"\s*(\d{1,3})\s*([DWMY]?)\s*")
_DAYS_PER_YEAR = 365.25
_MOST_DAYS_PER_YEAR = 366
_YEARS_PER_UNIT = {"D": 1 / _DAYS_PER_YEAR, "W": 7 / _DAYS_PER_YEAR, "M": 1 / 12, "Y": 1.0, "": 1.0}


def raw_value(ds: Dataset, keyword: str) -> object:
    """Return what pydicom makes of an element, or None when absent, empty or illegal."""
    try:
        value: object = ds.get(keyword)
    except CONVERSION_FAULTS:
        return None
    return value


def items(ds: Dataset, keyword: str) -> list[Dataset]:
    """Return the items of a sequence; an absent or damaged one has none."""
    value = raw_value(ds, keyword)
    if not isinstance(value, DicomSequence):
        return []
    try:
        return list(value)
    except CONVERSION_FAULTS:
        return []


def text(ds: Dataset, keyword: str) -> str:
    """Return a value as stripped text, several values joined by backslashes, empty when absent."""
    value = raw_value(ds, keyword)
    if value is None or isinstance(value, DicomSequence | bytes):
        return ""
    if isinstance(value, PersonName):
        return readable_name(value)
    if isinstance(value, MultiValue | list | tuple):
        return "\\".join(_clean(part) for part in value)
    return _clean(value)


def texts(ds: Dataset, keyword: str) -> tuple[str, ...]:
    """Return the values of a multi-valued text attribute, without empty ones."""
    return tuple(part for part in text(ds, keyword).split("\\") if part)


def numbers(ds: Dataset, keyword: str) -> tuple[float, ...]:
    """Return the values as finite floats; one illegal value makes the attribute absent."""
    value = raw_value(ds, keyword)
    if value is None or isinstance(value, DicomSequence | bytes):
        return ()
    several = isinstance(value, MultiValue | list | tuple)
    converted = [_number(part) for part in (value if several else [value])]  # type: ignore[attr-defined]
    finite = tuple(part for part in converted if part is not None)
    return finite if len(finite) == len(converted) else ()


def number(ds: Dataset, keyword: str) -> float | None:
    """Return the first value as a finite float, None when absent or illegal."""
    values = numbers(ds, keyword)
    return values[0] if values else None


def integer(ds: Dataset, keyword: str) -> int | None:
    """Return the first value as a whole number, None when absent, illegal or fractional.

    What exceeds the range of an IS (PS3.5 6.2) is illegal whatever its VR: no attribute counts
    that far, and no database column holds it.
    """
    value = number(ds, keyword)
    if value is None or value != int(value) or not _INTEGER_LOW <= value <= _INTEGER_HIGH:
        return None
    return int(value)


def spacing_mm(ds: Dataset, keyword: str) -> tuple[float, float] | None:
    """Return the distances between rows and between columns, None when absent or illegal.

    What no detector or microscope resolves, and no body fills, is illegal: proportions and lengths
    computed of it would not be finite.
    """
    values = numbers(ds, keyword)
    if len(values) != 2 or not all(SHORTEST_MM <= part <= LONGEST_MM for part in values):
        return None
    return values[0], values[1]


def attribute_value(ds: Dataset, keyword: str) -> AttributeValue:
    """Return any attribute in the plain types conditions compare.

    A code sequence gives the code value and meaning of each item, other sequences their number of
    items; binary values are described, not returned.
    """
    value = raw_value(ds, keyword)
    if value is None or value == "":
        return None
    if isinstance(value, DicomSequence):
        return _sequence_value(items(ds, keyword))
    if isinstance(value, bytes):
        return f"binary, {len(value)} bytes" if value else None
    if ds[keyword].VR in _NUMBER_VRS:
        return _scalar_or_tuple(numbers(ds, keyword))
    if isinstance(value, MultiValue | list | tuple):
        return _scalar_or_tuple(tuple(_clean(part) for part in value))
    return text(ds, keyword) or None


def readable_name(name: PersonName) -> str:
    """Return ``Family, Prefix Given Middle Suffix`` of the first component group that is filled.

    The alphabetic group comes first; ideographic and phonetic groups speak only where it is empty.
    """
    return next(iter(readable_groups(name)), "")


def readable_groups(name: PersonName) -> tuple[str, ...]:
    """Return every component group that is filled as ``Family, Prefix Given Middle Suffix``."""
    try:
        groups = (str(name.alphabetic), str(name.ideographic), str(name.phonetic))
    except CONVERSION_FAULTS:
        return ()
    return tuple(shown for group in groups if (shown := _readable_group(group)))


def _readable_group(group: str) -> str:
    parts = [_clean(part) for part in group.split("^")] + [""] * 5
    family, given, middle, prefix, suffix = parts[:5]
    rest = " ".join(part for part in (prefix, given, middle, suffix) if part)
    return ", ".join(part for part in (family, rest) if part)


def age_years(ds: Dataset) -> float | None:
    """Return the patient's age in years from PatientAge, else from birth and study dates.

    ``042Y``, ``018M``, ``006W``, ``010D`` as PS3.5 6.2 writes them, and a bare ``42``. By dates, a
    year is complete on the birthday.
    """
    match = _AGE_PATTERN.fullmatch(text(ds, "PatientAge").upper())
    if match is not None:
        return int(match[1]) * _YEARS_PER_UNIT[match[2]]
    born = _date(text(ds, "PatientBirthDate"))
    studied = _date(text(ds, "StudyDate"))
    if born is None or studied is None or studied < born:
        return None
    return _years_between(born, studied)


def _years_between(born: date, studied: date) -> float:
    """Return completed years and a part of the next: whole on every birthday, never before it."""
    is_before = (studied.month, studied.day) < (born.month, born.day)
    years = studied.year - born.year - is_before
    return years + (studied - _birthday(born, born.year + years)).days / _MOST_DAYS_PER_YEAR


def _birthday(born: date, year: int) -> date:
    try:
        return born.replace(year=year)
    except ValueError:
        # Born on 29 February: in other years a year is complete on 1 March.
        return date(year, 3, 1)


def _scalar_or_tuple(
    values: tuple[str, ...] | tuple[float, ...],
) -> AttributeValue:
    if not values:
        return None
    return values[0] if len(values) == 1 else values


def _sequence_value(found: Sequence[Dataset]) -> AttributeValue:
    codes = tuple(
        part for item in found for part in (_code_value(item), text(item, "CodeMeaning")) if part
    )
    if codes:
        return codes
    return float(len(found)) if found else None


def _code_value(item: Dataset) -> str:
    """Short, long and URN codes live in three attributes (PS3.3 8.1)."""
    keywords: Iterable[str] = ("CodeValue", "LongCodeValue", "URNCodeValue")
    return next((found for keyword in keywords if (found := text(item, keyword))), "")


def _clean(value: object) -> str:
    """Strip padding and whatever control characters a device left behind."""
    return "".join(char for char in str(value) if char.isprintable()).strip()


def _number(value: object) -> float | None:
    try:
        converted = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return converted if math.isfinite(converted) else None


def _date(value: str) -> date | None:
    """Return a DA value as a date; the dots of the ACR-NEMA form are tolerated."""
    digits = value.replace(".", "")
    if len(digits) != 8 or not digits.isascii() or not digits.isdigit():
        return None
    try:
        return date(int(digits[:4]), int(digits[4:6]), int(digits[6:]))
    except ValueError:
        return None
