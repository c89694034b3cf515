"""All of one study for people: its line, every version of every result, deliveries and clocks.

Owns what the study page and ``show`` say. Reads one dossier; report texts and pictures come from
``daemon.worklist.documents``, because they need the DICOM libraries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from daemon.config import Config
from daemon.worklist.flags import OPEN_JOBS, FindingOrder, is_about_earlier_images
from daemon.worklist.lines import StudyLine, study_line
from dicom_io.results.request import DocumentRole
from dicom_io.statuses import describe
from dicom_io.vocabulary import Detection, Finding, ModelIdentity
from storage.audit import AuditEntry
from storage.database import Database
from storage.deliveries import NOT_FOUND, DeliveryRecord
from storage.documents import DocumentRecord
from storage.dossier import AssociationRecord, DecisionRecord, StudyDossier, read_dossier
from storage.jobs import JobRecord
from storage.results import ResultKind, ResultRecord
from storage.states import DeliveryState, ResultState
from storage.studies import ConflictRecord, StudyRecord


@dataclass(frozen=True, slots=True)
class SeriesLine:
    """One series in a line."""

    series_instance_uid: str
    series_number: int | None
    modality: str
    description: str
    body_part_examined: str
    instance_count: int


@dataclass(frozen=True, slots=True)
class ResultVersion:
    """One version of what one model said."""

    result_id: int
    model: ModelIdentity
    version_number: int
    is_latest: bool
    """False when a newer version of the same model replaced it."""
    earlier_images_only: bool
    """Images arrived that this version does not know."""
    kind: ResultKind
    findings: tuple[Finding, ...]
    """In the site's order, the worst first."""
    detection: Detection | None
    """Where a detecting model marked what it found; None where it said nothing of places."""
    refusal_reason: str
    """Empty for findings."""
    refusal_message: str
    series_instance_uid: str
    instances_analysed: int
    analysis_started_at: datetime
    finished_at: datetime
    composed_at: datetime | None
    state: ResultState
    reason: str
    """Why it is withheld or could not be composed."""
    replaces_version: int | None
    documents: tuple[DocumentRecord, ...]

    @property
    def report(self) -> DocumentRecord | None:
        """The first composed report, or None."""
        return next((one for one in self.documents if one.role == DocumentRole.REPORT), None)

    @property
    def capture(self) -> DocumentRecord | None:
        """The result card, or None."""
        return next((one for one in self.documents if one.role == DocumentRole.CAPTURE), None)


@dataclass(frozen=True, slots=True)
class DeliveryLine:
    """One document on its way to one destination."""

    delivery_id: int
    destination: str
    role: str
    model: str
    version_number: int
    state: DeliveryState
    is_lost: bool
    """The destination accepted it, and it was not found there since."""
    state_since: datetime
    attempts: int
    next_attempt_at: datetime | None
    """None when it is not tried again by itself."""
    status: str
    """The last DIMSE status with its name; empty when no answer came."""
    comment: str
    """The destination's own words."""
    sent_at: datetime | None
    confirmed_at: datetime | None
    sop_class_uid: str
    sop_instance_uid: str

    @property
    def state_words(self) -> str:
        """The state for people."""
        return f"{self.state}, {NOT_FOUND} there" if self.is_lost else str(self.state)


@dataclass(frozen=True, slots=True)
class TimelineStep:
    """One moment in the life of the study."""

    name: str
    at: datetime
    seconds: float
    """Since the step before; 0 for the first."""
    detail: str


@dataclass(frozen=True, slots=True)
class StudyPage:
    """Everything the study page shows but report texts and pixels."""

    line: StudyLine
    series: tuple[SeriesLine, ...]
    versions: tuple[ResultVersion, ...]
    """Newest versions first, in the order of the line's models; replaced ones after them."""
    jobs: tuple[JobRecord, ...]
    timeline: tuple[TimelineStep, ...]
    deliveries: tuple[DeliveryLine, ...]
    decisions: tuple[DecisionRecord, ...]
    conflicts: tuple[ConflictRecord, ...]
    associations: tuple[AssociationRecord, ...]
    audit: tuple[AuditEntry, ...]
    completion_reason: str
    """Why reception was judged complete; empty before."""
    purged_at: datetime | None
    """When retention removed the images from here."""

    @property
    def latest(self) -> tuple[ResultVersion, ...]:
        """The version of each model that holds now."""
        return tuple(version for version in self.versions if version.is_latest)

    @property
    def replaced(self) -> tuple[ResultVersion, ...]:
        """Versions that newer ones replaced."""
        return tuple(version for version in self.versions if not version.is_latest)


