"""A small hospital for the tests of durable state: a database, a spool and things to put in."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import numpy as np
from sqlalchemy import Connection, event

from dicom_io.vocabulary import Code, Finding, ImageTensor, ModelIdentity, PresenceValues
from storage.arrivals import Arrival, Stored
from storage.claims import claim_batch
from storage.completion import complete_now
from storage.database import Database
from storage.endings import Analysed, finish_job
from storage.enqueueing import NewJob, NewRefusal
from storage.jobs import ClaimedJob
from storage.preparation import (
    Preparation,
    PreparationTask,
    Prepared,
    claim_study_for_preparation,
    finish_preparation,
)
from storage.recording import Recorded, record_instances
from storage.spool import Spool
from storage.states import StudyState

NOON = datetime(2024, 5, 17, 12, 0, tzinfo=UTC)
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
STUDY = "1.2.826.0.1.3680043.10.1"

CXR = ModelIdentity("cxr-pneumonia", "1.0.0", "ab" * 32, "Chest pneumonia", "Test only")
PNEUMONIA = Finding(
    label="Pneumonia",
    code=Code("233604007", "SCT", "Pneumonia"),
    site=Code("39607008", "SCT", "Lung"),
    presence=PresenceValues.PRESENT,
    probability=0.83,
    threshold=0.5,
    undetermined_low=0.4,
    undetermined_high=0.5,
)


def seconds(count: float) -> timedelta:
    return timedelta(seconds=count)


def element(group: int, number: int, vr: str, value: bytes) -> bytes:
    padding = b"\0" if vr in ("UI", "OB", "OW") else b" "
    value += padding * (len(value) % 2)
    head = struct.pack("<HH2s", group, number, vr.encode())
    if vr in ("OB", "OW"):
        return head + struct.pack("<HI", 0, len(value)) + value
    return head + struct.pack("<H", len(value)) + value


def make_prefix(sop: str, transfer_syntax: str = EXPLICIT_LITTLE, ae: str = "MODALITY") -> bytes:
    meta = b"".join(
        [
            element(2, 1, "OB", b"\0\1"),
            element(2, 2, "UI", CT_IMAGE_STORAGE.encode()),
            element(2, 3, "UI", sop.encode()),
            element(2, 0x10, "UI", transfer_syntax.encode()),
            element(2, 0x12, "UI", b"1.2.3"),
            element(2, 0x16, "AE", ae.encode()),
        ]
    )
    return b"\0" * 128 + b"DICM" + element(2, 0, "UL", struct.pack("<I", len(meta))) + meta


def make_data_set(
    sop: str,
    *,
    study: str = STUDY,
    series: str = f"{STUDY}.1",
    modality: str = "CT",
    accession: str = "",
    patient_id: str = "",
    patient_name: str = "Marked^Name",
    pixels: bytes = b"\1\2\3\4",
) -> bytes:
    return b"".join(
        [
            element(8, 0x16, "UI", CT_IMAGE_STORAGE.encode()),
            element(8, 0x18, "UI", sop.encode()),
            element(8, 0x50, "SH", accession.encode()),
            element(8, 0x60, "CS", modality.encode()),
            element(0x10, 0x10, "PN", patient_name.encode()),
            element(0x10, 0x20, "LO", patient_id.encode()),
            element(0x20, 0x0D, "UI", study.encode()),
            element(0x20, 0x0E, "UI", series.encode()),
            element(0x28, 0x10, "US", struct.pack("<H", 1)),
            element(0x28, 0x11, "US", struct.pack("<H", 2)),
            element(0x7FE0, 0x10, "OW", pixels),
        ]
    )


def make_tensor(digest: str = "cd" * 32, sops: tuple[str, ...] = (f"{STUDY}.1.1",)) -> ImageTensor:
    values = np.linspace(0, 1, 12, dtype=np.float32).reshape(2, 2, 3)
    return ImageTensor(
        values, ("rows", "columns", "channels"), (0.5, 0.5), sops, digest, {"low": np.float32(2)}
    )


def watch_writes(database: Database) -> list[Connection]:
    """Return a list that grows with every transaction that wrote; to read costs no sync."""
    writes: list[Connection] = []

    def committed(connection: Connection) -> None:
        if connection.get_execution_options().get("medimgd_writes"):
            writes.append(connection)

    event.listen(database._engine, "commit", committed)
    return writes


@dataclass
class Hospital:
    """One database and spool, with the verbs that most tests begin with."""

    database: Database
    spool: Spool

    def store(self, number: int = 1, **changes: object) -> Stored:
        study = str(changes.get("study", STUDY))
        changes.setdefault("series", f"{study}.1")
        sop = f"{study}.1.{number}"
        return self.spool.store(make_prefix(sop), make_data_set(sop, **changes))  # type: ignore[arg-type]

    def arrive(
        self,
        *numbers: int,
        now: datetime = NOON,
        association_id: str | None = None,
        **changes: object,
    ) -> Recorded:
        arrivals = [
            Arrival(self.store(number, **changes), association_id) for number in numbers or (1,)
        ]
        return record_instances(self.database, arrivals, now)

    def claim_study(self, now: datetime = NOON, owner: str = "preparer-0") -> PreparationTask:
        task = claim_study_for_preparation(self.database, owner, now, 60)
        assert task is not None
        return task

    def new_job(
        self, task: PreparationTask, model: ModelIdentity = CXR, **changes: object
    ) -> NewJob:
        series = task.series[0]
        tensor = make_tensor(sops=tuple(each.sop_instance_uid for each in series.instances))
        job = NewJob(model, series.series_instance_uid, task.instance_set_digest, tensor)
        return replace(job, **changes)  # type: ignore[arg-type]

    def prepare(
        self, now: datetime = NOON, *, models: tuple[ModelIdentity, ...] = (CXR,), **changes: object
    ) -> Prepared:
        task = self.claim_study(now)
        jobs = [self.new_job(task, model, **changes) for model in models]
        return finish_preparation(
            self.database, task, Preparation(StudyState.ROUTED, "", jobs=jobs), now
        )

    def enqueue(self, study: str = STUDY, now: datetime = NOON, **changes: object) -> int:
        self.arrive(1, study=study, now=now)
        complete_now(self.database, study, now)
        return self.prepare(now, **changes).job_ids[0]

    def refuse(self, refusal: NewRefusal, now: datetime = NOON) -> Prepared:
        self.arrive(1, now=now)
        complete_now(self.database, STUDY, now)
        return finish_preparation(
            self.database,
            self.claim_study(now),
            Preparation(StudyState.REFUSED, refusal.message, refusals=[refusal]),
            now,
        )

    def claim(
        self, limit: int = 1, now: datetime = NOON, owner: str = "worker-0"
    ) -> tuple[ClaimedJob, ...]:
        return claim_batch(self.database, owner, CXR.name, CXR.version, limit, now, 60)

    def analyse(self, study: str = STUDY, now: datetime = NOON) -> int:
        """Take a study all the way to a result; return its job's id."""
        job_id = self.enqueue(study, now)
        (job,) = self.claim(now=now)
        finish_job(self.database, Analysed(job, (PNEUMONIA,), now), now)
        return job_id
