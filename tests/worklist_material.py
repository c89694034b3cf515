"""A ward for the tests of the worklist: studies taken to any state by storage itself."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from dicom_io.display import display_image
from dicom_io.errors import RefusalReason
from dicom_io.results.capture import compose_capture
from dicom_io.results.refusal_report import compose_refusal_report
from dicom_io.results.request import RefusalDetail, ReportRequest, SRClassValues
from dicom_io.results.study_report import compose_study_report
from dicom_io.vocabulary import (
    Code,
    Finding,
    ImageTensor,
    InstanceHeader,
    ModelIdentity,
    PresenceValues,
)
from storage.arrivals import Arrival, Stored, StoreOutcome
from storage.associations import close_association, open_association
from storage.backoff import DeliveryPolicy
from storage.claims import claim_batch
from storage.completion import complete_now
from storage.confirmation import confirm_deliveries
from storage.database import Database
from storage.destinations import DeliveryOutcome
from storage.endings import Analysed, fail_attempt, finish_job
from storage.enqueueing import NewJob, NewRefusal
from storage.jobs import ClaimedJob
from storage.outbox import due_deliveries, record_outcomes
from storage.preparation import (
    NewDecision,
    Preparation,
    PreparationTask,
    claim_study_for_preparation,
    fail_preparation,
    finish_preparation,
)
from storage.processes import register_process
from storage.recording import record_instances
from storage.results import (
    ResultKind,
    ResultRecord,
    results_awaiting_composition,
    store_documents,
    withhold_result,
)
from storage.states import StudyState

SCRIPT = "<script>document.title='pwned'</script>"
POLICY = DeliveryPolicy()
ROLES = ("receiver", "scheduler", "preparer", "worker", "courier", "web")


def model(name: str, title: str, *, version: str = "1.0.0", demo: bool = False) -> ModelIdentity:
    return ModelIdentity(
        name, version, "ab" * 32, title, f"Second look: {title}. Never alone.", demonstration=demo
    )


CXR = model("cxr-pneumonia", "Paediatric chest X-ray pneumonia")
HEAD = model("ct-head-triage", "Head CT triage")
TINY = model("mr-tiny", "Tiny MR proof of path", demo=True)


def finding(label: str, presence: PresenceValues, probability: float) -> Finding:
    return Finding(
        label=label,
        code=Code(label.upper()[:16].replace(" ", "-"), "99TEST", label),
        site=None,
        presence=presence,
        probability=probability,
        threshold=0.5,
        undetermined_low=0.4,
        undetermined_high=0.6,
    )


def present(label: str, probability: float = 0.9) -> Finding:
    return finding(label, PresenceValues.PRESENT, probability)


def undetermined(label: str, probability: float = 0.5) -> Finding:
    return finding(label, PresenceValues.UNDETERMINED, probability)


def absent(label: str, probability: float = 0.04) -> Finding:
    return finding(label, PresenceValues.ABSENT, probability)


class Ward:
    """One database and a clock that moves with every deed.

    Parameters
    ----------
    database : Database
        Migrated and open for writing.
    now : datetime, optional
        When the first study arrives.
    """

    def __init__(self, database: Database, now: datetime | None = None) -> None:
        self.database = database
        self.now = now or datetime.now(UTC) - timedelta(hours=3)
        self._count = 0

    def pass_time(self, seconds: float) -> datetime:
        self.now += timedelta(seconds=seconds)
        return self.now

    def receive(
        self,
        name: str,
        *,
        study: str | None = None,
        images: int = 1,
        first: int = 1,
        modality: str = "DX",
        description: str = "Chest frontal",
        accession: str | None = None,
        patient_id: str | None = None,
    ) -> str:
        """Receive a study, or more images of one, over an association."""
        self._count += 1
        number = self._count
        uid = study or f"1.2.826.0.1.3680043.8.498.{number}.{20260000 + number}"
        header = InstanceHeader(
            uid, f"{uid}.1", f"{uid}.1.0", "1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.1.2.1",
            modality=modality, study_date="20261122", study_time="101500",
            study_description=description, series_description="AP", series_number=1,
            body_part_examined="CHEST", rows=64, columns=64,
            patient_id=f"P-{number:05d}" if patient_id is None else patient_id,
            patient_name=name,
            accession_number=f"A{7000 + number}" if accession is None else accession,
        )  # fmt: skip
        assoc = f"assoc-{number}"
        open_association(
            self.database, assoc, slot="receiver-1", now=self.pass_time(20),
            calling_ae_title="DX_ROOM_2", called_ae_title="MEDIMGD", address="10.1.2.3",
        )  # fmt: skip
        arrivals = [self._arrival(header, uid, n, assoc) for n in range(first, first + images)]
        record_instances(self.database, arrivals, self.pass_time(1))
        close_association(self.database, assoc, self.pass_time(1))
        return uid

    def _arrival(
        self, header: InstanceHeader, uid: str, n: int, assoc: str, content: str = "aa"
    ) -> Arrival:
        sop = f"{uid}.1.{n}"
        stored = Stored(
            Path(f"/spool/{sop}"), f"studies/{uid}/{uid}.1/{sop}.dcm",
            replace(header, sop_instance_uid=sop, instance_number=n),
            StoreOutcome.NEW if content == "aa" else StoreOutcome.CONFLICT,
            f"blake3:{content * 32}", 2048,
        )  # fmt: skip
        return Arrival(stored, assoc)

    def contradict(self, uid: str) -> None:
        """Receive other content under the study's first SOP Instance UID."""
        header = InstanceHeader(uid, f"{uid}.1", f"{uid}.1.1", "1.2", "1.2.840.10008.1.2.1")
        arrival = self._arrival(header, uid, 1, "assoc-1", "bb")
        # Any file will do: only that it is there is asked of a conflict.
        arrival = replace(arrival, stored=replace(arrival.stored, path=self.database.path))
        record_instances(self.database, [arrival], self.pass_time(1))

    def complete(self, uid: str) -> PreparationTask:
        """Let reception end, and claim the study for preparation."""
        complete_now(self.database, uid, self.pass_time(30))
        task = claim_study_for_preparation(self.database, "preparer-1", self.pass_time(0.2), 60)
        assert task is not None
        assert task.study_instance_uid == uid
        return task

    def route(
        self,
        uid: str,
        *models: ModelIdentity,
        refusals: Sequence[tuple[ModelIdentity, RefusalReason, str]] = (),
    ) -> None:
        """Complete a study and give it to models; some may refuse."""
        task = self.complete(uid)
        series = task.series[0]
        sops = tuple(one.sop_instance_uid for one in series.instances)
        tensor = ImageTensor(
            np.zeros((2, 2, 1), np.float32), ("rows", "columns", "channels"), None, sops, "cd" * 32
        )
        digest = task.instance_set_digest
        uid_of_series = series.series_instance_uid
        jobs = [NewJob(one, uid_of_series, digest, tensor) for one in models]
        refused = [
            NewRefusal(one, uid_of_series, digest, reason, message, sops, "cd" * 32)
            for one, reason, message in refusals
        ]
        decisions = [
            NewDecision(one.name, one.version, uid_of_series, True, {"sentence": "it matches"})
            for one in models
        ]
        outcome = StudyState.ROUTED if jobs else StudyState.REFUSED
        reason = f"read by {len(jobs)} models" if jobs else refusals[0][2]
        finish_preparation(
            self.database, task, Preparation(outcome, reason, decisions, jobs, refused),
            self.pass_time(0.8),
        )  # fmt: skip

    def leave_unmatched(self, uid: str) -> None:
        task = self.complete(uid)
        reason = "none of 3 installed models reads this study"
        finish_preparation(
            self.database, task, Preparation(StudyState.UNMATCHED, reason), self.pass_time(1)
        )

    def hold(self, uid: str) -> None:
        task = self.complete(uid)
        state = fail_preparation(
            self.database, task, "unexpected ValueError in dicom_io.volume:88",
            self.pass_time(1), max_attempts=1,
        )  # fmt: skip
        assert state is StudyState.HELD

    def claim(self, of: ModelIdentity) -> ClaimedJob:
        jobs = claim_batch(
            self.database, "worker-1", of.name, of.version, 1, self.pass_time(0.4), 600
        )
        return jobs[0]

    def analyse(self, of: ModelIdentity, *findings: Finding) -> None:
        """Finish the oldest job of a model."""
        job = self.claim(of)
        finish_job(self.database, Analysed(job, findings, self.now), self.pass_time(0.3))

    def fail(self, of: ModelIdentity) -> None:
        """Give the oldest job of a model up."""
        message = "the device ran out of memory (attempt 3 of 3)"
        fail_attempt(self.database, self.claim(of), message, retryable=False, now=self.pass_time(1))

    def positive(self, name: str, *findings: Finding, **changes: object) -> str:
        """Take a study all the way to findings."""
        uid = self.receive(name, **changes)  # type: ignore[arg-type]
        self.route(uid, CXR)
        self.analyse(CXR, *findings)
        return uid

    def compose(self, evidence: Path, destinations: Sequence[str] = ("PACS",)) -> None:
        """Compose real documents from a real instance for every result that waits."""
        picture = display_image(evidence)
        for result in results_awaiting_composition(self.database, limit=100):
            if result.kind is not ResultKind.FINDING:
                withhold_result(
                    self.database, result.id,
                    "refusals are shown in the worklist and not sent (results.send_refusals)",
                    self.pass_time(0.1),
                )  # fmt: skip
                continue
            request = _request(result, evidence)
            capture = compose_capture(request, picture)
            write = compose_refusal_report if request.refusal else compose_study_report
            report = write(request, SRClassValues.COMPREHENSIVE_3D, capture)
            store_documents(
                self.database, result.id, [capture, report], destinations, self.pass_time(0.5)
            )

    def deliver(self, uid: str, status: int | None, comment: str = "", *, times: int = 1) -> None:
        """Attempt everything due of a study; the archive answers `status`."""
        for attempt in range(times):
            moment = self.pass_time(1) + timedelta(hours=attempt)
            for group in due_deliveries(self.database, moment, limit=100):
                if group.study_instance_uid == uid:
                    outcomes = [DeliveryOutcome(d.id, status, comment) for d in group.deliveries]
                    record_outcomes(self.database, group.destination, outcomes, moment, POLICY)

    def confirm(self, destination: str, sop_instance_uids: Sequence[str]) -> None:
        confirm_deliveries(self.database, destination, sop_instance_uids, self.pass_time(2))

    def beat(self, *roles: str) -> None:
        """Let processes of these roles be alive now, elsewhere."""
        for role in roles or ROLES:
            register_process(
                self.database, f"{role}-1", role=role, pid=1, host="another-host",
                now=datetime.now(UTC), state="ready", detail={},
            )  # fmt: skip


