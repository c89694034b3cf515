"""Kill -9 in the middle of storing, preparing, analysing and composing: nothing lost or doubled."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import storage_children
from sqlalchemy import select
from storage_children import sop_of, study_of
from storage_hospital import Hospital

from storage import schema
from storage.arrivals import StoreOutcome
from storage.claims import reclaim_expired
from storage.completion import complete_now
from storage.database import migrate, open_database
from storage.preparation import (
    Preparation,
    claim_study_for_preparation,
    finish_preparation,
    reclaim_preparations,
)
from storage.reindexing import reindex
from storage.spool import Spool
from storage.states import StudyState
from storage.studies import get_series, list_studies

_TESTS = Path(storage_children.__file__).parent
INSTANCES = 60
STUDIES = INSTANCES // 3


@pytest.fixture
def hospital(tmp_path: Path) -> Iterator[Hospital]:
    path = tmp_path / "medimgd.db"
    migrate(path)
    database = open_database(path)
    yield Hospital(database, Spool(tmp_path / "spool", min_free_bytes=0))
    database.close()


def _start(hospital: Hospital, stage: str, owner: str, first: int = 0) -> subprocess.Popen[str]:
    arguments = [hospital.database.path, hospital.spool.folder, owner, first, INSTANCES]
    paths = [str(_TESTS.parent), str(_TESTS)]
    return subprocess.Popen(
        [sys.executable, str(_TESTS / "storage_children.py"), stage, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )


def _kill_after(child: subprocess.Popen[str], lines: int, chance: random.Random) -> list[str]:
    """Kill a child at a random moment after it said so many lines; return all that it said."""
    assert child.stdout is not None
    said = [child.stdout.readline().strip() for _ in range(lines + 1)]
    time.sleep(chance.uniform(0, 0.02))
    child.kill()
    said += [line.strip() for line in child.stdout]
    child.wait()
    child.stdout.close()
    return said


def _run_to_the_end(child: subprocess.Popen[str]) -> list[str]:
    said, _ = child.communicate(timeout=120)
    assert child.returncode == 0
    return said.splitlines()


def _names(said: list[str]) -> list[str]:
    return [line.split()[1] for line in said if " " in line]


def _fill(hospital: Hospital) -> None:
    _run_to_the_end(_start(hospital, "receive", "receiver-0"))
    for study in list_studies(hospital.database):
        complete_now(hospital.database, study.study_instance_uid, datetime.now(UTC))


def _rows(hospital: Hospital, table) -> list:
    with hospital.database.read() as connection:
        return list(connection.execute(select(table)).all())


@pytest.mark.parametrize("seed", [1, 2])
def test_every_acknowledged_instance_survives_a_killed_receiver(hospital, seed: int) -> None:
    chance = random.Random(seed)
    acknowledged: list[str] = []

    # The sender repeats what it has no answer for, and once more what it has.
    for _ in range(3):
        first = max(0, len(acknowledged) - 1)
        child = _start(hospital, "receive", "receiver-0", first)
        said = _names(_kill_after(child, chance.randint(2, 12), chance))
        acknowledged += [sop for sop in said if sop not in acknowledged]
        on_disk = {path.stem for path in hospital.spool.stored_instances()}
        assert set(acknowledged) <= on_disk
    hospital.spool.sweep_incoming()
    reindex(hospital.database, hospital.spool, datetime.now(UTC))

    recorded = Counter(
        instance.sop_instance_uid
        for study in list_studies(hospital.database)
        for series in get_series(hospital.database, study.study_instance_uid)
        for instance in series.instances
    )
    assert set(acknowledged) <= set(recorded)
    assert set(recorded.values()) == {1}
    assert _rows(hospital, schema.instance_conflict) == []
    for path in hospital.spool.stored_instances():
        stored = hospital.spool.read_stored(path)
        assert (stored.outcome, stored.header.sop_instance_uid) == (StoreOutcome.NEW, path.stem)
        assert stored.size > 300_000
    assert hospital.spool.sweep_incoming() == 0
    left = {part.name.split(".")[0] for part in (hospital.spool.folder / "incoming").iterdir()}
    assert left == set()


def test_every_study_is_prepared_once_however_often_its_preparer_is_killed(hospital) -> None:
    _fill(hospital)
    chance = random.Random(3)

    for attempt in range(3):
        owner = f"preparer-{attempt}"
        _kill_after(_start(hospital, "prepare", owner), chance.randint(1, 5), chance)
        reclaim_preparations(hospital.database, datetime.now(UTC), owner=owner, max_attempts=100)
    _run_to_the_end(_start(hospital, "prepare", "preparer-9"))

    assert Counter(study.state for study in list_studies(hospital.database)) == {"routed": STUDIES}
    jobs = _rows(hospital, schema.job)
    assert Counter(job.study_instance_uid for job in jobs) == {
        study_of(number): 1 for number in range(INSTANCES)
    }
    tensors = {tensor.job_id for tensor in _rows(hospital, schema.tensor)}
    assert tensors == {job.id for job in jobs}
    assert sorted(uid for job in jobs for uid in job.sop_instance_uids) == sorted(
        sop_of(number) for number in range(INSTANCES)
    )


def test_a_study_is_removed_whole_or_not_at_all_however_often_the_purge_is_killed(
    hospital,
) -> None:
    _fill(hospital)
    while task := claim_study_for_preparation(hospital.database, "p", datetime.now(UTC), 60):
        outcome = Preparation(StudyState.UNMATCHED, "")
        finish_preparation(hospital.database, task, outcome, datetime.now(UTC))
    chance = random.Random(5)

    for _ in range(4):
        _kill_after(_start(hospital, "purge", "scheduler"), chance.randint(1, 4), chance)
        found = reindex(hospital.database, hospital.spool, datetime.now(UTC))
        assert (found.recorded, found.missing, found.unreadable) == (0, 0, ())
        files = Counter(path.parents[1].name for path in hospital.spool.stored_instances())
        for study in list_studies(hospital.database):
            left = 0 if study.purged_at else 3
            assert (study.state, files[study.study_instance_uid]) == ("unmatched", left)
    _run_to_the_end(_start(hospital, "purge", "scheduler"))

    assert [path for path in hospital.spool.folder.rglob("*") if path.is_file()] == []


def test_every_job_has_one_result_and_every_result_its_documents_after_kills(hospital) -> None:
    _fill(hospital)
    _run_to_the_end(_start(hospital, "prepare", "preparer-0"))
    chance = random.Random(4)

    # Far enough apart that no job meets two kills, which would rightly make it a dead letter.
    for attempt in range(2):
        owner = f"worker-{attempt}"
        lines = chance.randint(5, 7)
        _kill_after(_start(hospital, "work", owner), lines, chance)
        reclaim_expired(hospital.database, datetime.now(UTC), owner=owner)
    _run_to_the_end(_start(hospital, "work", "worker-9"))
    for _ in range(3):
        _kill_after(_start(hospital, "compose", "courier"), chance.randint(1, 4), chance)
    _run_to_the_end(_start(hospital, "compose", "courier"))

    assert Counter(job.state for job in _rows(hospital, schema.job)) == {"done": STUDIES}
    results = _rows(hospital, schema.result)
    assert len({result.job_id for result in results}) == len(results) == STUDIES
    assert {result.version_number for result in results} == {1}
    assert len(_rows(hospital, schema.document)) == 2 * STUDIES
    deliveries = _rows(hospital, schema.delivery)
    assert len(deliveries) == 4 * STUDIES
    assert {delivery.state for delivery in deliveries} == {"pending"}
    assert _rows(hospital, schema.tensor) == []
