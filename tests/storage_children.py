"""Programs that tests start and kill: one stage of the path each, saying what they do.

Run as ``python storage_children.py STAGE DATABASE SPOOL OWNER FIRST LAST``.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from storage_hospital import CXR, PNEUMONIA, Hospital, make_data_set, make_prefix

from storage.arrivals import Arrival
from storage.claims import claim_batch
from storage.database import open_database
from storage.endings import Analysed, finish_job
from storage.preparation import Preparation, claim_study_for_preparation, finish_preparation
from storage.recording import record_instances
from storage.results import results_awaiting_composition, store_documents
from storage.retention import purge_finished_studies
from storage.spool import Spool
from storage.states import StudyState

LEASE_SECONDS = 3600.0
ROOT = "1.2.826.0.1.3680043.10"
BATCH = 4


@dataclass(frozen=True)
class Document:
    role: str
    sop_instance_uid: str
    sop_class_uid: str = "1.2.840.10008.5.1.4.1.1.88.34"
    series_instance_uid: str = "2.25.9"
    data: bytes = b"x" * 50_000


def study_of(number: int) -> str:
    """Three instances to a study."""
    return f"{ROOT}.{number // 3 + 1}"


def sop_of(number: int) -> str:
    return f"{study_of(number)}.1.{number % 3 + 1}"


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode())


def receive(hospital: Hospital, numbers: range) -> None:
    """Store and acknowledge; record only every few instances, as a receiver in a hurry does."""
    unrecorded: list[Arrival] = []
    for number in numbers:
        sop, study = sop_of(number), study_of(number)
        data_set = make_data_set(
            sop, study=study, series=f"{study}.1", pixels=bytes([number % 256]) * 300_000
        )
        unrecorded.append(Arrival(hospital.spool.store(make_prefix(sop), data_set)))
        say(f"acknowledged {sop}")
        if len(unrecorded) >= 5:
            record_instances(hospital.database, unrecorded, datetime.now(UTC))
            unrecorded = []
    record_instances(hospital.database, unrecorded, datetime.now(UTC))


def prepare(hospital: Hospital, owner: str) -> None:
    while True:
        now = datetime.now(UTC)
        task = claim_study_for_preparation(
            hospital.database, owner, now, LEASE_SECONDS, max_attempts=100
        )
        if task is None:
            return
        say(f"claimed {task.study_instance_uid}")
        done = Preparation(StudyState.ROUTED, "", jobs=[hospital.new_job(task)])
        finish_preparation(hospital.database, task, done, now)


def work(hospital: Hospital, owner: str) -> None:
    while True:
        now = datetime.now(UTC)
        jobs = claim_batch(
            hospital.database, owner, CXR.name, CXR.version, BATCH, now, LEASE_SECONDS
        )
        if not jobs:
            return
        for job in jobs:
            say(f"claimed {job.id}")
            finish_job(hospital.database, Analysed(job, (PNEUMONIA,), now), datetime.now(UTC))


def compose(hospital: Hospital) -> None:
    while results := results_awaiting_composition(hospital.database):
        for result in results:
            say(f"composing {result.id}")
            documents = [
                Document("SC", f"2.25.{result.id}1", "1.2.840.10008.5.1.4.1.1.7"),
                Document("SR", f"2.25.{result.id}2"),
            ]
            destinations = ["pacs", "archive"]
            now = datetime.now(UTC)
            store_documents(hospital.database, result.id, documents, destinations, now)


def purge(hospital: Hospital) -> None:
    """Remove every finished study, however young, one by one."""
    while True:
        done = purge_finished_studies(
            hospital.database, hospital.spool, datetime.now(UTC), older_than_days=-1, limit=1
        )
        if not done:
            return
        say(f"removed {done[0].study_instance_uid}")


def main() -> None:
    stage, database_path, folder, owner, first, last = sys.argv[1:]
    database = open_database(Path(database_path))
    hospital = Hospital(database, Spool(Path(folder), min_free_bytes=0, slot=owner))
    say("ready")
    if stage == "receive":
        receive(hospital, range(int(first), int(last)))
    elif stage == "prepare":
        prepare(hospital, owner)
    elif stage == "work":
        work(hospital, owner)
    elif stage == "purge":
        purge(hospital)
    else:
        compose(hospital)
    say("finished")


if __name__ == "__main__":
    main()