def _request(result: ResultRecord, evidence: Path) -> ReportRequest:
    refusal = None
    if result.kind is not ResultKind.FINDING:
        refusal = RefusalDetail(
            result.refusal_reason or RefusalReason.SOFTWARE_FAILURE, result.refusal_message
        )
    return ReportRequest(
        evidence=(evidence,),
        cited=(evidence,),
        model=result.model,
        analysis_started=result.analysis_started_at,
        result_digest=result.result_digest,
        node_id="node-1",
        software_version="0.1.0",
        site_namespace=uuid.UUID("6ba7b810-9dad-11d1-80b4-00c04fd430c8"),
        findings=result.findings,
        refusal=refusal,
        version_number=result.version_number,
    )


def fill(ward: Ward, film: Path, slice_: Path) -> dict[str, str]:
    """Fill a ward with one study of every kind; return their UIDs by a word for each."""
    uids: dict[str, str] = {}
    uids["positive"] = ward.positive(
        "Muster^Mara", present("Pneumonia", 0.93), absent("Pneumothorax")
    )
    uids["mild"] = ward.positive("Beispiel^Bruno", present("Effusion", 0.99), absent("Pneumonia"))
    uids["undetermined"] = ward.positive("Example^Eva", undetermined("Pneumonia", 0.47))
    uids["script"] = ward.positive(
        SCRIPT, absent("Pneumonia"), description=SCRIPT, patient_id="<i>1</i>"
    )
    uids["negative"] = ward.positive(
        "Yamada^Tarou=山田^太郎=やまだ^たろう", absent("Pneumonia", 0.02)
    )
    ward.compose(film)
    for word in ("positive", "mild", "negative"):
        ward.deliver(uids[word], 0x0000)
    ward.deliver(uids["undetermined"], 0x0122, "SOP class not supported", times=3)

    head = {"modality": "CT", "description": "CT head native", "images": 60}
    uids["mixed"] = ward.receive("Nowak^Nina", **head)  # type: ignore[arg-type]
    ward.route(
        uids["mixed"], HEAD,
        refusals=[(CXR, RefusalReason.OUTSIDE_CONTRACT, "PatientAge: 0 to 18 years, found 54")],
    )  # fmt: skip
    ward.analyse(HEAD, present("Intracranial haemorrhage", 0.61), absent("Mass effect", 0.1))
    ward.compose(slice_)
    uids["late"] = ward.receive("Late^Larry", **head)  # type: ignore[arg-type]
    ward.route(uids["late"], HEAD)
    ward.analyse(HEAD, absent("Intracranial haemorrhage", 0.03), absent("Mass effect", 0.02))
    ward.receive("Late^Larry", study=uids["late"], first=61, images=3, modality="CT")

    uids["failed"] = ward.receive("Smith^John", modality="MR", description="MR head T1", images=60)
    ward.route(uids["failed"], TINY)
    ward.fail(TINY)
    uids["refused"] = ward.receive("Grande^Gina", description="Chest lateral")
    ward.route(
        uids["refused"],
        refusals=[(CXR, RefusalReason.CANNOT_DECODE, "JPEG Extended 12 bit cannot be decoded.")],
    )
    uids["demo"] = ward.receive("Demo^Dora", modality="MR", description="MR head T1", images=60)
    ward.route(uids["demo"], TINY)
    ward.analyse(TINY, present("Bright", 0.7))
    ward.compose(slice_)
    uids["waiting"] = ward.receive("Waits^Walter")
    ward.route(uids["waiting"], CXR)
    uids["unmatched"] = ward.receive("Foot^Frida", description="Foot 2 planes", accession="")
    ward.leave_unmatched(uids["unmatched"])
    uids["held"] = ward.receive("Held^Hanna", modality="CT", description="CT abdomen", images=412)
    ward.hold(uids["held"])
    ward.contradict(uids["held"])
    uids["receiving"] = ward.receive("^", description="", accession="", patient_id="", images=17)
    return uids
