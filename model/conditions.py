"""Conditions over DICOM attributes, as data: what a manifest may ask of a study.

Owns their grammar, their evaluation and the words that explain the outcome. Nothing is ever
executed from a manifest, and attributes that name a patient cannot be asked for. Knows nothing
of files: it reads a mapping of attribute values.

A condition is a table of the manifest, either one test of one attribute::

    { attribute = "Modality", in = ["CR", "DX"] }
    { attribute = "age_years", range = { min = 1, max = 5 }, reason = "trained on children" }

or a group: ``{ all = [...] }``, ``{ any = [...] }``, ``{ not = {...} }``. The tests are
``exists = true``, ``empty = true``, ``equals``, ``in``, ``not_in``, ``regex`` and ``range``.

Rules that hold everywhere: text is compared without regard to case and to spaces at the ends.
An absent or empty attribute passes ``empty`` and ``not_in`` only. Of several values one
suffices for ``equals``, ``in`` and ``regex``; all must pass ``not_in`` and ``range``. A whole
number matches a ``regex`` as its digits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from model.patterns import LONGEST_MATCHED_TEXT

AttributeValue = str | float | tuple[str, ...] | tuple[float, ...] | None
"""What was found in a data set; None when the attribute is absent or empty."""

Attributes = Mapping[str, AttributeValue]
"""Attribute values by DICOM keyword or pseudo keyword."""


class OperatorValues(StrEnum):
    """The tests a manifest may name."""

    EXISTS = "exists"
    EMPTY = "empty"
    EQUALS = "equals"
    IN = "in"
    NOT_IN = "not_in"
    REGEX = "regex"
    RANGE = "range"


class GroupValues(StrEnum):
    """How a group is made of its parts."""

    ALL = "all"
    ANY = "any"
    NOT = "not"


@dataclass(frozen=True, slots=True)
class Range:
    """A closed interval; None leaves that side open."""

    low: float | None
    high: float | None

    def holds(self, value: float) -> bool:
        """Return True when `value` lies inside; both ends belong to it."""
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)


Operand = str | float | tuple[str | float, ...] | Range | None


@dataclass(frozen=True, slots=True)
class AttributeTest:
    """One test of one attribute."""

    attribute: str
    operator: OperatorValues
    operand: Operand = None
    reason: str = ""
    """Why the package asks for it, in the words of whoever wrote the manifest."""

    @property
    def requirement(self) -> str:
        """What is asked, for example ``must be one of CHEST, THORAX``."""
        return _REQUIREMENTS[self.operator].format(_in_words(self.operand))

    @property
    def words(self) -> str:
        """The test as a sentence: attribute and requirement."""
        return f"{self.attribute} {self.requirement}"


@dataclass(frozen=True, slots=True)
class ConditionGroup:
    """Several conditions as one; ``not`` has exactly one part."""

    kind: GroupValues
    parts: tuple[Condition, ...]
    reason: str = ""

    @property
    def words(self) -> str:
        """The group as a sentence."""
        inner = "; ".join(part.words for part in self.parts)
        return f"{_GROUP_WORDS[self.kind]} ({inner})"


Condition = AttributeTest | ConditionGroup

_REQUIREMENTS = {
    OperatorValues.EXISTS: "must be present",
    OperatorValues.EMPTY: "must be absent or empty",
    OperatorValues.EQUALS: "must be {}",
    OperatorValues.IN: "must be one of {}",
    OperatorValues.NOT_IN: "must not be one of {}",
    OperatorValues.REGEX: "must match the pattern {}",
    OperatorValues.RANGE: "must be {}",
}
_GROUP_WORDS = {
    GroupValues.ALL: "all of",
    GroupValues.ANY: "at least one of",
    GroupValues.NOT: "not",
}


def _in_words(operand: Operand) -> str:
    if isinstance(operand, tuple):
        return ", ".join(_in_words(item) for item in operand)
    if isinstance(operand, Range):
        return _range_in_words(operand)
    return f"{operand:g}" if isinstance(operand, float) else str(operand)


def _range_in_words(bounds: Range) -> str:
    if bounds.high is None:
        return f"at least {bounds.low:g}"
    if bounds.low is None:
        return f"at most {bounds.high:g}"
    return f"between {bounds.low:g} and {bounds.high:g}"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What came of one condition, with the value that decided it."""

    passed: bool
    words: str
    """The condition itself."""
    sentence: str
    """The value found and the rule, for example
    ``BodyPartExamined is 'HAND', must be one of CHEST, THORAX``."""
    reason: str = ""
    attribute: str = ""
    """Empty for a group."""
    found: AttributeValue = None
    parts: tuple[Evaluation, ...] = ()
    is_open: bool = False
    """True where it passed only because nothing is stated that could tell; see
    ``evaluate_what_is_stated``."""

    def as_mapping(self) -> dict[str, object]:
        """Return the record as plain data for JSON."""
        plain: dict[str, object] = {"passed": self.passed, "words": self.words}
        plain["sentence"] = self.sentence
        if self.reason:
            plain["reason"] = self.reason
        if self.attribute:
            plain["attribute"] = self.attribute
            plain["found"] = list(self.found) if isinstance(self.found, tuple) else self.found
        if self.parts:
            plain["parts"] = [part.as_mapping() for part in self.parts]
        return plain

    def failures(self) -> tuple[str, ...]:
        """Return one sentence for each part that made the whole fail; none if it passed."""
        if self.passed:
            return ()
        failed = [part for part in self.parts if not part.passed]
        if not failed:
            return (self.sentence,)
        return tuple(sentence for part in failed for sentence in part.failures())