def read_study_page(database: Database, config: Config, study_instance_uid: str) -> StudyPage:
    """Return everything of one study, in one snapshot.

    Raises
    ------
    storage.errors.NotFound
        No instance of it was ever received.
    """
    dossier = read_dossier(database, study_instance_uid)
    return study_page(dossier, FindingOrder(config.web.finding_order))


def study_page(dossier: StudyDossier, order: FindingOrder) -> StudyPage:
    """Return the page of a dossier; a pure function."""
    latest = latest_of(dossier.results)
    evidence = dossier.study.completion_evidence or {}
    return StudyPage(
        line=_line(dossier, latest, order),
        series=tuple(_series(dossier)),
        versions=_versions(dossier, latest, order),
        jobs=dossier.jobs,
        timeline=timeline(dossier.study, latest, dossier.deliveries),
        deliveries=tuple(_deliveries(dossier)),
        decisions=dossier.decisions,
        conflicts=dossier.conflicts,
        associations=dossier.associations,
        audit=dossier.audit,
        completion_reason=str(evidence.get("reason", "")),
        purged_at=dossier.study.purged_at,
    )


def latest_of(results: Sequence[ResultRecord]) -> tuple[ResultRecord, ...]:
    """Return the newest version of each model's result."""
    newest: dict[str, ResultRecord] = {}
    for result in sorted(results, key=lambda one: one.version_number):
        newest[result.model.name] = result
    return tuple(newest.values())


def _line(dossier: StudyDossier, latest: Sequence[ResultRecord], order: FindingOrder) -> StudyLine:
    counts: dict[int, dict[str, int]] = {}
    for delivery in dossier.deliveries:
        if delivery.is_given_up_for_good:
            continue
        of_result = counts.setdefault(delivery.result_id, {})
        of_result[delivery.counts_as] = of_result.get(delivery.counts_as, 0) + 1
    open_jobs = [job for job in dossier.jobs if job.state in OPEN_JOBS]
    return study_line(dossier.study, latest, open_jobs, counts, order)


def _series(dossier: StudyDossier) -> Iterator[SeriesLine]:
    for series in dossier.series:
        yield SeriesLine(
            series.series_instance_uid,
            series.series_number,
            series.modality,
            series.description,
            series.body_part_examined,
            len(series.instances),
        )


def _versions(
    dossier: StudyDossier, latest: Sequence[ResultRecord], order: FindingOrder
) -> tuple[ResultVersion, ...]:
    newest = {result.id for result in latest}
    numbers = {result.id: result.version_number for result in dossier.results}
    versions = [
        ResultVersion(
            result_id=result.id,
            model=result.model,
            version_number=result.version_number,
            is_latest=result.id in newest,
            earlier_images_only=is_about_earlier_images(dossier.study, result),
            kind=result.kind,
            findings=_ordered(result.findings, order),
            detection=result.detection,
            refusal_reason=str(result.refusal_reason or ""),
            refusal_message=result.refusal_message,
            series_instance_uid=result.series_instance_uid,
            instances_analysed=len(result.sop_instance_uids),
            analysis_started_at=result.analysis_started_at,
            finished_at=result.finished_at,
            composed_at=result.composed_at,
            state=result.state,
            reason=result.reason,
            replaces_version=numbers.get(result.predecessor_result_id or 0),
            documents=tuple(one for one in dossier.documents if one.result_id == result.id),
        )
        for result in dossier.results
    ]
    return tuple(
        sorted(versions, key=lambda one: (not one.is_latest, one.model.name, -one.version_number))
    )


_READING_ORDER = ("Present", "Undetermined", "Absent")


