"""The queue on SQLite, synchronous=FULL: enqueue, claim and finish, with tensors of real size.

The expectation is stated before measuring: each verb is one transaction, so it costs one sync of
the bytes it writes, as measured on the same disk with a plain file.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta

import numpy as np

from dicom_io.vocabulary import ImageTensor
from storage.claims import claim_batch
from storage.completion import complete_now
from storage.database import Database, migrate, open_database
from storage.endings import Analysed, finish_batch
from storage.jobs import ClaimedJob
from storage.preparation import Preparation, finish_preparation
from storage.spool import Spool
from storage.states import StudyState
from tests.benchmarks.figures import Table, median, percentile
from tests.benchmarks.material import Workshop
from tests.benchmarks.surroundings import sync_seconds
from tests.storage_hospital import CXR, NOON, PNEUMONIA, STUDY, Hospital

FILM_SHAPE = (160, 160, 1)
VOLUME_SHAPE = (64, 128, 128, 1)
BATCHES = (1, 8)
_PAGES_BYTES = 8 * 4096
"""About what one row's change and its indices write to the write-ahead log."""


def measure(workshop: Workshop) -> Iterator[Table]:
    """Yield one table: rows are verbs and tensor sizes."""
    table = Table(
        "Milliseconds per transaction, and jobs per second",
        ["verb", "tensor", "transactions", "median ms", "95th ms", "expected ms", "jobs/s"],
        notes=[
            "enqueue is the whole transaction that ends a preparation: job, tensor, study state",
            "claim reads the tensors back; finish writes the result and frees the tensor",
            (
                "expected: one sync of the bytes written, measured on a plain file just before; "
                "a tensor of 4 MiB fills the write-ahead log, so its commit also checkpoints and "
                "writes it a second time"
            ),
            "jobs/s: over the sum of the transactions' times; one process, nobody else writing",
        ],
    )
    for shape, full in ((FILM_SHAPE, 240), (VOLUME_SHAPE, 64)):
        for batch in BATCHES:
            _measure_shape(workshop, table, shape, batch, workshop.rounds(full, 16))
    yield table


def _measure_shape(
    workshop: Workshop, table: Table, shape: tuple[int, ...], batch: int, jobs: int
) -> None:
    folder = workshop.room("queue")
    path = folder / "medimgd.sqlite3"
    migrate(path)
    tensor_bytes = 4 * int(np.prod(shape))
    written = sync_seconds(folder, tensor_bytes + _PAGES_BYTES, 15)
    small = sync_seconds(folder, _PAGES_BYTES * batch, 15)
    database = open_database(path)
    hospital = Hospital(database, Spool(folder / "spool", 0))
    size = f"{tensor_bytes / 1024**2:.1f} MiB"
    if batch == BATCHES[0]:
        verbs = {"enqueue": (_enqueue(hospital, shape, jobs), 1, written)}
    else:
        verbs = {}
        _enqueue(hospital, shape, jobs)
    claims, finishes = _drain(database, batch)
    verbs[f"claim {batch}"] = (claims, batch, small)
    verbs[f"finish {batch}"] = (finishes, batch, small)
    for verb, (samples, per_transaction, expected) in verbs.items():
        rate = per_transaction * len(samples) / (sum(samples) / 1000)
        table.rows.append(
            [verb, size, len(samples), median(samples), percentile(samples, 95), 1000 * expected,
             rate]
        )  # fmt: skip
        table.samples[f"{verb}, {size}"] = samples
    database.close()


def _enqueue(hospital: Hospital, shape: tuple[int, ...], jobs: int) -> list[float]:
    """Enqueue `jobs` jobs; return the milliseconds of each ending transaction alone."""
    noise = np.random.default_rng(1)
    samples = []
    for number in range(jobs):
        study, now = f"{STUDY}.{number}", NOON + timedelta(seconds=number)
        hospital.arrive(1, study=study, now=now)
        complete_now(hospital.database, study, now)
        task = hospital.claim_study(now)
        values = noise.random(shape, dtype=np.float32)
        sops = tuple(each.sop_instance_uid for each in task.series[0].instances)
        axes = ("slices", "rows", "columns", "channels")[-len(shape) :]
        job = hospital.new_job(task, tensor=ImageTensor(values, axes, None, sops, "cd" * 32))
        preparation = Preparation(StudyState.ROUTED, "", jobs=[job])
        started = time.perf_counter()
        finish_preparation(hospital.database, task, preparation, now)
        samples.append(1000 * (time.perf_counter() - started))
    return samples


def _drain(database: Database, batch: int) -> tuple[list[float], list[float]]:
    """Claim and finish until nothing waits; return the milliseconds of each transaction."""
    now = NOON + timedelta(days=1)
    claims: list[float] = []
    finishes: list[float] = []
    while True:
        started = time.perf_counter()
        claimed = claim_batch(database, "worker-0", CXR.name, CXR.version, batch, now, 60)
        claims.append(1000 * (time.perf_counter() - started))
        if not claimed:
            return claims[:-1], finishes
        analysed = [_analysed(job, now) for job in claimed]
        started = time.perf_counter()
        finish_batch(database, analysed, now)
        finishes.append(1000 * (time.perf_counter() - started))


def _analysed(job: ClaimedJob, now) -> Analysed:
    # Every value is touched, as a network does: SQLite must really have read the tensor.
    assert float(job.tensor.values.sum()) >= 0
    return Analysed(job, (PNEUMONIA,), now)