def evaluate(condition: Condition, attributes: Attributes) -> Evaluation:
    """Judge a condition over attribute values; every part is judged, none is skipped.

    Parameters
    ----------
    condition : Condition
    attributes : Mapping
        Values by keyword. A keyword that is not in the mapping counts as absent.
    """
    if isinstance(condition, AttributeTest):
        return _evaluate_test(condition, attributes.get(condition.attribute))
    parts = tuple(evaluate(part, attributes) for part in condition.parts)
    passed = _group_passes(condition.kind, parts)
    inner = "; ".join(part.sentence for part in parts)
    return Evaluation(
        passed=passed,
        words=condition.words,
        sentence=f"{_GROUP_WORDS[condition.kind]} ({inner})",
        reason=condition.reason,
        parts=parts,
    )


def evaluate_what_is_stated(condition: Condition, attributes: Attributes) -> Evaluation:
    """Judge a condition, and let it pass where only absent attributes could tell.

    For data from which attributes were removed. Never in service: what is not known may be
    anything there.

    Returns
    -------
    Evaluation
        With ``is_open`` where the condition passed for want of a value.

    Examples
    --------
    >>> child = AttributeTest("age_years", OperatorValues.RANGE, Range(1, 5))
    >>> evaluate_what_is_stated(child, {}).passed
    True
    >>> evaluate_what_is_stated(child, {"age_years": 54.0}).passed
    False
    """
    evaluation = evaluate(condition, attributes)
    is_open = not evaluation.passed and _holds(condition, attributes) is None
    return replace(evaluation, passed=True, is_open=True) if is_open else evaluation


def _holds(condition: Condition, attributes: Attributes) -> bool | None:
    """Return None where it depends on what an absent attribute would have said (Kleene's logic)."""
    if isinstance(condition, AttributeTest):
        values = _as_values(attributes.get(condition.attribute))
        return _passes(condition, values) if values else None
    parts = [_holds(part, attributes) for part in condition.parts]
    if condition.kind is GroupValues.NOT:
        return None if parts[0] is None else not parts[0]
    decided = condition.kind is GroupValues.ANY
    if decided in parts:
        return decided
    return None if None in parts else not decided


def _group_passes(kind: GroupValues, parts: Sequence[Evaluation]) -> bool:
    if kind is GroupValues.NOT:
        return not parts[0].passed
    outcomes = (part.passed for part in parts)
    return all(outcomes) if kind is GroupValues.ALL else any(outcomes)


def _evaluate_test(test: AttributeTest, value: AttributeValue) -> Evaluation:
    values = _as_values(value)
    return Evaluation(
        passed=_passes(test, values),
        words=test.words,
        sentence=f"{test.attribute} {_found_in_words(values)}, {test.requirement}",
        reason=test.reason,
        attribute=test.attribute,
        found=value if values else None,
    )


def _as_values(value: AttributeValue) -> tuple[str | float, ...]:
    """Return the values that are there: empty text and None are none."""
    several = value if isinstance(value, tuple) else () if value is None else (value,)
    return tuple(item for item in several if not isinstance(item, str) or item.strip())


def _found_in_words(values: tuple[str | float, ...]) -> str:
    if not values:
        return "is absent or empty"
    shown = (f"{v:g}" if isinstance(v, float) else f"'{str(v)[:80]}'" for v in values)
    return "is " + " \\ ".join(shown)


def _passes(test: AttributeTest, values: tuple[str | float, ...]) -> bool:
    match test.operator:
        case OperatorValues.EMPTY:
            return not values
        case OperatorValues.EXISTS:
            return bool(values)
        case OperatorValues.NOT_IN:
            return not any(_is_one_of(value, test.operand) for value in values)
        case OperatorValues.RANGE:
            return bool(values) and all(_is_within(value, test.operand) for value in values)
        case OperatorValues.REGEX:
            return any(_matches(value, str(test.operand)) for value in values)
        case _:
            return any(_is_one_of(value, test.operand) for value in values)


def _is_one_of(value: str | float, operand: Operand) -> bool:
    allowed = operand if isinstance(operand, tuple) else (operand,)
    return any(_is_same(value, item) for item in allowed if isinstance(item, str | float))


def _is_same(value: str | float, wanted: str | float) -> bool:
    if isinstance(value, str) and isinstance(wanted, str):
        return value.strip().casefold() == wanted.strip().casefold()
    left, right = _as_number(value), _as_number(wanted)
    return left is not None and left == right


def _is_within(value: str | float, operand: Operand) -> bool:
    number = _as_number(value)
    return number is not None and isinstance(operand, Range) and operand.holds(number)


def _as_number(value: str | float) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None


def _matches(value: str | float, pattern: str) -> bool:
    # Every number read from a file is a float; 512.0 must match as the 512 that the file says.
    is_whole = isinstance(value, float) and value.is_integer()
    text = str(int(value) if is_whole else value).strip()[:LONGEST_MATCHED_TEXT]
    return re.fullmatch(pattern, text, re.IGNORECASE) is not None


def keywords(*conditions: Condition) -> frozenset[str]:
    """Return the keywords and pseudo keywords that the conditions ask for."""
    return frozenset(_walk(conditions))


def _walk(conditions: Sequence[Condition]) -> Iterator[str]:
    for condition in conditions:
        if isinstance(condition, AttributeTest):
            yield condition.attribute
        else:
            yield from _walk(condition.parts)
