"""What a worker may do with single jobs: give some back, spare them at its death, suspect one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from storage_hospital import NOON, PNEUMONIA, STUDY, Hospital, seconds

from storage import claims
from storage.claims import give_back, reclaim_expired
from storage.completion import complete_now
from storage.database import migrate, open_database
from storage.dossier import read_dossier
from storage.endings import Analysed, fail_attempt, finish_batch
from storage.errors import DatabaseUnavailable, LeaseLost
from storage.jobs import get_job, waiting_models
from storage.results import ResultKind
from storage.retry import retry_study
from storage.spool import Spool
from storage.states import JobState


@pytest.fixture
def hospital(tmp_path: Path) -> Iterator[Hospital]:
    path = tmp_path / "medimgd.db"
    migrate(path)
    database = open_database(path)
    yield Hospital(database, Spool(tmp_path / "spool", min_free_bytes=0))
    database.close()


def claimed(hospital: Hospital, count: int):
    for number in range(count):
        hospital.enqueue(f"{STUDY}.{number}")
    return hospital.claim(count)


def test_single_jobs_are_given_back_and_the_others_stay(hospital) -> None:
    first, second, third = claimed(hospital, 3)

    assert give_back(hospital.database, "worker-0", NOON, [first.id, third.id]) == 2
    assert give_back(hospital.database, "somebody", NOON, [second.id]) == 0
    assert give_back(hospital.database, "worker-0", NOON, []) == 0

    found = [get_job(hospital.database, each.id) for each in (first, second, third)]
    assert [(each.state, each.attempts) for each in found] == [
        (JobState.WAITING, 0), (JobState.RUNNING, 1), (JobState.WAITING, 0),
    ]  # fmt: skip


def test_death_of_a_worker_is_not_blamed_on_what_it_had_not_begun(hospital) -> None:
    begun, ahead = claimed(hospital, 2)

    reclaim_expired(hospital.database, NOON, owner="worker-0", not_begun=[ahead.id, 999])

    found = [get_job(hospital.database, each.id) for each in (begun, ahead)]
    assert [(each.state, each.attempts, each.crashes) for each in found] == [
        (JobState.WAITING, 1, 1), (JobState.WAITING, 0, 0),
    ]  # fmt: skip
    # The first is analysed alone; the other one is free for any batch.
    assert [each.id for each in hospital.claim(5)] == [begun.id]


def test_who_takes_over_from_one_dead_worker_blames_no_job_of_another(hospital) -> None:
    """The second worker's note, which only the scheduler reads, may say what it had not begun."""
    hospital.enqueue()
    (ahead,) = hospital.claim(owner="worker-1")

    assert reclaim_expired(hospital.database, NOON + seconds(61), owner="worker-0") == ()
    (record,) = reclaim_expired(hospital.database, NOON + seconds(61), not_begun=[ahead.id])

    assert (record.state, record.attempts, record.crashes) == (JobState.WAITING, 0, 0)


def test_suspect_is_claimed_alone_and_given_up_after_its_attempts_not_its_crashes(hospital) -> None:
    suspect, other = claimed(hospital, 2)
    give_back(hospital.database, "worker-0", NOON, [other.id])
    states = []

    for _ in range(3):
        states.append(
            fail_attempt(
                hospital.database,
                suspect,
                "it hung",
                retryable=True,
                now=NOON,
                max_attempts=3,
                suspect=True,
            )
        )
        if states[-1] is JobState.WAITING:
            (suspect,) = hospital.claim(5)

    assert states == [JobState.WAITING, JobState.WAITING, JobState.FAILED]
    ended = get_job(hospital.database, suspect.id)
    assert (ended.attempts, ended.crashes) == (3, 1)
    with pytest.raises(LeaseLost):
        fail_attempt(hospital.database, suspect, "x", retryable=True, now=NOON, suspect=True)


def test_crash_of_a_suspect_is_the_last_one(hospital) -> None:
    (suspect,) = claimed(hospital, 1)
    fail_attempt(hospital.database, suspect, "hung", retryable=True, now=NOON, suspect=True)
    hospital.claim(1)

    (record,) = reclaim_expired(hospital.database, NOON + seconds(61))

    assert (record.state, record.crashes) == (JobState.FAILED, 2)


