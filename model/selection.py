"""Which image or series of a study a model reads, and every reason for it.

Owns candidates, ranking and the contract's verdict, as pure functions from attribute values to
records that explain themselves. Opens no file and knows no network.

A package of kind ``image`` chooses among instances, one of kind ``volume`` among series. A
series is judged by its first instance (lowest Instance Number, absent last, then lowest SOP
Instance UID). ``instance_count`` is the number of images: frames of the instance, or of all
instances of the series.

Among the candidates that match, the manifest's rank decides; equal ones are ordered by UID, so
that the same study always gives the same answer. The first in that order that keeps the contract
is chosen. Where none does, the model abstains, for what the first one broke.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from dicom_io.errors import OutsideContract, RefusalReason
from model.conditions import Attributes, AttributeValue, Condition, Evaluation, evaluate
from model.package import ModelPackage
from model.selection_rules import OrderValues, RankBy

SELECTION_KEYWORDS = frozenset({"InstanceNumber", "NumberOfFrames"})
"""What selection itself needs of every instance, besides the packages' own keywords."""

MOST_GROUPS_SHOWN = 20
TIE_WORDS = "equal candidates by lowest UID"


Judge = Callable[[Condition, Attributes], Evaluation]


class OutcomeValues(StrEnum):
    """What came of one package for one study."""

    MATCHED = "matched"
    NO_MATCH = "no match"
    OUTSIDE_CONTRACT = "outside contract"


class LevelValues(StrEnum):
    """What the candidates are."""

    INSTANCE = "instance"
    SERIES = "series"


@dataclass(frozen=True, slots=True)
class StudyInstance:
    """One image instance of the study, as selection sees it."""

    sop_instance_uid: str
    series_instance_uid: str
    attributes: Attributes
    """At least the keywords of ``wanted_keywords``; what is not in it counts as absent."""


@dataclass(frozen=True, slots=True)
class ClauseVerdict:
    """One contract clause, judged."""

    text: str
    reason: RefusalReason
    evaluation: Evaluation

    def as_mapping(self) -> dict[str, object]:
        """Return the record as plain data for JSON."""
        return {
            "text": self.text,
            "reason": str(self.reason),
            "evaluation": self.evaluation.as_mapping(),
        }


@dataclass(frozen=True, slots=True)
class Candidate:
    """An instance or a series that was considered."""

    series_instance_uid: str
    sop_instance_uids: tuple[str, ...]
    """One for an instance; all of a series, the judged one first."""
    where: Evaluation
    rank: int | None = None
    """1 for the best; None when it does not match."""
    rank_values: tuple[AttributeValue | bool, ...] = ()
    """What each key of the ranking found."""
    contract: tuple[ClauseVerdict, ...] = ()

    @property
    def keeps_contract(self) -> bool:
        """True when no clause is broken."""
        return all(verdict.evaluation.passed for verdict in self.contract)

    @property
    def is_wholly_judged(self) -> bool:
        """True when no condition passed for want of a value."""
        verdicts = (self.where, *(verdict.evaluation for verdict in self.contract))
        return not any(verdict.is_open for verdict in verdicts)

    @property
    def first_broken(self) -> ClauseVerdict | None:
        """The first clause that is broken, in the manifest's order."""
        return next((v for v in self.contract if not v.evaluation.passed), None)

    def as_mapping(self) -> dict[str, object]:
        """Return the record as plain data for JSON."""
        return {
            "series_instance_uid": self.series_instance_uid,
            "sop_instance_uid": self.sop_instance_uids[0],
            "instances": len(self.sop_instance_uids),
            "rank": self.rank,
            "rank_values": [list(v) if isinstance(v, tuple) else v for v in self.rank_values],
            "where": self.where.as_mapping(),
            "contract": [verdict.as_mapping() for verdict in self.contract],
        }


