"""Runs of shadows: leased, ended and dropped as jobs are, and met by no query about results."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import event, func, select, text
from storage_hospital import NOON, PNEUMONIA, STUDY, make_tensor, seconds

from dicom_io.vocabulary import PresenceValues
from storage import schema
from storage.comparison import AnswerKind, answers_of
from storage.completion import complete_now
from storage.dossier import read_dossier
from storage.errors import LeaseLost
from storage.jobs import open_jobs, waiting_models
from storage.outbox import due_deliveries
from storage.overview import read_overview
from storage.redelivery import deliver_undelivered
from storage.results import latest_results, results_awaiting_composition, store_documents
from storage.retention import purge_finished_studies
from storage.shadow_preparation import await_worker, claim_study_for_shadow, end_preparation
from storage.shadow_runs import ShadowModel, runs_of_study
from storage.shadows import (
    MOST_ATTEMPTS,
    claim_runs,
    finish_run,
    give_back_runs,
    put_back_run,
    reclaim_runs,
    renew_runs,
    waiting_shadows,
)
from storage.standings import Decision, VersionDigests, end_shadow, shadow_version
from storage.states import ShadowState

MODEL = ShadowModel("cxr-pneumonia", "2.0.0", "ef" * 32, "cd" * 32)
DIGESTS = VersionDigests("cxr-pneumonia", "2.0.0", "a2" * 32, "ef" * 32)
LATER = NOON + seconds(10)
OTHER = f"{STUDY}.9"


def claim(hospital, now=LATER, owner="preparer-1", since=NOON):
    return claim_study_for_shadow(
        hospital.database, MODEL, owner, since=since, now=now, lease_seconds=60
    )


def waiting(hospital, study=STUDY):
    """Take a study to where its shadow waits for a worker."""
    hospital.enqueue(study)
    task = claim(hospital)
    await_worker(hospital.database, task.run, f"{study}.1", make_tensor(), LATER)
    return task.run.id


def running(hospital, now=LATER, owner="worker-1"):
    (claimed,) = claim_runs(hospital.database, owner, MODEL.name, MODEL.version, 4, now, 60)
    return claimed


def only(hospital, study=STUDY):
    (run,) = runs_of_study(hospital.database, study)
    return run


def test_nothing_of_a_shadow_is_met_by_what_reads_jobs_results_or_deliveries(hospital) -> None:
    hospital.analyse()
    database, path = hospital.database, hospital.database.path
    (result,) = results_awaiting_composition(database)
    store_documents(database, result.id, [], [], NOON)
    before = (read_dossier(database, STUDY), read_overview(path, LATER))

    # The shadow says the opposite, and is read in every state on its way.
    task = claim(hospital)
    for step in ("preparing", "waiting", "running", "done"):
        if step == "waiting":
            await_worker(database, task.run, f"{STUDY}.1", make_tensor(), LATER)
        elif step == "running":
            claimed = running(hospital)
        elif step == "done":
            absent = replace(PNEUMONIA, presence=PresenceValues.ABSENT, probability=0.01)
            finish_run(database, claimed.run, [absent], LATER)
        assert only(hospital).state == step

        assert (read_dossier(database, STUDY), read_overview(path, LATER)) == before
        assert open_jobs(database, [STUDY]) == {}
        assert waiting_models(database, LATER) == ()
        assert results_awaiting_composition(database) == ()
        assert [each.model.version for each in latest_results(database, [STUDY])[STUDY]] == [
            "1.0.0"
        ]
        deliver_undelivered(database, ["pacs"], LATER)
        assert due_deliveries(database, LATER) == ()


def test_tables_of_results_hold_no_row_of_a_shadow(hospital) -> None:
    waiting(hospital)
    finish_run(hospital.database, running(hospital).run, [PNEUMONIA], LATER)

    with hospital.database.read() as connection:
        for table in (schema.result, schema.document, schema.delivery, schema.explanation):
            assert connection.scalar(select(func.count()).select_from(table)) == 0
        versions = connection.scalars(select(schema.job.c.model_version)).all()
    assert versions == ["1.0.0"]


def test_a_shadow_sees_studies_prepared_since_it_began_once_each(hospital) -> None:
    hospital.enqueue(STUDY, NOON)
    hospital.enqueue(OTHER, NOON + seconds(5))

    seen = [claim(hospital, since=NOON + seconds(1)) for _ in range(2)]

    assert seen[0].study.study_instance_uid == OTHER
    assert seen[1] is None


def test_to_look_for_a_study_reads_only_those_prepared_since_the_shadow_began(hospital) -> None:
    asked = []
    event.listen(
        hospital.database._engine,
        "before_cursor_execute",
        lambda _connection, _cursor, query, values, *_: asked.append((query, values)),
    )
    assert claim(hospital) is None

    ((query, values),) = [each for each in asked if each[0].startswith("SELECT")]
    with hospital.database.read() as connection:
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {query}", values).all()
    steps = [row.detail for row in plan if " study " in row.detail]
    assert steps == ["SEARCH study USING INDEX ix_study_prepared_at (prepared_at>?)"]
    assert not any("TEMP B-TREE" in row.detail for row in plan)


def test_a_study_that_still_receives_or_waits_for_its_own_preparation_is_left_alone(
    hospital,
) -> None:
    hospital.arrive(1)
    assert claim(hospital) is None

    complete_now(hospital.database, STUDY, NOON)
    assert claim(hospital) is None

    hospital.prepare(NOON)
    assert claim(hospital) is not None


def test_new_images_are_shown_to_the_shadow_as_well(hospital) -> None:
    waiting(hospital)
    hospital.arrive(2, now=LATER)
    complete_now(hospital.database, STUDY, LATER)
    hospital.prepare(LATER)

    task = claim(hospital)

    assert task is not None
    assert len(runs_of_study(hospital.database, STUDY)) == 2


def test_a_preparation_that_dies_is_taken_over_and_given_up_at_last(hospital) -> None:
    hospital.enqueue()
    now = LATER
    for attempt in range(1, MOST_ATTEMPTS + 1):
        task = claim(hospital, now=now, owner=f"preparer-{attempt}")
        assert task.run.attempts == attempt
        now += seconds(61)
        reclaim_runs(hospital.database, now)

    assert claim(hospital, now=now) is None
    assert only(hospital).state is ShadowState.FAILED
    assert "died 3 times" in only(hospital).reason


def test_a_preparation_that_died_before_other_images_came_is_dropped(hospital) -> None:
    # Given a run whose preparer died, of a study that has more images now,
    hospital.enqueue()
    claim(hospital)
    hospital.arrive(2, now=LATER)
    complete_now(hospital.database, STUDY, LATER)
    hospital.prepare(LATER)
    now = LATER + seconds(61)

    # when its lease is over, it ends, for no preparer looks for it,
    assert reclaim_runs(hospital.database, now) == 1
    assert only(hospital).state is ShadowState.DROPPED
    # costs the database no further write, and what the study is now is shown.
    assert reclaim_runs(hospital.database, now + seconds(5)) == 0
    assert claim(hospital, now=now) is not None


def test_what_a_predecessor_prepared_is_not_written(hospital) -> None:
    hospital.enqueue()
    old = claim(hospital, owner="preparer-1")
    claim(hospital, now=LATER + seconds(61), owner="preparer-2")

    with pytest.raises(LeaseLost):
        end_preparation(hospital.database, old.run, ShadowState.REFUSED, "no", LATER)

    assert only(hospital).state is ShadowState.PREPARING


def test_a_run_goes_through_a_worker_with_its_tensor_and_leaves_none_behind(hospital) -> None:
    waiting(hospital)
    assert waiting_shadows(hospital.database, LATER) == (("cxr-pneumonia", "2.0.0"),)

    claimed = running(hospital)
    assert claimed.tensor.values.tobytes() == make_tensor().values.tobytes()
    finish_run(hospital.database, claimed.run, [PNEUMONIA], LATER)

    assert only(hospital).findings == (PNEUMONIA,)
    with hospital.database.read() as connection:
        assert connection.scalar(select(func.count()).select_from(schema.shadow_tensor)) == 0


def test_a_worker_that_dies_costs_an_attempt_and_the_third_is_the_last(hospital) -> None:
    waiting(hospital)
    now = LATER
    for _ in range(MOST_ATTEMPTS):
        running(hospital, now)
        now += seconds(61)
        assert reclaim_runs(hospital.database, now) == 1

    assert only(hospital).state is ShadowState.FAILED
    assert claim_runs(hospital.database, "w", MODEL.name, MODEL.version, 4, now, 60) == ()


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE shadow_tensor SET shape = '[2, 2, 4]' WHERE run_id = :run",
        "DELETE FROM shadow_tensor WHERE run_id = :run",
    ],
)
def test_a_run_whose_tensor_is_damaged_fails_alone(hospital, damage) -> None:
    # Given two runs that wait, and the tensor of one is damaged,
    run = waiting(hospital)
    waiting(hospital, OTHER)
    with hospital.database.write() as connection:
        connection.execute(text(damage), {"run": run})

    # when they are claimed, then the other one is computed at its first attempt,
    claimed = running(hospital)
    assert (claimed.run.study_instance_uid, claimed.run.attempts) == (OTHER, 1)

    # and the damaged one has failed, says why, and leaves nothing behind.
    failed = only(hospital)
    assert failed.state is ShadowState.FAILED
    assert "missing or damaged" in failed.reason
    finish_run(hospital.database, claimed.run, [PNEUMONIA], LATER)
    with hospital.database.read() as connection:
        assert connection.scalar(select(func.count()).select_from(schema.shadow_tensor)) == 0


def test_a_renewed_lease_is_kept_and_a_given_back_run_counts_no_attempt(hospital) -> None:
    waiting(hospital)
    claimed = running(hospital)
    renew_runs(hospital.database, [claimed.run], LATER + seconds(50), 60)
    assert reclaim_runs(hospital.database, LATER + seconds(100)) == 0

    assert give_back_runs(hospital.database, "worker-1", LATER) == 1

    assert (only(hospital).state, only(hospital).attempts) == (ShadowState.WAITING, 0)


def test_a_device_without_memory_lets_a_run_wait(hospital) -> None:
    waiting(hospital)

    put_back_run(hospital.database, running(hospital).run, "no memory", LATER, pause_seconds=60)

    assert waiting_shadows(hospital.database, LATER + seconds(59)) == ()
    assert waiting_shadows(hospital.database, LATER + seconds(60)) != ()


def test_the_end_of_a_shadow_drops_what_was_not_asked_and_keeps_what_was_said(hospital) -> None:
    shadow_version(hospital.database, DIGESTS, Decision(NOON, "root"))
    waiting(hospital)
    finish_run(hospital.database, running(hospital).run, [PNEUMONIA], LATER)
    waiting(hospital, OTHER)

    moved = end_shadow(hospital.database, DIGESTS, Decision(LATER, "root"))

    assert moved.dropped_runs == 1
    assert only(hospital).state is ShadowState.DONE
    assert only(hospital, OTHER).state is ShadowState.DROPPED


def test_retention_removes_the_tensors_of_shadows_with_the_pixels(hospital) -> None:
    hospital.analyse()
    (result,) = results_awaiting_composition(hospital.database)
    store_documents(hospital.database, result.id, [], [], NOON)
    task = claim(hospital)
    await_worker(hospital.database, task.run, f"{STUDY}.1", make_tensor(), LATER)

    much_later = NOON + seconds(31 * 86400)
    assert purge_finished_studies(hospital.database, hospital.spool, much_later, older_than_days=30)

    assert only(hospital).state is ShadowState.DROPPED
    with hospital.database.read() as connection:
        assert connection.scalar(select(func.count()).select_from(schema.shadow_tensor)) == 0


def test_answers_of_a_version_are_found_as_result_and_as_shadow(hospital) -> None:
    hospital.analyse()
    task = claim(hospital)
    end_preparation(hospital.database, task.run, ShadowState.REFUSED, "too old", LATER)

    (active,) = answers_of(hospital.database, "cxr-pneumonia", "1.0.0").values()
    (shadow,) = answers_of(hospital.database, "cxr-pneumonia", "2.0.0").values()

    assert (active.kind, active.findings, active.in_shadow) == (
        AnswerKind.FINDING, (PNEUMONIA,), False,
    )  # fmt: skip
    assert (shadow.kind, shadow.findings, shadow.in_shadow) == (AnswerKind.REFUSED, (), True)
    assert answers_of(hospital.database, "cxr-pneumonia", "2.0.0", since=LATER + seconds(1)) == {}
