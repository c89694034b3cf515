"""The lines of the worklist, worst first: one record per study, for table, JSON and page alike.

Owns what a line says. Reads through the functions of storage; draws nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType

from daemon.config import Config
from daemon.worklist.flags import (
    SEVERITY,
    FindingOrder,
    FlagValues,
    Statement,
    flag_of,
    statements_of,
    top_statement,
)
from storage.database import Database
from storage.deliveries import NOT_FOUND, delivery_states
from storage.jobs import JobRecord
from storage.jobs import open_jobs as open_jobs_of
from storage.results import ResultKind, ResultRecord, latest_results
from storage.states import DeliveryState, JobState, ResultState, StudyState
from storage.studies import StudyRecord, list_studies

MOST_STUDIES = 500
"""Newest studies that are judged and ordered; older ones are found by searching."""

DEFAULT_LIMIT = 200
"""Lines of one page."""

_NEEDS_A_PERSON = MappingProxyType(
    {DeliveryState.REJECTED: "rejected", NOT_FOUND: NOT_FOUND, DeliveryState.DEAD: "given up"}
)
"""What waits for a person, in words; of several the first names them all."""


@dataclass(frozen=True, slots=True)
class DeliverySummary:
    """How far the newest results of a study have come on their way to the archives."""

    text: str
    """For example ``confirmed 2/2``; empty when there is nothing to send."""
    needs_person: bool


@dataclass(frozen=True, slots=True)
class StudyLine:
    """One study as the worklist shows it; patient attributes stay out of ``repr``."""

    study_instance_uid: str
    patient_name: str = field(repr=False)
    patient_id: str = field(repr=False)
    accession_number: str = field(repr=False)
    study_date: str
    study_time: str
    description: str = field(repr=False)
    modalities: tuple[str, ...]
    instance_count: int
    conflict_count: int
    """Instances that came again under a known UID with other content."""
    state: StudyState
    state_since: datetime
    reason: str
    """Why it stands where it stands."""
    received_at: datetime
    """The first instance."""
    last_instance_at: datetime
    flag: FlagValues
    finding: str
    """What gave the flag: the worst finding's label by the site's rule, or the reason."""
    certainty_percent: float | None
    """Of that finding."""
    earlier_images_only: bool
    """The flag comes from images received before the newest ones."""
    statements: tuple[Statement, ...]
    """All that all models say, the worst first."""
    models: tuple[str, ...]
    """``name@version`` of everyone who speaks or is asked."""
    demonstration: bool
    """True when a demonstration model gave the flag."""
    superseded_versions: int
    """Results that newer ones have replaced."""
    delivery: DeliverySummary
    waits_for: str
    """What happens next; empty when nothing more will."""

    @property
    def top(self) -> Statement | None:
        """The statement that gave the flag; None when the study's own state did."""
        return top_statement(self.flag, self.statements)

    @property
    def other_statements(self) -> tuple[Statement, ...]:
        """All that is said besides, the worst first: no refusal hides behind a positive."""
        top = self.top
        return tuple(one for one in self.statements if one is not top)


@dataclass(frozen=True, slots=True)
class Worklist:
    """The lines that were asked for, and how many there are of each flag."""

    lines: tuple[StudyLine, ...]
    counts: Mapping[FlagValues, int]
    """Over all studies that match the search, whatever the filter."""
    matching: int
    """Studies that match search and filter; more than there are lines where `limit` cut them."""
    judged: int
    """Studies that match the search and were judged."""
    is_complete: bool
    """False when older studies match as well and were not looked at."""


def read_worklist(
    database: Database,
    config: Config,
    *,
    search: str = "",
    flag: FlagValues | None = None,
    limit: int = DEFAULT_LIMIT,
) -> Worklist:
    """Return the newest studies, worst first by the site's rule.

    Parameters
    ----------
    database : Database
        Read only will do.
    config : Config
        For ``web.finding_order``.
    search : str
        Part of a name, patient ID or accession number, or the beginning of a study UID.
    flag : FlagValues, optional
        Only these.
    limit : int
        Lines at most.
    """
    order = FindingOrder(config.web.finding_order)
    found = list_studies(database, search=search.strip(), limit=MOST_STUDIES + 1)
    judged = read_lines(database, order, found[:MOST_STUDIES])
    ordered = sorted(judged, key=lambda line: reading_key(line, order))
    wanted = [line for line in ordered if flag is None or line.flag is flag]
    return Worklist(
        lines=tuple(wanted[:limit]),
        counts=Counter(line.flag for line in judged),
        matching=len(wanted),
        judged=len(judged),
        is_complete=len(found) <= MOST_STUDIES,
    )


def read_lines(
    database: Database, order: FindingOrder, studies: Sequence[StudyRecord]
) -> list[StudyLine]:
    """Return the line of each study, in the order given."""
    # Jobs before results: an analysis that ends in between is then seen twice, as pending and as
    # done. The other way round it would be seen as neither, and the study could pass as negative.
    # Every study is asked, not only routed ones: work may go on while late images arrive.
    jobs = open_jobs_of(database, [study.study_instance_uid for study in studies])
    results = latest_results(database, [study.study_instance_uid for study in studies])
    result_ids = [result.id for some in results.values() for result in some]
    deliveries = delivery_states(database, result_ids)
    return [
        study_line(
            study,
            results.get(study.study_instance_uid, ()),
            jobs.get(study.study_instance_uid, ()),
            deliveries,
            order,
        )
        for study in studies
    ]