def _ordered(findings: Sequence[Finding], order: FindingOrder) -> tuple[Finding, ...]:
    return tuple(
        sorted(
            findings,
            key=lambda one: (_READING_ORDER.index(one.presence), order.key(one.label)),
        )
    )


def _deliveries(dossier: StudyDossier) -> Iterator[DeliveryLine]:
    results = {result.id: result for result in dossier.results}
    for delivery in dossier.deliveries:
        result = results[delivery.result_id]
        pending = delivery.state is DeliveryState.PENDING
        yield DeliveryLine(
            delivery_id=delivery.id,
            destination=delivery.destination,
            role=delivery.role,
            model=result.model.at_version,
            version_number=result.version_number,
            state=delivery.state,
            is_lost=delivery.is_lost,
            state_since=delivery.state_since,
            attempts=delivery.attempts,
            next_attempt_at=delivery.next_attempt_at if pending else None,
            status="" if delivery.last_status is None else describe(delivery.last_status),
            comment=delivery.last_comment,
            sent_at=delivery.sent_at,
            confirmed_at=delivery.confirmed_at,
            sop_class_uid=delivery.sop_class_uid,
            sop_instance_uid=delivery.sop_instance_uid,
        )


def timeline(
    study: StudyRecord, results: Sequence[ResultRecord], deliveries: Sequence[DeliveryRecord]
) -> tuple[TimelineStep, ...]:
    """Return the steps a study has taken so far, in the order of time.

    Parameters
    ----------
    study : StudyRecord
        As it stands.
    results : sequence of ResultRecord
        Those whose steps are of interest: the newest of each model.
    deliveries : sequence of DeliveryRecord
        Of any results; only those of `results` are shown.
    """
    moments = [
        *_moments_of_study(study),
        *(moment for result in results for moment in _moments_of_result(result)),
        *_moments_of_deliveries(results, deliveries),
    ]
    known = [(at, name, detail) for name, at, detail in moments if at is not None]
    # Sorting is stable: what happened at the same moment keeps the order of the pipeline.
    known.sort(key=lambda moment: moment[0])
    steps: list[TimelineStep] = []
    for at, name, detail in known:
        before = steps[-1].at if steps else at
        steps.append(TimelineStep(name, at, (at - before).total_seconds(), detail))
    return tuple(steps)


_Moment = tuple[str, datetime | None, str]


def _moments_of_study(study: StudyRecord) -> Iterator[_Moment]:
    images = f"{study.instance_count} image{'s' * (study.instance_count != 1)}"
    yield "first image received", study.first_instance_at, ""
    yield "last image received", study.last_instance_at, images
    evidence = study.completion_evidence or {}
    yield "complete", study.completed_at, str(evidence.get("reason", ""))
    yield "prepared", study.prepared_at, study.reason if study.prepared_at else ""


def _moments_of_result(result: ResultRecord) -> Iterator[_Moment]:
    model = result.model.at_version
    if result.kind is ResultKind.FINDING:
        yield "analysis started", result.analysis_started_at, model
        yield "analysed", result.finished_at, model
    else:
        word = "refused" if result.kind is ResultKind.REFUSAL else "failed"
        yield f"analysis {word}", result.finished_at, f"{model}: {result.refusal_reason or ''}"
    yield "report written", result.composed_at, f"{model}, version {result.version_number}"


def _moments_of_deliveries(
    results: Sequence[ResultRecord], deliveries: Sequence[DeliveryRecord]
) -> Iterator[_Moment]:
    """Yield one step per result and destination, when its last document arrived."""
    models = {result.id: result.model.at_version for result in results}
    groups: dict[tuple[int, str], list[DeliveryRecord]] = {}
    for delivery in deliveries:
        if delivery.result_id in models:
            groups.setdefault((delivery.result_id, delivery.destination), []).append(delivery)
    for (result_id, destination), group in groups.items():
        detail = f"{models[result_id]} to {destination}"
        yield "sent", _when_all([one.sent_at for one in group]), detail
        yield "confirmed", _when_all([one.confirmed_at for one in group]), detail


def _when_all(moments: Sequence[datetime | None]) -> datetime | None:
    known = [moment for moment in moments if moment is not None]
    return max(known) if len(known) == len(moments) else None