@dataclass(frozen=True, slots=True)
class Selection:
    """The decision of one package about one study, with everything that led to it."""

    model: str
    """``name@version``."""
    level: LevelValues
    outcome: OutcomeValues
    candidates: tuple[Candidate, ...]
    """Matching ones first, best rank first; then the others by UID."""
    chosen: Candidate | None
    """The input to read; for ``outside contract`` the one that would have been read."""
    sentence: str
    ranked_by: tuple[str, ...]
    refusal_reason: RefusalReason | None = None

    def refusal(self) -> OutsideContract:
        """Return the error that ends the model's work on this study.

        Raises
        ------
        ValueError
            The outcome is not ``outside contract``.
        """
        if self.refusal_reason is None:
            raise ValueError(f"outcome: only 'outside contract' refuses, received {self.outcome}")
        return OutsideContract(self.sentence, self.refusal_reason)

    def as_mapping(self) -> dict[str, object]:
        """Return the record as plain data for JSON; candidates that differ in nothing as one."""
        matching = [c for c in self.candidates if c.rank is not None]
        return {
            "model": self.model,
            "level": str(self.level),
            "outcome": str(self.outcome),
            "sentence": self.sentence,
            "refusal_reason": str(self.refusal_reason) if self.refusal_reason else None,
            "chosen": self.chosen.as_mapping() if self.chosen else None,
            "ranked_by": list(self.ranked_by),
            "candidates": [c.as_mapping() for c in matching[:MOST_GROUPS_SHOWN]],
            "matching": len(matching),
            "not_matching": _grouped(c for c in self.candidates if c.rank is None),
        }


def _grouped(candidates: Iterable[Candidate]) -> list[dict[str, object]]:
    """Return candidates with the same evaluation as one entry with their number."""
    groups: dict[Evaluation, list[Candidate]] = {}
    for candidate in candidates:
        groups.setdefault(candidate.where, []).append(candidate)
    return [
        {"count": len(group), "example": group[0].as_mapping()}
        for group in list(groups.values())[:MOST_GROUPS_SHOWN]
    ]


def wanted_keywords(packages: Iterable[ModelPackage]) -> frozenset[str]:
    """Return the keywords to read of each instance before ``select``."""
    asked = frozenset(keyword for package in packages for keyword in package.keywords)
    return (asked | SELECTION_KEYWORDS) - {"instance_count"}


def select(
    package: ModelPackage, instances: Sequence[StudyInstance], judge: Judge = evaluate
) -> Selection:
    """Decide what a package reads of a study.

    Parameters
    ----------
    package : ModelPackage
    instances : sequence of StudyInstance
        The image instances of the study, in any order.
    judge : callable, optional
        How selection and contract are held against attributes.
    """
    is_volume = package.recipe.kind == "volume"
    level = LevelValues.SERIES if is_volume else LevelValues.INSTANCE
    groups = _series_of(instances) if is_volume else [(instance,) for instance in instances]
    judged = [_judged(package, group, judge) for group in groups]
    matching = sorted((pair for pair in judged if pair[0].where.passed), key=lambda p: p[1])
    others = sorted((c for c, _ in judged if not c.where.passed), key=_uids)
    ranked = tuple(_ranked(candidate, n) for n, (candidate, _) in enumerate(matching, start=1))
    chosen = next((c for c in ranked if c.keeps_contract), ranked[0] if ranked else None)
    outcome = _outcome(chosen)
    broken = chosen.first_broken if chosen else None
    return Selection(
        model=package.at_version,
        level=level,
        outcome=outcome,
        candidates=(*ranked, *others),
        chosen=chosen,
        sentence=_sentence(package, level, chosen, others),
        ranked_by=(*(key.words for key in package.selection.rank), TIE_WORDS),
        refusal_reason=broken.reason if broken else None,
    )


def _series_of(instances: Sequence[StudyInstance]) -> list[tuple[StudyInstance, ...]]:
    series: dict[str, list[StudyInstance]] = {}
    for instance in instances:
        series.setdefault(instance.series_instance_uid, []).append(instance)
    return [tuple(sorted(group, key=_instance_order)) for group in series.values()]


