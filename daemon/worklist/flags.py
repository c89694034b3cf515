"""The rules of the worklist: which flag a study carries, and which study is read first.

Pure functions over the records of storage. A statement that is missing, refused, failed or about
earlier images can never turn into a negative here; nothing else in medimgd decides a flag.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from dicom_io.vocabulary import Finding, PresenceValues
from storage.jobs import JobRecord
from storage.results import ResultKind, ResultRecord
from storage.states import JobState, StudyState
from storage.studies import StudyRecord


class FlagValues(StrEnum):
    """What a study carries in the worklist, the first to be read first."""

    POSITIVE = "POSITIVE"
    UNDETERMINED = "UNDETERMINED"
    FAILED = "FAILED"
    """An analysis was given up; nothing is known."""
    HELD = "HELD"
    """Waits for a person before anything is analysed."""
    REFUSED = "NOT ANALYSED"
    """A model abstains; nothing is known."""
    PENDING = "PENDING"
    UNMATCHED = "UNMATCHED"
    """No installed model reads this study; nothing is known."""
    NEGATIVE = "NEGATIVE"
    """Every model that read the study, as it is now, found nothing above its threshold."""

    @property
    def key(self) -> str:
        """The flag as one lower-case word, for addresses, style classes and options."""
        return self.name.lower()

    @classmethod
    def from_key(cls, key: str) -> FlagValues | None:
        """Return the flag of a key, or None when there is none of that name."""
        return cls.__members__.get(key.upper())


SEVERITY: Mapping[FlagValues, int] = MappingProxyType(
    {flag: position for position, flag in enumerate(FlagValues)}
)
"""Position in the reading order; 0 is read first."""

_OF_PRESENCE = MappingProxyType(
    {
        PresenceValues.PRESENT: FlagValues.POSITIVE,
        PresenceValues.UNDETERMINED: FlagValues.UNDETERMINED,
        PresenceValues.ABSENT: FlagValues.NEGATIVE,
    }
)
# A routed study says nothing by itself: its jobs and results do.
_OF_STATE: Mapping[StudyState, FlagValues] = MappingProxyType(
    {
        StudyState.RECEIVING: FlagValues.PENDING,
        StudyState.COMPLETE: FlagValues.PENDING,
        StudyState.HELD: FlagValues.HELD,
        StudyState.REFUSED: FlagValues.REFUSED,
        StudyState.UNMATCHED: FlagValues.UNMATCHED,
    }
)
OPEN_JOBS = frozenset({JobState.WAITING, JobState.RUNNING})


@dataclass(frozen=True, slots=True)
class Statement:
    """One thing one model says, or cannot say, about a study: a chip in the worklist."""

    flag: FlagValues
    label: str
    """The finding's label, the reason of a refusal, or what is waited for."""
    detail: str
    """The model's sentence where it makes no finding; else empty."""
    certainty_percent: float | None
    """Of a finding; None for everything else."""
    model: str
    """``name@version``."""
    model_title: str
    demonstration: bool
    earlier_images_only: bool
    """Images arrived that this statement does not know."""


class FindingOrder:
    """The site's rule of which finding is read first: the named labels, then the alphabet.

    Parameters
    ----------
    labels : sequence of str
        From worst to mildest, upper and lower case alike (setting ``web.finding_order``).
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self._positions: dict[str, int] = {}
        for label in labels:
            self._positions.setdefault(label.casefold(), len(self._positions))

    def key(self, label: str) -> tuple[int, str]:
        """Return what labels are sorted by."""
        name = label.casefold()
        return self._positions.get(name, len(self._positions)), name

    def statement_key(self, statement: Statement) -> tuple[int, int, str, float]:
        """Return what the statements of a study are sorted by: the site's rule before any score."""
        position, name = self.key(statement.label)
        certainty = statement.certainty_percent or 0.0
        return SEVERITY[statement.flag], position, name, -certainty