def study_line(
    study: StudyRecord,
    results: Sequence[ResultRecord],
    open_jobs: Sequence[JobRecord],
    deliveries: Mapping[int, Mapping[str, int]],
    order: FindingOrder,
) -> StudyLine:
    """Return the line of one study; a pure function.

    Parameters
    ----------
    study : StudyRecord
        As it stands.
    results : sequence of ResultRecord
        The newest of each model.
    open_jobs : sequence of JobRecord
        Those that wait or run.
    deliveries : mapping
        Of each result by its id: how many deliveries count as what.
    order : FindingOrder
        The site's rule.
    """
    statements = statements_of(study, results, open_jobs, order)
    flag = flag_of(study.state, statements)
    top = top_statement(flag, statements)
    return StudyLine(
        study_instance_uid=study.study_instance_uid,
        patient_name=study.patient_name,
        patient_id=study.patient_id,
        accession_number=study.accession_number,
        study_date=study.study_date,
        study_time=study.study_time,
        description=study.description,
        modalities=study.modalities,
        instance_count=study.instance_count,
        conflict_count=study.conflict_count,
        state=study.state,
        state_since=study.state_since,
        reason=study.reason,
        received_at=study.first_instance_at,
        last_instance_at=study.last_instance_at,
        flag=flag,
        finding=top.label if top else "",
        certainty_percent=top.certainty_percent if top else None,
        earlier_images_only=top.earlier_images_only if top else False,
        statements=statements,
        models=tuple(dict.fromkeys(statement.model for statement in statements)),
        demonstration=top.demonstration if top else False,
        superseded_versions=sum(result.version_number - 1 for result in results),
        delivery=delivery_summary(results, deliveries),
        waits_for=_waits_for(study, results, open_jobs, deliveries),
    )


def reading_key(line: StudyLine, order: FindingOrder) -> tuple[int, int, str, float, float, str]:
    """Return what the worklist is sorted by.

    The flag, then the site's order of findings, and only among the same finding the certainty:
    a model's output alone never decides who is read first. Then the newest.
    """
    position, name = order.key(line.finding) if line.certainty_percent is not None else (0, "")
    return (
        SEVERITY[line.flag],
        position,
        name,
        -(line.certainty_percent or 0.0),
        -line.last_instance_at.timestamp(),
        line.study_instance_uid,
    )


def delivery_summary(
    results: Sequence[ResultRecord], deliveries: Mapping[int, Mapping[str, int]]
) -> DeliverySummary:
    """Return in a few words how far the documents of these results have come."""
    if any(result.state is ResultState.UNCOMPOSABLE for result in results):
        return DeliverySummary("no report could be written", needs_person=True)
    counts: Counter[str] = Counter()
    for result in results:
        counts.update(deliveries.get(result.id, {}))
    if not counts.total():
        return DeliverySummary(_unsent(results), needs_person=False)
    return _counted(counts)


def _unsent(results: Sequence[ResultRecord]) -> str:
    states = {result.state for result in results}
    if ResultState.AWAITING in states:
        return "report being written"
    if ResultState.COMPOSED in states:
        return "no destination"
    return "shown here only" if states else ""


def _counted(counts: Counter[str]) -> DeliverySummary:
    total = counts.total()
    stuck = [state for state in _NEEDS_A_PERSON if counts[state]]
    if stuck:
        number = sum(counts[state] for state in stuck)
        return DeliverySummary(f"{_NEEDS_A_PERSON[stuck[0]]} {number}/{total}", needs_person=True)
    confirmed = counts[DeliveryState.CONFIRMED]
    arrived = confirmed + counts[DeliveryState.SENT]
    if confirmed == total:
        return DeliverySummary(f"confirmed {confirmed}/{total}", needs_person=False)
    return DeliverySummary(f"sent {arrived}/{total}", needs_person=False)


def _waits_for(
    study: StudyRecord,
    results: Sequence[ResultRecord],
    open_jobs: Sequence[JobRecord],
    deliveries: Mapping[int, Mapping[str, int]],
) -> str:
    """Return what happens next, in the order it will happen."""
    waits = [_STATE_WAITS[study.state]] if study.state in _STATE_WAITS else []
    for job in open_jobs:
        verb = "analysis under way" if job.state is JobState.RUNNING else "analysis"
        waits.append(f"{verb} by {job.model.at_version}")
    if any(result.state is ResultState.AWAITING for result in results):
        waits.append("writing of the report")
    states = {state for result in results for state in deliveries.get(result.id, {})}
    if DeliveryState.PENDING in states:
        waits.append("delivery")
    elif DeliveryState.SENT in states:
        waits.append("confirmation by the archive")
    if states & _NEEDS_A_PERSON.keys() or any(
        _is_given_up(result, open_jobs) for result in results
    ):
        waits.append("a person")
    return ", then ".join(waits)


def _is_given_up(result: ResultRecord, open_jobs: Sequence[JobRecord]) -> bool:
    failed = result.kind is ResultKind.FAILURE
    tried_again = any(job.id == result.job_id for job in open_jobs)
    return result.state is ResultState.UNCOMPOSABLE or (failed and not tried_again)


_STATE_WAITS = {
    StudyState.RECEIVING: "the end of reception",
    StudyState.COMPLETE: "preparation",
    StudyState.HELD: "a person",
}