def _instance_order(instance: StudyInstance) -> tuple[bool, float, str]:
    number = instance.attributes.get("InstanceNumber")
    value = number if isinstance(number, float | int) else None
    return (value is None, value or 0.0, instance.sop_instance_uid)


def _frames(instance: StudyInstance) -> float:
    frames = instance.attributes.get("NumberOfFrames")
    return max(1.0, float(frames)) if isinstance(frames, float | int) else 1.0


_RankKey = tuple[object, ...]


def _judged(
    package: ModelPackage, group: Sequence[StudyInstance], judge: Judge
) -> tuple[Candidate, _RankKey]:
    """Return a candidate and the key that orders it among the matching ones."""
    first = group[0]
    attributes = {**first.attributes, "instance_count": sum(_frames(i) for i in group)}
    values = tuple(_rank_value(key, attributes) for key in package.selection.rank)
    candidate = Candidate(
        series_instance_uid=first.series_instance_uid,
        sop_instance_uids=tuple(instance.sop_instance_uid for instance in group),
        where=judge(package.selection.where, attributes),
        rank_values=values,
        contract=tuple(
            ClauseVerdict(clause.text, clause.reason, judge(clause.require, attributes))
            for clause in package.contract
        ),
    )
    keys = zip(package.selection.rank, values, strict=True)
    return candidate, (*(_rank_order(key, value) for key, value in keys), _uids(candidate))


def _uids(candidate: Candidate) -> tuple[str, str]:
    return (candidate.series_instance_uid, candidate.sop_instance_uids[0])


def _rank_value(key: RankBy, attributes: Attributes) -> AttributeValue | bool:
    if key.prefer is not None:
        return evaluate(key.prefer, attributes).passed
    return attributes.get(key.attribute)


def _rank_order(key: RankBy, value: AttributeValue | bool) -> tuple[int, float, str]:
    """Return what sorts: class (numbers, then text, then absent), number, text."""
    if isinstance(value, bool):
        return (0 if value else 1, 0.0, "")
    single = value[0] if isinstance(value, tuple) and value else value
    if isinstance(single, float | int):
        return (0, -single if key.order is OrderValues.DESCENDING else single, "")
    if not isinstance(single, str) or not single:
        return (2, 0.0, "")
    text = single.casefold()
    if key.order is OrderValues.DESCENDING:
        text = "".join(chr(0x10FFFF - ord(character)) for character in text) + chr(0x10FFFF)
    return (1, 0.0, text)


def _ranked(candidate: Candidate, rank: int) -> Candidate:
    return Candidate(
        series_instance_uid=candidate.series_instance_uid,
        sop_instance_uids=candidate.sop_instance_uids,
        where=candidate.where,
        rank=rank,
        rank_values=candidate.rank_values,
        contract=candidate.contract,
    )


def _outcome(chosen: Candidate | None) -> OutcomeValues:
    if chosen is None:
        return OutcomeValues.NO_MATCH
    return OutcomeValues.MATCHED if chosen.keeps_contract else OutcomeValues.OUTSIDE_CONTRACT


def _sentence(
    package: ModelPackage,
    level: LevelValues,
    chosen: Candidate | None,
    others: Sequence[Candidate],
) -> str:
    model = package.at_version
    if chosen is None:
        if not others:
            return f"{model} matches nothing: the study holds no image"
        why = "; ".join(others[0].where.failures())
        more = f" (and {len(others) - 1} more)" if len(others) > 1 else ""
        return f"{model} matches none of {len(others)} {level} candidates: {why}{more}"
    broken = chosen.first_broken
    uid = chosen.series_instance_uid
    if level is LevelValues.INSTANCE:
        uid = chosen.sop_instance_uids[0]
    if broken is not None:
        why = "; ".join(broken.evaluation.failures())
        return f"{model} abstains: {why}. {broken.text}"
    return f"{model} reads {level} {uid}"