def statements_of(
    study: StudyRecord,
    results: Iterable[ResultRecord],
    open_jobs: Iterable[JobRecord],
    order: FindingOrder,
) -> tuple[Statement, ...]:
    """Return everything that is said about a study, the worst first.

    Parameters
    ----------
    study : StudyRecord
        As it stands.
    results : iterable of ResultRecord
        The newest of each model.
    open_jobs : iterable of JobRecord
        Those that wait or run.
    order : FindingOrder
        The site's rule.
    """
    open_jobs = tuple(open_jobs)
    asked_again = {job.id for job in open_jobs}
    said = [
        statement
        for result in results
        # What a person had tried again is not a verdict any more.
        if result.kind is ResultKind.FINDING or result.job_id not in asked_again
        for statement in _statements_of_result(study, result)
    ]
    said += [_pending(job) for job in open_jobs]
    return tuple(sorted(said, key=order.statement_key))


def is_about_earlier_images(study: StudyRecord, result: ResultRecord) -> bool:
    """True when the study has changed since, or may be changing now."""
    return result.instance_set_digest != study.instance_set_digest


def _statements_of_result(study: StudyRecord, result: ResultRecord) -> list[Statement]:
    earlier = is_about_earlier_images(study, result)
    if result.kind is ResultKind.FINDING:
        return [_finding(result, finding, earlier=earlier) for finding in result.findings]
    refused = result.kind is ResultKind.REFUSAL
    label = str(result.refusal_reason) if result.refusal_reason else "no reason was given"
    return [
        Statement(
            flag=FlagValues.REFUSED if refused else FlagValues.FAILED,
            label=label,
            detail=result.refusal_message,
            certainty_percent=None,
            model=result.model.at_version,
            model_title=result.model.title,
            demonstration=result.model.demonstration,
            earlier_images_only=earlier,
        )
    ]


def _finding(result: ResultRecord, finding: Finding, *, earlier: bool) -> Statement:
    return Statement(
        flag=_OF_PRESENCE[finding.presence],
        label=finding.label,
        detail=_places(result, finding),
        certainty_percent=finding.certainty_percent,
        model=result.model.at_version,
        model_title=result.model.title,
        demonstration=result.model.demonstration,
        earlier_images_only=earlier,
    )


def _places(result: ResultRecord, finding: Finding) -> str:
    """Return how many regions a detecting model marked for a finding; empty where it tells none."""
    regions = () if result.detection is None else result.detection.regions
    count = sum(each.label == finding.label for each in regions)
    return f"{count} region{'s' * (count != 1)}" if count else ""


def _pending(job: JobRecord) -> Statement:
    return Statement(
        flag=FlagValues.PENDING,
        label="being analysed" if job.state is JobState.RUNNING else "waiting for analysis",
        detail=job.reason,
        certainty_percent=None,
        model=job.model.at_version,
        model_title=job.model.title,
        demonstration=job.model.demonstration,
        earlier_images_only=False,
    )


def flag_of(state: StudyState, statements: Iterable[Statement]) -> FlagValues:
    """Return the flag of a study: the gravest of all that is said, and of where it stands.

    A negative, a refusal or a failure about earlier images says nothing about the study as it is
    now; a finding that was seen in them still does. Where nothing is said, it is pending.
    """
    signals = [statement.flag for statement in statements if _still_counts(statement)]
    if state in _OF_STATE:
        signals.append(_OF_STATE[state])
    return min(signals, key=SEVERITY.__getitem__, default=FlagValues.PENDING)


def _still_counts(statement: Statement) -> bool:
    seen = statement.flag in {FlagValues.POSITIVE, FlagValues.UNDETERMINED}
    return seen or not statement.earlier_images_only


def top_statement(flag: FlagValues, statements: Sequence[Statement]) -> Statement | None:
    """Return the statement that gave the study its flag, by the site's rule; None if none did."""
    return next((one for one in statements if one.flag is flag and _still_counts(one)), None)
