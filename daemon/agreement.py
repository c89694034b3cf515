"""How far two versions of a model agree on the studies both saw: for ``medimgd models compare``.

Owns the comparison, a pure function of what both said. Agreement says nothing about who is right.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dicom_io.vocabulary import Finding, PresenceValues
from storage.comparison import Answer, AnswerKind, Sight

WORDS: Mapping[PresenceValues, str] = {
    PresenceValues.PRESENT: "positive",
    PresenceValues.ABSENT: "negative",
    PresenceValues.UNDETERMINED: "undetermined",
}


@dataclass(frozen=True, slots=True)
class Discordance:
    """A study about which the versions say different things."""

    study_instance_uid: str
    first: str
    """``positive``, ``negative``, ``undetermined``, or how it did not answer."""
    second: str
    first_score: float | None
    second_score: float | None


@dataclass(frozen=True, slots=True)
class LabelAgreement:
    """Agreement on one label, over the studies about which both made a finding."""

    label: str
    studies: int
    table: Mapping[str, Mapping[str, int]]
    """What the first said, then what the second said, then how often."""
    agreement: float | None
    """Share of studies with the same word; None without studies."""
    kappa: float | None
    """Cohen's kappa over the three words, unweighted; None where chance alone would agree."""
    mean_difference: float | None
    """Of the scores, second minus first."""
    mean_absolute_difference: float | None
    largest_difference: float | None
    discordant: tuple[Discordance, ...]
    """The furthest apart first."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """What two versions have in common."""

    first: str
    second: str
    """``name@version``."""
    first_studies: int
    second_studies: int
    """Sets of images each has answered about."""
    both: int
    kinds: Mapping[str, Mapping[str, int]]
    """How the first answered, then the second, then how often: findings, refusals, failures."""
    labels: tuple[LabelAgreement, ...]
    labels_of_one_only: tuple[str, ...]
    discordant_kinds: tuple[Discordance, ...]
    """Studies about which one made a finding and the other did not."""


def compare(
    first: str,
    second: str,
    answers_of_first: Mapping[Sight, Answer],
    answers_of_second: Mapping[Sight, Answer],
) -> Agreement:
    """Compare what two versions said about the same sets of images."""
    common = sorted(answers_of_first.keys() & answers_of_second.keys())
    pairs = [(sight[0], answers_of_first[sight], answers_of_second[sight]) for sight in common]
    found = [
        (uid, _by_label(a.findings), _by_label(b.findings))
        for uid, a, b in pairs
        if a.kind is AnswerKind.FINDING and b.kind is AnswerKind.FINDING
    ]
    of_first = _labels(a for _, a, _ in found)
    of_second = _labels(b for _, _, b in found)
    return Agreement(
        first=first,
        second=second,
        first_studies=len(answers_of_first),
        second_studies=len(answers_of_second),
        both=len(pairs),
        kinds=_cross(((str(a.kind), str(b.kind)) for _, a, b in pairs), list(AnswerKind)),
        labels=tuple(
            _label_agreement(
                label,
                [(uid, a[label], b[label]) for uid, a, b in found if label in a and label in b],
            )
            for label in of_first
            if label in of_second
        ),
        labels_of_one_only=tuple(sorted(set(of_first) ^ set(of_second))),
        discordant_kinds=tuple(
            Discordance(uid, str(a.kind), str(b.kind), None, None)
            for uid, a, b in pairs
            if a.kind is not b.kind
        ),
    )


def _by_label(findings: Iterable[Finding]) -> dict[str, Finding]:
    return {finding.label: finding for finding in findings}


def _labels(statements: Iterable[Mapping[str, Finding]]) -> list[str]:
    return list(dict.fromkeys(label for statement in statements for label in statement))


def _cross(pairs: Iterable[tuple[str, str]], words: Sequence[str]) -> dict[str, dict[str, int]]:
    counts = Counter(pairs)
    return {str(a): {str(b): counts[str(a), str(b)] for b in words} for a in words}


def _label_agreement(label: str, found: Sequence[tuple[str, Finding, Finding]]) -> LabelAgreement:
    said = [(WORDS[a.presence], WORDS[b.presence]) for _, a, b in found]
    differences = [b.probability - a.probability for _, a, b in found]
    count = len(found)
    same = sum(a == b for a, b in said)
    discordant = [
        Discordance(uid, WORDS[a.presence], WORDS[b.presence], a.probability, b.probability)
        for uid, a, b in found
        if a.presence is not b.presence
    ]
    return LabelAgreement(
        label=label,
        studies=count,
        table=_cross(said, list(WORDS.values())),
        agreement=same / count if count else None,
        kappa=cohens_kappa(said),
        mean_difference=math.fsum(differences) / count if count else None,
        mean_absolute_difference=math.fsum(map(abs, differences)) / count if count else None,
        largest_difference=max(map(abs, differences), default=None),
        discordant=tuple(sorted(discordant, key=_distance, reverse=True)),
    )


def _distance(one: Discordance) -> float:
    return abs((one.second_score or 0.0) - (one.first_score or 0.0))


def cohens_kappa(pairs: Sequence[tuple[str, str]]) -> float | None:
    """Return Cohen's kappa of two raters, unweighted.

    Returns
    -------
    float or None
        1 for full agreement, 0 for what chance gives; None without pairs, and where both always
        say the same one word: agreement means nothing then.

    References
    ----------
    Cohen, "A coefficient of agreement for nominal scales", 1960.
    """
    count = len(pairs)
    if not count:
        return None
    observed = sum(a == b for a, b in pairs) / count
    of_first, of_second = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    by_chance = sum(of_first[word] * of_second[word] for word in of_first) / count**2
    return None if by_chance >= 1 else (observed - by_chance) / (1 - by_chance)