def test_batch_of_ordinary_and_other_endings_records_each_as_if_it_were_alone(hospital) -> None:
    # Given one whose lease is lost, two about one study, and one ordinary,
    lost, *_ = claimed(hospital, 1)
    reclaim_expired(hospital.database, NOON + seconds(61))
    for study in ("7", "8"):
        hospital.enqueue(f"{STUDY}.{study}", NOON + seconds(62))
    (again,) = hospital.claim(9, NOON + seconds(63), owner="other")
    ordinary = hospital.claim(9, NOON + seconds(63))

    # when they are recorded together, twice,
    batch = [Analysed(lost, (PNEUMONIA,), NOON)] + [
        Analysed(each, (PNEUMONIA,), NOON) for each in ordinary
    ]
    first = finish_batch(hospital.database, batch, NOON + seconds(64))
    second = finish_batch(hospital.database, batch, NOON + seconds(65))

    # then each has its one result, and repeating changed nothing.
    assert first == second == (None, JobState.DONE, JobState.DONE)
    for study in ("7", "8"):
        (result,) = read_dossier(hospital.database, f"{STUDY}.{study}").results
        assert (result.findings, result.version_number) == ((PNEUMONIA,), 1)
        assert result.finished_at == NOON + seconds(64)
    assert get_job(hospital.database, again.id).state is JobState.RUNNING


def test_job_that_its_worker_claimed_again_may_be_in_one_batch_twice(hospital) -> None:
    """A machine that was suspended for longer than a lease: taken back while it was computed."""
    (before,) = claimed(hospital, 1)
    reclaim_expired(hospital.database, NOON + seconds(61))
    (again,) = hospital.claim(now=NOON + seconds(62))

    batch = [Analysed(job, (PNEUMONIA,), NOON) for job in (before, again)]
    states = finish_batch(hospital.database, batch, NOON + seconds(63))

    assert states == (JobState.DONE, JobState.DONE)
    (result,) = read_dossier(hospital.database, f"{STUDY}.0").results
    assert result.job_id == before.id == again.id


def test_second_result_of_a_study_joins_the_chain_of_versions(hospital) -> None:
    hospital.analyse(f"{STUDY}.1")
    hospital.arrive(1, 2, study=f"{STUDY}.1", now=NOON + seconds(9))
    complete_now(hospital.database, f"{STUDY}.1", NOON + seconds(9))
    hospital.prepare(NOON + seconds(9))
    jobs = hospital.claim(9, NOON + seconds(10))

    states = finish_batch(
        hospital.database, [Analysed(each, (), NOON) for each in jobs], NOON + seconds(11)
    )

    assert states == (JobState.DONE,)
    results = read_dossier(hospital.database, f"{STUDY}.1").results
    assert sorted(each.version_number for each in results) == [1, 2]


def test_models_that_wait_say_how_urgent_their_most_urgent_analysis_is(hospital) -> None:
    hospital.enqueue(f"{STUDY}.1")
    hospital.enqueue(f"{STUDY}.2", NOON + seconds(5), priority=7)

    (found,) = waiting_models(hospital.database, NOON + seconds(6))

    assert (found.jobs, found.oldest_at, found.priority) == (2, NOON, 7)


def test_claim_reads_no_more_of_a_long_queue_than_it_takes(hospital) -> None:
    with hospital.database.read() as connection:
        query = claims._CLAIMABLE.compile(connection)
        unbound = (None,) * len(query.positiontup or ())
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {query}", unbound).all()

    (step,) = [row.detail for row in plan]  # a second one would be a sort of all that waits
    assert "ix_job_queue (state=? AND model_name=? AND model_version=?)" in step


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("UPDATE tensor SET shape = '[2, 2, 4]' WHERE job_id = ?", "is damaged (ValueError"),
        ("UPDATE tensor SET shape = 'x' WHERE job_id = ?", "is damaged (JSONDecodeError"),
        ("UPDATE tensor SET dtype = 'no' WHERE job_id = ?", "is damaged (TypeError"),
        ("DELETE FROM tensor WHERE job_id = ?", "is not in the database any more"),
    ],
)
def test_job_whose_tensor_is_damaged_fails_alone_and_says_so(hospital, damage, words) -> None:
    first, second, third = (hospital.enqueue(f"{STUDY}.{number}") for number in range(3))
    with hospital.database.write() as connection:
        connection.exec_driver_sql(damage, (second,))

    jobs = hospital.claim(9)

    assert [job.id for job in jobs] == [first, third]
    broken = get_job(hospital.database, second)
    assert (broken.state, broken.crashes) == (JobState.FAILED, 0)
    assert words in broken.reason
    (result,) = read_dossier(hospital.database, f"{STUDY}.1").results
    assert (result.kind, result.refusal_message) == (ResultKind.FAILURE, broken.reason)
    assert retry_study(hospital.database, f"{STUDY}.1", NOON).prepared_again


def test_claim_whose_tensors_cannot_be_read_now_costs_no_job_an_attempt(
    hospital, monkeypatch
) -> None:
    numbers = [hospital.enqueue(f"{STUDY}.{number}") for number in range(3)]

    def fails(*_: object) -> None:
        raise DatabaseUnavailable("disk I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(claims, "_read_tensors", fails)
        with pytest.raises(DatabaseUnavailable):
            hospital.claim(9)

    assert reclaim_expired(hospital.database, NOON + seconds(61)) == ()
    jobs = hospital.claim(9)
    assert [(job.id, job.attempts, job.crashes) for job in jobs] == [
        (number, 1, 0) for number in numbers
    ]
