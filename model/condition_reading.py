"""Conditions read from a manifest, with every fault named at once.

Owns the checks on what a manifest may ask for. Turns plain data (TOML, JSON) into the records
of ``model.conditions``; evaluates nothing.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import TypeGuard

from dicom_io.header import is_known_keyword, is_person_name
from model.conditions import (
    AttributeTest,
    Condition,
    ConditionGroup,
    GroupValues,
    Operand,
    OperatorValues,
    Range,
)
from model.errors import ConditionFault
from model.patterns import pattern_fault

COMPUTED_KEYWORDS = frozenset({"age_years", "lossy_ratio", "instance_count"})
"""Names in lower case that are computed, not read: they are no DICOM keywords."""

MAX_DEPTH = 12
_IDENTIFYING = re.compile(
    r"(Other)?Patient(s)?(BirthDate\w*|DeathDate\w*|BirthTime|Name|Names|ID|IDs|Address|"
    r"Telephone\w*|Telecom\w*|InstitutionResidence|Comments|IDsSequence)|AccessionNumber|"
    r"MilitaryRank|ReferringPhysician(Address|TelephoneNumbers)|"
    r"PersonAddress|PersonTele\w*|PixelData"
)
"""Beside every attribute whose value representation is a person's name."""


def parse_condition(value: object, place: str = "condition") -> Condition:
    """Read a condition from plain data.

    Parameters
    ----------
    value : object
        A table as TOML or JSON gives it.
    place : str
        Where it stands, for messages: ``selection.where``.

    Raises
    ------
    ConditionFault
        With every fault: place, what was received, the rule.
    """
    faults: list[str] = []
    condition = read_condition(value, place, faults)
    if condition is None or faults:
        raise ConditionFault(place, faults)
    return condition


def read_condition(
    value: object, place: str, faults: list[str], depth: int = 0
) -> Condition | None:
    """Read a condition and add what is wrong with it to `faults`; None if nothing is left."""
    if not isinstance(value, Mapping):
        faults.append(f"{place}: must be a table, received {value!r}")
        return None
    if depth > MAX_DEPTH:
        faults.append(f"{place}: groups may be nested {MAX_DEPTH} deep at most")
        return None
    reason = _read_reason(value, place, faults)
    tests = [str(key) for key in value if key not in {"attribute", "reason"}]
    if "attribute" in value:
        return _read_test(value, tests, place, reason, faults)
    if len(tests) != 1 or tests[0] not in set(GroupValues):
        faults.append(
            f"{place}: must hold 'attribute' with one test, or exactly one of "
            f"{', '.join(GroupValues)}; received {', '.join(sorted(tests)) or 'nothing'}"
        )
        return None
    return _read_group(GroupValues(tests[0]), value[tests[0]], place, reason, faults, depth)


def _read_reason(value: Mapping[object, object], place: str, faults: list[str]) -> str:
    reason = value.get("reason", "")
    if isinstance(reason, str):
        return reason
    faults.append(f"{place}.reason: must be text, received {reason!r}")
    return ""


def _read_group(
    kind: GroupValues, value: object, place: str, reason: str, faults: list[str], depth: int
) -> ConditionGroup | None:
    where = f"{place}.{kind}"
    if kind is GroupValues.NOT:
        part = read_condition(value, where, faults, depth + 1)
        return None if part is None else ConditionGroup(kind, (part,), reason)
    if not isinstance(value, list) or not value:
        faults.append(f"{where}: must be a list of at least one condition, received {value!r}")
        return None
    read = [read_condition(v, f"{where}[{n}]", faults, depth + 1) for n, v in enumerate(value)]
    parts = tuple(part for part in read if part is not None)
    return ConditionGroup(kind, parts, reason) if parts else None


def _read_test(
    value: Mapping[object, object], tests: list[str], place: str, reason: str, faults: list[str]
) -> AttributeTest | None:
    known = len(faults)
    attribute = value["attribute"]
    fault = _attribute_fault(attribute)
    if fault:
        faults.append(f"{place}.attribute: {fault}")
    if len(tests) != 1 or tests[0] not in set(OperatorValues):
        faults.append(
            f"{place}: must hold exactly one test of {', '.join(OperatorValues)}; "
            f"received {', '.join(sorted(tests)) or 'none'}"
        )
        return None
    operator = OperatorValues(tests[0])
    operand = _read_operand(operator, value[tests[0]], f"{place}.{operator}", faults)
    if len(faults) > known:
        return None
    return AttributeTest(str(attribute), operator, operand, reason)


def _attribute_fault(attribute: object) -> str:
    if not isinstance(attribute, str):
        return f"must be a DICOM keyword, received {attribute!r}"
    if attribute in COMPUTED_KEYWORDS:
        return ""
    if not is_known_keyword(attribute):
        return (
            f"must be a DICOM keyword such as BodyPartExamined or one of "
            f"{', '.join(sorted(COMPUTED_KEYWORDS))}; received {attribute!r}"
        )
    if is_person_name(attribute) or _IDENTIFYING.fullmatch(attribute) is not None:
        return f"{attribute} names a person or holds pixels and cannot be a condition"
    return ""


def _read_operand(
    operator: OperatorValues, value: object, place: str, faults: list[str]
) -> Operand:
    if operator in {OperatorValues.EXISTS, OperatorValues.EMPTY}:
        if value is not True:
            faults.append(f"{place}: must be true (use 'not' for the opposite), received {value!r}")
        return None
    if operator is OperatorValues.RANGE:
        return _read_range(value, place, faults)
    if operator is OperatorValues.REGEX:
        fault = pattern_fault(value)
        if fault:
            faults.append(f"{place}: {fault}")
        return str(value)
    if operator is OperatorValues.EQUALS:
        return _read_scalar(value, place, faults)
    if not isinstance(value, list) or not value:
        faults.append(f"{place}: must be a list of at least one value, received {value!r}")
        return ()
    return tuple(_read_scalar(item, f"{place}[{n}]", faults) for n, item in enumerate(value))


def _read_scalar(value: object, place: str, faults: list[str]) -> str | float:
    if isinstance(value, str) and value.strip():
        return value
    if _is_number(value):
        return float(value)
    faults.append(f"{place}: must be a finite number or text that is not empty, received {value!r}")
    return ""


def _is_number(value: object) -> TypeGuard[int | float]:
    """Return False for nan and inf too: TOML has words for them, and no attribute compares."""
    is_numeric = isinstance(value, int | float) and not isinstance(value, bool)
    return is_numeric and abs(value) <= sys.float_info.max  # type: ignore[arg-type]


def _read_range(value: object, place: str, faults: list[str]) -> Range:
    if not isinstance(value, Mapping) or not value or set(value) - {"min", "max"}:
        faults.append(f"{place}: must hold 'min', 'max' or both and no more, received {value!r}")
        return Range(None, None)
    bounds: dict[str, float] = {}
    for key, bound in value.items():
        if _is_number(bound):
            bounds[key] = float(bound)
        else:
            faults.append(f"{place}.{key}: must be a finite number, received {bound!r}")
    low, high = bounds.get("min"), bounds.get("max")
    if low is not None and high is not None and low > high:
        faults.append(f"{place}: min {low:g} is above max {high:g}")
    return Range(low, high)
