"""Retention, processes, and the overview that ``medimgd status`` prints."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import pytest
from storage_hospital import CXR, NOON, PNEUMONIA, STUDY, seconds

from dicom_io.errors import RefusalReason
from dicom_io.vocabulary import ModelIdentity
from storage import retention
from storage.arrivals import Arrival
from storage.associations import close_association, open_association
from storage.backoff import DeliveryPolicy
from storage.claims import claim_batch
from storage.completion import (
    FEWER_THAN_BEFORE,
    CompletionRules,
    Verdict,
    complete_due_studies,
    complete_now,
)
from storage.confirmation import confirm_deliveries, record_confirmation_miss
from storage.deliveries import (
    MISSES_UNTIL_STUCK,
    deliveries_of_study_within,
    end_delivery_within,
)
from storage.destinations import DeliveryOutcome
from storage.documents import is_own_sop_instance_uid, read_document
from storage.door import record_refused_instance
from storage.dossier import read_dossier
from storage.endings import Analysed, fail_attempt, finish_job
from storage.enqueueing import NewRefusal
from storage.errors import DatabaseMissing, ImagesRemoved, NotFound, SpoolFailure
from storage.outbox import due_deliveries, record_outcomes
from storage.overview import read_overview
from storage.preparation import Preparation, finish_preparation
from storage.processes import heartbeat, list_processes, register_process, remove_process
from storage.recording import record_instances
from storage.redelivery import deliver_undelivered
from storage.reindexing import reindex
from storage.removal import set_aside
from storage.results import (
    mark_uncomposable,
    results_awaiting_composition,
    store_documents,
    withhold_result,
)
from storage.retention import forget_kept_documents, forget_old_traffic, purge_finished_studies
from storage.retry import retry_study
from storage.states import NO_LONGER_CONFIGURED, DeliveryState, JobState, ResultState, StudyState
from storage.stuck_studies import WaitsForPerson, stuck_studies
from storage.studies import get_study, list_studies

DAY = 86400
MUCH_LATER = NOON + seconds(31 * DAY)
POLICY = DeliveryPolicy()


@dataclass(frozen=True)
class Document:
    role: str = "SR"
    sop_class_uid: str = "1.2.840.10008.5.1.4.1.1.88.34"
    sop_instance_uid: str = "2.25.1"
    series_instance_uid: str = "2.25.9"
    data: bytes = b"bytes"


def _finished(hospital, *destinations: str) -> int:
    hospital.analyse()
    (result,) = results_awaiting_composition(hospital.database)
    store_documents(hospital.database, result.id, [Document()], destinations, NOON)
    return result.id


def _purge(hospital, now=MUCH_LATER):
    return purge_finished_studies(hospital.database, hospital.spool, now, older_than_days=30)


def test_pixels_of_a_finished_study_go_after_their_time_and_its_result_stays(hospital) -> None:
    _finished(hospital)
    hospital.arrive(1, pixels=b"\7\7\7\7")

    assert _purge(hospital, NOON + seconds(29 * DAY)) == ()
    (purged,) = _purge(hospital)

    assert (purged.study_instance_uid, purged.files) == (STUDY, 2)
    assert purged.freed_bytes > 0
    assert list(hospital.spool.stored_instances()) == []
    dossier = read_dossier(hospital.database, STUDY)
    assert (dossier.study.purged_at, dossier.study.instance_count) == (MUCH_LATER, 1)
    assert (len(dossier.results), len(dossier.documents)) == (1, 1)
    assert (dossier.series, dossier.conflicts) == ((), ())
    assert dossier.audit[-1].action == "pixels removed"
    assert _purge(hospital) == ()


def _waiting(hospital) -> None:
    hospital.enqueue()


def _running(hospital) -> None:
    hospital.enqueue()
    hospital.claim()


def _dead_letter(hospital) -> None:
    hospital.enqueue()
    (job,) = hospital.claim()
    fail_attempt(hospital.database, job, "x", retryable=False, now=NOON)
    (result,) = results_awaiting_composition(hospital.database)
    withhold_result(hospital.database, result.id, "", NOON)


def _uncomposed(hospital) -> None:
    hospital.analyse()


def _undelivered(hospital) -> None:
    _finished(hospital, "pacs")


def _receiving(hospital) -> None:
    hospital.arrive(1)


def _complete(hospital) -> None:
    hospital.arrive(1)
    complete_now(hospital.database, STUDY, NOON)


def _held(hospital) -> None:
    _complete(hospital)
    outcome = Preparation(StudyState.HELD, "look at me")
    finish_preparation(hospital.database, hospital.claim_study(), outcome, NOON)


def _fresh(hospital) -> None:
    _finished(hospital)
    hospital.arrive(2, now=NOON + seconds(20 * DAY))
    complete_now(hospital.database, STUDY, NOON + seconds(20 * DAY))
    outcome = Preparation(StudyState.UNMATCHED, "")
    now = NOON + seconds(20 * DAY)
    finish_preparation(hospital.database, hospital.claim_study(now), outcome, now)


@pytest.mark.parametrize(
    "reach",
    [
        _waiting,
        _running,
        _dead_letter,
        _uncomposed,
        _undelivered,
        _receiving,
        _complete,
        _held,
        _fresh,
    ],
)
def test_a_study_with_anything_pending_keeps_its_pixels(hospital, reach) -> None:
    reach(hospital)

    assert _purge(hospital) == ()
    assert list(hospital.spool.stored_instances()) != []


@pytest.mark.parametrize("outcome", [StudyState.UNMATCHED, StudyState.REFUSED])
def test_studies_no_model_read_are_removed_too(hospital, outcome) -> None:
    _complete(hospital)
    finish_preparation(hospital.database, hospital.claim_study(), Preparation(outcome, ""), NOON)

    assert len(_purge(hospital)) == 1


def test_a_removed_study_that_is_sent_again_is_not_analysed_twice(hospital) -> None:
    _finished(hospital)
    _purge(hospital)

    hospital.arrive(1, now=MUCH_LATER)
    complete_now(hospital.database, STUDY, MUCH_LATER)
    hospital.prepare(MUCH_LATER)

    study = get_study(hospital.database, STUDY)
    assert (study.purged_at, study.instance_count) == (None, 1)
    assert hospital.claim(now=MUCH_LATER) == ()
    assert len(read_dossier(hospital.database, STUDY).results) == 1


def test_files_that_outlived_their_rows_are_indexed_and_removed_in_their_turn(hospital) -> None:
    _finished(hospital)
    hospital.database.path.touch()
    kept = hospital.store(1).path.read_bytes()
    path = hospital.store(1).path
    _purge(hospital)
    path.parent.mkdir(parents=True)
    path.write_bytes(kept)  # as after a power failure between the rows and the files

    reindex(hospital.database, hospital.spool, MUCH_LATER)
    complete_now(hospital.database, STUDY, MUCH_LATER)
    hospital.prepare(MUCH_LATER)

    assert len(_purge(hospital, MUCH_LATER + seconds(31 * DAY))) == 1
    assert list(hospital.spool.stored_instances()) == []


def test_a_conflict_that_was_recorded_after_the_purge_is_removed_in_its_turn(hospital) -> None:
    _finished(hospital, "pacs")
    _send(hospital, "pacs", NOON)
    late = hospital.store(1, pixels=b"\7\7\7\7")
    _purge(hospital)
    assert list(hospital.spool.stored_instances()) == [late.path]

    reindex(hospital.database, hospital.spool, MUCH_LATER)

    assert _purge(hospital, MUCH_LATER + seconds(29 * DAY)) == ()
    (purged,) = _purge(hospital, MUCH_LATER + seconds(31 * DAY))
    assert (purged.files, list(hospital.spool.stored_instances())) == (1, [])
    dossier = read_dossier(hospital.database, STUDY)
    assert (dossier.conflicts, dossier.study.purged_at) == ((), MUCH_LATER)
    assert _purge(hospital, MUCH_LATER + seconds(90 * DAY)) == ()


def test_conflicts_of_a_removed_study_that_is_sent_again_are_counted_anew(hospital) -> None:
    def count() -> int:
        return get_study(hospital.database, STUDY).conflict_count

    _finished(hospital)
    hospital.arrive(1, pixels=b"\7\7\7\7")
    _purge(hospital)
    assert count() == 1  # what was found stays on the worklist

    hospital.arrive(1, now=MUCH_LATER)
    assert count() == 0
    for _ in range(2):
        hospital.arrive(1, pixels=b"\7\7\7\7", now=MUCH_LATER)
    assert count() == 1
    arrivals = [Arrival(hospital.store(2, pixels=bytes([each] * 4))) for each in (1, 2)]
    record_instances(hospital.database, arrivals, MUCH_LATER)
    assert count() == len(read_dossier(hospital.database, STUDY).conflicts) == 2


def test_conflicts_that_outlived_the_purge_of_their_study_stay_counted(hospital) -> None:
    _finished(hospital)
    hospital.arrive(1, pixels=b"\7\7\7\7")
    hospital.store(1, pixels=b"\x08\x08\x08\x08")
    _purge(hospital)

    reindex(hospital.database, hospital.spool, MUCH_LATER)
    assert get_study(hospital.database, STUDY).conflict_count == 1
    hospital.arrive(1, now=MUCH_LATER)

    assert get_study(hospital.database, STUDY).conflict_count == 1
    assert len(read_dossier(hospital.database, STUDY).conflicts) == 1


def test_a_conflict_sent_again_just_before_the_purge_gets_no_row_without_a_file(hospital) -> None:
    _finished(hospital)
    hospital.arrive(1, pixels=b"\7\7\7\7")
    again = hospital.store(1, pixels=b"\7\7\7\7")
    _purge(hospital)

    recorded = record_instances(hospital.database, [Arrival(again)], MUCH_LATER)

    assert (recorded.identical, recorded.conflicts) == (1, 0)
    assert read_dossier(hospital.database, STUDY).conflicts == ()
    assert get_study(hospital.database, STUDY).conflict_count == 1


def test_what_is_removed_in_its_turn_takes_no_report_along_that_arrived_meanwhile(
    hospital,
) -> None:
    _rejected(hospital)
    hospital.store(1, pixels=b"\7\7\7\7")
    _purge(hospital)
    reindex(hospital.database, hospital.spool, MUCH_LATER)
    in_its_turn = MUCH_LATER + seconds(31 * DAY)
    retry_study(hospital.database, STUDY, in_its_turn, destinations=["pacs"])
    _send(hospital, "pacs", in_its_turn)

    _purge(hospital, in_its_turn)

    (document,) = read_dossier(hospital.database, STUDY).documents
    assert read_document(hospital.database, document.id) == b"bytes"


class _Killed(BaseException):
    """Stands for SIGKILL: nothing of the program handles it."""


def _kill_at(monkeypatch, name: str, *, after: bool) -> None:
    step = getattr(retention, name)

    def killed(*arguments):
        if after:
            step(*arguments)
        raise _Killed

    monkeypatch.setattr(retention, name, killed)


def test_a_purge_killed_before_its_rows_are_gone_has_removed_nothing(hospital, monkeypatch) -> None:
    _finished(hospital)
    hospital.arrive(1, pixels=b"\7\7\7\7")
    before = list(hospital.spool.stored_instances())
    with monkeypatch.context() as patch:
        _kill_at(patch, "set_aside", after=True)
        with pytest.raises(_Killed):
            _purge(hospital)
    assert list(hospital.spool.stored_instances()) == []

    found = reindex(hospital.database, hospital.spool, MUCH_LATER)

    assert (found.files, found.recorded, found.missing) == (2, 0, 0)
    assert list(hospital.spool.stored_instances()) == before
    assert get_study(hospital.database, STUDY).purged_at is None
    assert len(_purge(hospital)) == 1


@pytest.mark.parametrize("place", ["removing", "."])
@pytest.mark.parametrize("damage", [b"", b"\0" * 200])
def test_a_damaged_file_that_was_set_aside_does_not_stop_the_indexing_of_others(
    hospital, place: str, damage: bytes
) -> None:
    _finished(hospital)
    relative = hospital.store(1).relative_path
    set_aside(hospital.spool, [relative])  # and killed: the rows are still there
    hospital.store(1)
    contents = {name: (hospital.spool.folder / name / relative) for name in ("removing", ".")}
    contents[place].write_bytes(damage)
    other = hospital.store(1, study="1.2.3")

    found = reindex(hospital.database, hospital.spool, MUCH_LATER)

    assert (found.recorded, found.unreadable) == (1, ())
    assert get_study(hospital.database, "1.2.3").instance_count == 1
    assert contents[place].read_bytes() == damage
    assert all(path.exists() for path in contents.values())
    assert len(_purge(hospital)) == 1
    left = [path for path in hospital.spool.folder.rglob("*") if path.is_file()]
    assert left == [other.path]


def test_a_purge_killed_before_its_files_are_gone_leaves_no_partial_study(
    hospital, monkeypatch
) -> None:
    _finished(hospital)
    with monkeypatch.context() as patch:
        _kill_at(patch, "remove_set_aside", after=False)
        with pytest.raises(_Killed):
            _purge(hospital)

    found = reindex(hospital.database, hospital.spool, MUCH_LATER)

    assert (found.files, found.recorded, found.missing) == (0, 0, 0)
    assert get_study(hospital.database, STUDY).state is StudyState.ROUTED
    assert [path for path in hospital.spool.folder.rglob("*") if path.is_file()] == []


def test_a_study_whose_files_cannot_be_removed_keeps_no_other(hospital) -> None:
    # Given the oldest study in the way of whose files something lies, and more than one batch,
    for number in (1, 2, 3):
        hospital.arrive(1, study=f"1.2.{number}", now=NOON + seconds(number))
        complete_now(hospital.database, f"1.2.{number}", NOON + seconds(number))
        finish_preparation(
            hospital.database,
            hospital.claim_study(NOON + seconds(number)),
            Preparation(StudyState.UNMATCHED, ""),
            NOON + seconds(number),
        )
    blocked = hospital.spool.folder / "removing" / "studies" / "1.2.1"
    blocked.parent.mkdir(parents=True)
    blocked.touch()

    for _ in range(2):
        with pytest.raises(
            SpoolFailure, match=r"of 1 study .* study 1\.2\.1: could not move files"
        ):
            purge_finished_studies(
                hospital.database, hospital.spool, MUCH_LATER, older_than_days=30, limit=1
            )

    studies = list_studies(hospital.database)
    left = {each.study_instance_uid for each in studies if not each.purged_at}
    assert left == {"1.2.1"}
    assert len(list(hospital.spool.stored_instances())) == 1
    blocked.unlink()
    assert len(_purge(hospital)) == 1


def test_a_purge_whose_disk_fails_puts_everything_back(hospital, monkeypatch) -> None:
    _finished(hospital)
    before = list(hospital.spool.stored_instances())

    def fail(spool, paths) -> None:
        set_aside(spool, paths)
        raise SpoolFailure("the disk failed")

    monkeypatch.setattr(retention, "set_aside", fail)
    with pytest.raises(SpoolFailure):
        _purge(hospital)

    assert list(hospital.spool.stored_instances()) == before
    assert get_study(hospital.database, STUDY).purged_at is None


def test_an_instance_not_yet_recorded_survives_the_purge_of_its_study(hospital) -> None:
    _finished(hospital)
    late = hospital.store(2)

    (purged,) = _purge(hospital)

    assert purged.files == 1
    assert list(hospital.spool.stored_instances()) == [late.path]


def test_an_instance_sent_again_just_before_the_purge_gets_no_row_without_a_file(hospital) -> None:
    _finished(hospital)
    again = hospital.store(1)
    _purge(hospital)

    recorded = record_instances(hospital.database, [Arrival(again)], MUCH_LATER)

    assert (recorded.new, recorded.identical) == (0, 1)
    assert read_dossier(hospital.database, STUDY).series == ()
    assert get_study(hospital.database, STUDY).state is StudyState.ROUTED


def test_a_study_is_not_purged_while_it_is_sent_again(hospital) -> None:
    _finished(hospital)
    open_association(hospital.database, "again", slot="receiver-1", now=MUCH_LATER)
    record_instances(hospital.database, [Arrival(hospital.store(1), "again")], MUCH_LATER)

    assert _purge(hospital) == ()

    close_association(hospital.database, "again", MUCH_LATER)
    assert len(_purge(hospital)) == 1


def _delivered(hospital) -> int:
    result_id = _finished(hospital, "pacs")
    _send(hospital, "pacs", NOON)
    return result_id


def _send(hospital, destination: str, now: datetime) -> None:
    """Let a destination accept what is due."""
    (group,) = due_deliveries(hospital.database, now)
    assert group.destination == destination
    answers = [DeliveryOutcome(each.id, 0) for each in group.deliveries]
    record_outcomes(hospital.database, destination, answers, now, DeliveryPolicy())


def _lose(hospital) -> None:
    """Let what a destination accepted not be found there."""
    (delivery,) = read_dossier(hospital.database, STUDY).deliveries
    for _ in range(MISSES_UNTIL_STUCK):
        record_confirmation_miss(hospital.database, [delivery.id], NOON)


def _rejected(hospital) -> None:
    _finished(hospital, "pacs")
    _answer(hospital, 0xC000, times=3)


def _given_up(hospital) -> None:
    _finished(hospital, "pacs")
    _answer(hospital, None, policy=DeliveryPolicy(max_age_seconds=0))


def _lost(hospital) -> None:
    _delivered(hospital)
    _lose(hospital)


def _answer(
    hospital, status: int | None, *, times: int = 1, policy: DeliveryPolicy = POLICY
) -> None:
    for each in range(times):
        now = NOON + seconds(3600 * each)
        (group,) = due_deliveries(hospital.database, now)
        outcomes = [DeliveryOutcome(one.id, status) for one in group.deliveries]
        record_outcomes(hospital.database, "pacs", outcomes, now, policy)


@pytest.mark.parametrize("reach", [_rejected, _given_up, _lost])
def test_a_report_that_did_not_arrive_outlives_the_images_and_is_still_sent(
    hospital, reach
) -> None:
    reach(hospital)
    (document,) = read_dossier(hospital.database, STUDY).documents

    (purged,) = _purge(hospital)

    assert (purged.files, list(hospital.spool.stored_instances())) == (1, [])
    assert read_document(hospital.database, document.id) == b"bytes"
    (stuck,) = stuck_studies(hospital.database, WaitsForPerson.UNDELIVERED)
    assert stuck.study_instance_uid == STUDY
    retried = retry_study(hospital.database, STUDY, MUCH_LATER, destinations=["pacs"])
    assert (len(retried.delivery_ids), retried.prepared_again) == (1, False)
    (group,) = due_deliveries(hospital.database, MUCH_LATER)
    assert group.study_instance_uid == STUDY
    with pytest.raises(ImagesRemoved):
        retry_study(hospital.database, STUDY, MUCH_LATER, destinations=["pacs"])


def _composed_and_sent(hospital, now: datetime, *, uid: str = "2.25.2") -> None:
    """Let the result that awaits it be composed and the archive accept it."""
    _composed(hospital, now, uid=uid)
    _send(hospital, "pacs", now)


def _composed(hospital, now: datetime, *destinations: str, uid: str) -> None:
    (result,) = results_awaiting_composition(hospital.database)
    document = Document(sop_instance_uid=uid)
    store_documents(hospital.database, result.id, [document], destinations or ["pacs"], now)


def _failed_and_found_at_last(hospital, now: datetime) -> None:
    _dead_letter(hospital)
    assert _purge(hospital, now) == ()
    retry_study(hospital.database, STUDY, now, destinations=["pacs"])
    (job,) = hospital.claim(now=now)
    finish_job(hospital.database, Analysed(job, (PNEUMONIA,), now), now)
    _composed_and_sent(hospital, now)


def _failed_and_withheld_at_last(hospital, now: datetime) -> None:
    _dead_letter(hospital)
    retry_study(hospital.database, STUDY, now)
    (job,) = hospital.claim(now=now)
    finish_job(hospital.database, Analysed(job, (PNEUMONIA,), now), now)
    (result,) = results_awaiting_composition(hospital.database)
    withhold_result(hospital.database, result.id, "", now)


def _uncomposable_and_composed_at_last(hospital, now: datetime) -> None:
    hospital.analyse()
    (result,) = results_awaiting_composition(hospital.database)
    mark_uncomposable(hospital.database, result.id, "no reference header", NOON)
    retry_study(hospital.database, STUDY, now)
    store_documents(hospital.database, result.id, [Document()], [], now)


def _sent_at_last(hospital, now: datetime) -> None:
    _finished(hospital, "pacs")
    _send(hospital, "pacs", now)


def _rejected_at_last(hospital, now: datetime) -> None:
    _finished(hospital, "pacs")
    (group,) = due_deliveries(hospital.database, now)
    answers = [DeliveryOutcome(each.id, 0xC000) for each in group.deliveries]
    record_outcomes(hospital.database, "pacs", answers, now, DeliveryPolicy(rejected_after=1))


@pytest.mark.parametrize(
    "reach",
    [
        _failed_and_found_at_last,
        _failed_and_withheld_at_last,
        _uncomposable_and_composed_at_last,
        _sent_at_last,
        _rejected_at_last,
    ],
)
def test_what_held_a_study_back_past_its_time_starts_that_anew_when_it_ends(
    hospital, reach
) -> None:
    reach(hospital, _later(29))
    documents = read_dossier(hospital.database, STUDY).documents

    assert _purge(hospital, _later(29) + seconds(600)) == ()
    assert _purge(hospital, _later(58)) == ()

    assert all(read_document(hospital.database, each.id) == b"bytes" for each in documents)
    assert len(_purge(hospital, _later(60))) == 1


def test_a_failed_analysis_that_a_retry_ends_starts_the_time_of_its_images_anew(hospital) -> None:
    hospital.enqueue()
    (first,) = hospital.claim()
    hospital.arrive(2)
    complete_now(hospital.database, STUDY, NOON)
    hospital.prepare()
    fail_attempt(hospital.database, first, "x", retryable=False, now=NOON)
    (failure,) = results_awaiting_composition(hospital.database)
    withhold_result(hospital.database, failure.id, "", NOON)
    (second,) = hospital.claim()
    finish_job(hospital.database, Analysed(second, (PNEUMONIA,), NOON), NOON)
    _composed_and_sent(hospital, NOON)

    retried = retry_study(hospital.database, STUDY, _later(29))

    assert retried.superseded_job_ids == (first.id,)
    assert _purge(hospital, _later(30)) == ()
    assert len(_purge(hospital, _later(60))) == 1


def test_a_report_that_arrived_late_and_was_lost_can_still_be_sent(hospital) -> None:
    _failed_and_found_at_last(hospital, _later(29))
    (delivery,) = read_dossier(hospital.database, STUDY).deliveries
    assert _purge(hospital, _later(30)) == ()
    for _ in range(MISSES_UNTIL_STUCK):
        record_confirmation_miss(hospital.database, [delivery.id], _later(30))

    retried = retry_study(hospital.database, STUDY, _later(30), destinations=["pacs"])

    assert retried.delivery_ids == (delivery.id,)


def test_what_did_not_arrive_brings_no_images_back(hospital) -> None:
    _rejected(hospital)
    _purge(hospital)

    with pytest.raises(ImagesRemoved):
        retry_study(hospital.database, STUDY, MUCH_LATER, prepare_again=True)


def _rejected_and_replaced(hospital) -> None:
    """Let a report be rejected, and a later one have no destination."""
    _rejected(hospital)
    _analysed_again(hospital)
    (result,) = results_awaiting_composition(hospital.database)
    later = Document(sop_instance_uid="2.25.2")
    store_documents(hospital.database, result.id, [later], [], NOON)


def test_of_what_did_not_arrive_only_the_latest_report_is_kept(hospital) -> None:
    _rejected_and_replaced(hospital)
    first, second = read_dossier(hospital.database, STUDY).documents

    _purge(hospital)

    with pytest.raises(NotFound):
        read_document(hospital.database, first.id)
    assert read_document(hospital.database, second.id) == b"bytes"


def _refused_then(hospital) -> int:
    """Let a late image make the model refuse the study; return the result's id."""
    hospital.arrive(2)
    complete_now(hospital.database, STUDY, NOON)
    task = hospital.claim_study()
    refusal = NewRefusal(
        CXR,
        task.series[0].series_instance_uid,
        task.instance_set_digest,
        RefusalReason.CANNOT_DECODE,
        "two views",
    )
    outcome = Preparation(StudyState.REFUSED, "two views", refusals=[refusal])
    finish_preparation(hospital.database, task, outcome, NOON)
    (result,) = results_awaiting_composition(hospital.database)
    return result.id


def _withheld_then(hospital) -> None:
    withhold_result(hospital.database, _refused_then(hospital), "refusals are not sent", NOON)


def _uncomposable_then(hospital) -> None:
    mark_uncomposable(hospital.database, _refused_then(hospital), "no reference header", NOON)


@pytest.mark.parametrize("reach", [_rejected, _given_up, _lost])
def test_a_report_outlives_the_images_under_a_later_result_that_is_never_sent(
    hospital, reach
) -> None:
    reach(hospital)
    _withheld_then(hospital)
    (document,) = read_dossier(hospital.database, STUDY).documents

    assert len(_purge(hospital)) == 1
    assert _forget(hospital, _later(31)) == 0

    assert read_document(hospital.database, document.id) == b"bytes"
    assert len(stuck_studies(hospital.database, WaitsForPerson.UNDELIVERED)) == 1
    retried = retry_study(hospital.database, STUDY, _later(31), destinations=["pacs"])
    assert len(retried.delivery_ids) == 1
    _send(hospital, "pacs", _later(31))
    assert _forget(hospital, _later(62)) == 1


def test_a_report_for_nobody_outlives_the_images_under_a_later_result_that_is_never_sent(
    hospital, database_path
) -> None:
    _finished(hospital)
    _withheld_then(hospital)

    assert len(_purge(hospital)) == 1

    assert read_overview(database_path, NOON).results_without_delivery == 1
    assert deliver_undelivered(hospital.database, ["pacs"], MUCH_LATER) == 1
    assert read_overview(database_path, NOON).results_without_delivery == 0


@pytest.mark.parametrize("later", [_refused_then, _withheld_then, _uncomposable_then])
def test_a_new_destination_gets_the_last_report_there_is(hospital, later) -> None:
    _delivered(hospital)
    later(hospital)

    retried = retry_study(hospital.database, STUDY, NOON, destinations=["pacs", "archive"])

    assert len(retried.delivery_ids) == 1
    _send(hospital, "archive", NOON)


def test_a_later_report_that_becomes_one_after_all_arrives_last(hospital) -> None:
    _finished(hospital)
    second = _refused_then(hospital)
    assert deliver_undelivered(hospital.database, ["pacs"], NOON) == 1

    later = Document(sop_instance_uid="2.25.2")
    store_documents(hospital.database, second, [later], ["pacs"], NOON)

    (group,) = due_deliveries(hospital.database, NOON)
    assert group.result_id != second
    _send(hospital, "pacs", NOON)
    (group,) = due_deliveries(hospital.database, NOON)
    assert group.result_id == second


def _later(days: float) -> datetime:
    return MUCH_LATER + seconds(days * DAY)


def _forget(hospital, now: datetime) -> int:
    return forget_kept_documents(hospital.database, now, older_than_days=30)


def test_a_report_that_was_kept_goes_its_time_after_it_arrived(hospital) -> None:
    _rejected(hospital)
    _purge(hospital)
    (document,) = read_dossier(hospital.database, STUDY).documents
    assert _forget(hospital, _later(40)) == 0
    retry_study(hospital.database, STUDY, _later(40), destinations=["pacs"])
    assert _forget(hospital, _later(80)) == 0
    _send(hospital, "pacs", _later(80))

    assert _forget(hospital, _later(109)) == 0
    assert _forget(hospital, _later(111)) == 1

    with pytest.raises(NotFound, match="removed by retention"):
        read_document(hospital.database, document.id)
    trail = read_dossier(hospital.database, STUDY).audit
    assert (trail[-1].action, trail[-1].detail) == ("documents removed", {"documents": 1})
    assert _forget(hospital, _later(111)) == 0


@pytest.mark.parametrize("reach", [_rejected, _given_up, _lost])
def test_a_report_that_was_kept_goes_when_nobody_is_to_get_it_any_more(hospital, reach) -> None:
    reach(hospital)
    _purge(hospital)
    retry_study(hospital.database, STUDY, MUCH_LATER, destinations=["archive"])
    _send(hospital, "archive", MUCH_LATER)

    assert _forget(hospital, _later(31)) == 1


def test_a_report_that_was_given_up_everywhere_goes_with_the_pixels(hospital) -> None:
    _rejected(hospital)
    (document,) = read_dossier(hospital.database, STUDY).documents
    with hospital.database.write() as connection:
        for each in deliveries_of_study_within(connection, STUDY):
            end_delivery_within(connection, each, NO_LONGER_CONFIGURED, NOON)

    _purge(hospital)

    with pytest.raises(NotFound, match="removed by retention"):
        read_document(hospital.database, document.id)


def test_the_documents_of_studies_that_still_have_images_wait_for_the_purge(hospital) -> None:
    _delivered(hospital)

    assert _forget(hospital, _later(400)) == 0


def test_delivered_documents_go_with_the_pixels_and_are_still_known_as_ours(hospital) -> None:
    _delivered(hospital)
    (document,) = read_dossier(hospital.database, STUDY).documents
    assert read_document(hospital.database, document.id) == b"bytes"

    _purge(hospital)

    with pytest.raises(NotFound, match="removed by retention"):
        read_document(hospital.database, document.id)
    assert is_own_sop_instance_uid(hospital.database, document.sop_instance_uid)
    trail = read_dossier(hospital.database, STUDY).audit
    assert trail[-1].detail == {"files": 1, "documents": 1}


def test_a_document_that_retention_removed_is_not_sent_again(hospital) -> None:
    _delivered(hospital)
    _purge(hospital)
    _lose(hospital)
    hospital.arrive(1, now=MUCH_LATER)

    retried = retry_study(hospital.database, STUDY, MUCH_LATER, destinations=["pacs", "archive"])

    assert retried.delivery_ids == ()
    assert deliver_undelivered(hospital.database, ["archive"], MUCH_LATER) == 0


def test_a_report_that_never_had_a_destination_is_kept(hospital) -> None:
    _finished(hospital)
    (document,) = read_dossier(hospital.database, STUDY).documents

    _purge(hospital)

    assert read_document(hospital.database, document.id) == b"bytes"
    assert deliver_undelivered(hospital.database, ["pacs"], MUCH_LATER) == 1


RULES = CompletionRules(quiet_seconds=30)


def _removed(hospital, count: int) -> None:
    hospital.arrive(*range(1, count + 1))
    complete_now(hospital.database, STUDY, NOON)
    hospital.prepare()
    (job,) = hospital.claim()
    finish_job(hospital.database, Analysed(job, (PNEUMONIA,), NOON), NOON)
    (result,) = results_awaiting_composition(hospital.database)
    store_documents(hospital.database, result.id, [Document()], [], NOON)
    assert len(_purge(hospital)) == 1


def test_a_slice_that_comes_after_the_purge_makes_no_report_of_its_own(hospital) -> None:
    _removed(hospital, 3)

    hospital.arrive(4, now=MUCH_LATER)
    (judgement,) = complete_due_studies(hospital.database, RULES, MUCH_LATER + seconds(30))

    study = get_study(hospital.database, STUDY)
    assert judgement.verdict is Verdict.HOLD
    assert (study.state, study.reason) == (StudyState.HELD, FEWER_THAN_BEFORE)
    assert (study.instance_count, study.purged_instance_count) == (1, 3)
    hospital.arrive(1, 2, now=MUCH_LATER + seconds(60))
    (judgement,) = complete_due_studies(hospital.database, RULES, MUCH_LATER + seconds(90))
    assert judgement.verdict is Verdict.COMPLETE


def test_the_set_a_study_stands_for_now_is_not_overtaken_by_a_larger_one_of_before(
    hospital,
) -> None:
    first = hospital.enqueue()
    _removed(hospital, 2)
    hospital.arrive(1, now=MUCH_LATER)
    complete_now(hospital.database, STUDY, MUCH_LATER)
    assert hospital.prepare(MUCH_LATER).job_ids == (first,)
    (job,) = hospital.claim(now=MUCH_LATER)

    state = finish_job(hospital.database, Analysed(job, (PNEUMONIA,), NOON), MUCH_LATER)

    assert (job.id, state) == (first, JobState.DONE)


def test_an_override_does_not_make_the_smaller_set_the_measure(hospital) -> None:
    _removed(hospital, 3)
    hospital.arrive(1, now=MUCH_LATER)
    complete_due_studies(hospital.database, RULES, MUCH_LATER + seconds(30))

    retry_study(hospital.database, STUDY, MUCH_LATER)
    outcome = Preparation(StudyState.UNMATCHED, "")
    task = hospital.claim_study(MUCH_LATER)
    finish_preparation(hospital.database, task, outcome, MUCH_LATER)

    assert [entry.action for entry in read_dossier(hospital.database, STUDY).audit][-2:] == [
        "hold overridden",
        "retry",
    ]
    assert len(_purge(hospital, MUCH_LATER + seconds(31 * DAY))) == 1
    assert get_study(hospital.database, STUDY).purged_instance_count == 3


def test_nothing_of_a_removed_study_can_be_repeated_until_it_is_sent_again(hospital) -> None:
    _finished(hospital)
    _purge(hospital)

    for repeat in (retry_study, complete_now):
        with pytest.raises(ImagesRemoved, match="removed on 2024-06-17; send the study again"):
            repeat(hospital.database, STUDY, MUCH_LATER)

    assert get_study(hospital.database, STUDY).state is StudyState.ROUTED


def test_old_traffic_is_forgotten_and_open_associations_are_not(hospital) -> None:
    for name in ("closed", "open"):
        open_association(hospital.database, name, slot="s", now=NOON)
    hospital.arrive(1, association_id="closed")
    close_association(hospital.database, "closed", NOON)
    record_refused_instance(hospital.database, NOON, reason="x")
    record_refused_instance(hospital.database, MUCH_LATER, reason="y")

    assert forget_old_traffic(hospital.database, MUCH_LATER, older_than_days=30) == 2
    assert forget_old_traffic(hospital.database, MUCH_LATER, older_than_days=30) == 0


def test_a_process_takes_its_slot_over_and_reports_itself(hospital) -> None:
    def register(pid: int, now) -> None:
        register_process(hospital.database, "worker-0", role="worker", pid=pid, host="h", now=now)

    register(10, NOON)
    register(11, NOON + seconds(5))
    heartbeat(
        hospital.database,
        "worker-0",
        NOON + seconds(9),
        state="ready",
        detail={"device": "GPU:0", "models": ("a@1",)},
    )

    (process,) = list_processes(hospital.database)
    assert (process.pid, process.started_at) == (11, NOON + seconds(5))
    assert (process.state, process.heartbeat_at) == ("ready", NOON + seconds(9))
    assert process.detail == {"device": "GPU:0", "models": ["a@1"]}
    remove_process(hospital.database, "worker-0")
    assert list_processes(hospital.database) == ()


def test_the_overview_counts_everything(hospital, database_path) -> None:
    _finished(hospital, "pacs", "archive")
    hospital.arrive(1, study="1.2.9", now=NOON + seconds(1))
    hospital.arrive(1, study="1.2.9", pixels=b"\7\7\7\7")
    record_refused_instance(hospital.database, NOON, reason="unknown calling AE")
    register_process(
        hospital.database,
        "worker-0",
        role="worker",
        pid=7,
        host="h",
        now=NOON,
        detail={"device": "CPU"},
    )
    (_, pacs) = due_deliveries(hospital.database, NOON)
    answer = DeliveryOutcome(pacs.deliveries[0].id, 0xA700, "full")
    record_outcomes(hospital.database, "pacs", [answer], NOON, DeliveryPolicy())

    seen = read_overview(database_path, NOON + seconds(60))

    assert seen.studies[StudyState.ROUTED] == seen.studies[StudyState.RECEIVING] == 1
    assert seen.jobs == {**dict.fromkeys(JobState, 0), JobState.DONE: 1}
    assert seen.results[ResultState.COMPOSED] == 1
    assert seen.deliveries[DeliveryState.PENDING] == 2
    assert (seen.studies_with_conflicts, seen.refused_last_day) == (1, 1)
    assert seen.last_instance_at == NOON + seconds(1)
    assert seen.oldest_waiting is not None
    assert seen.oldest_waiting.study_instance_uid == "1.2.9"
    archive, pacs_seen = seen.destinations
    assert (archive.name, archive.pending, archive.last_attempt_at) == ("archive", 1, None)
    assert (pacs_seen.last_answer, pacs_seen.pending) == ("A700 out of resources: full", 1)
    (process,) = seen.processes
    assert (process.heartbeat_age_seconds, process.detail) == (60, {"device": "CPU"})
    assert (seen.stuck, seen.stuck_count) == ((), 0)


def test_the_overview_names_what_is_stuck_and_since_when(hospital, database_path) -> None:
    _dead_letter(hospital)
    hospital.enqueue("1.2.9", NOON + seconds(10))
    hospital.arrive(1, study="1.2.8", now=NOON)
    complete_now(hospital.database, "1.2.8", NOON + seconds(20))

    early = read_overview(database_path, NOON + seconds(60), stuck_seconds=100)
    late = read_overview(database_path, NOON + seconds(200), stuck_seconds=100)

    assert [(item.kind, item.state) for item in early.stuck] == [("job", "failed")]
    assert [(item.kind, item.study_instance_uid, item.since) for item in late.stuck] == [
        ("job", STUDY, NOON),
        ("job", "1.2.9", NOON + seconds(10)),
        ("study", "1.2.8", NOON + seconds(20)),
    ]


def test_what_no_retry_can_send_is_not_counted_as_undelivered(hospital, database_path) -> None:
    _rejected(hospital)
    before = read_overview(database_path, NOON)

    retry_study(hospital.database, STUDY, NOON, destinations=["archive"])

    after = read_overview(database_path, NOON)
    assert (before.undelivered, before.stuck_count) == (1, 1)
    assert (after.undelivered, after.stuck_count) == (0, 0)
    assert after.deliveries[DeliveryState.DEAD] == 1
    assert stuck_studies(hospital.database, WaitsForPerson.UNDELIVERED) == ()


def test_what_a_destination_lost_that_is_no_longer_configured_is_given_up_by_a_retry(
    hospital, database_path
) -> None:
    _lost(hospital)
    before = read_overview(database_path, NOON)

    retry_study(hospital.database, STUDY, NOON, destinations=["archive"])

    after = read_overview(database_path, NOON)
    assert (before.stuck_count, after.stuck_count) == (1, 0)
    assert after.deliveries[DeliveryState.DEAD] == 1
    assert stuck_studies(hospital.database, WaitsForPerson.UNDELIVERED) == ()


def test_what_retention_removed_of_a_replaced_report_is_not_counted_as_undelivered(
    hospital, database_path
) -> None:
    _rejected_and_replaced(hospital)
    before = read_overview(database_path, NOON)

    _purge(hospital)

    after = read_overview(database_path, NOON)
    assert (before.undelivered, after.undelivered) == (1, 0)
    assert stuck_studies(hospital.database, WaitsForPerson.UNDELIVERED) == ()


def _analysed_again(hospital, *, model: ModelIdentity = CXR, number: int = 2) -> None:
    """Let a late image come, and the model speak of the study once more."""
    hospital.arrive(number)
    complete_now(hospital.database, STUDY, NOON)
    hospital.prepare(models=(model,))
    (job,) = claim_batch(hospital.database, "w", model.name, model.version, 1, NOON, 60)
    finish_job(hospital.database, Analysed(job, (PNEUMONIA,), NOON), NOON)


def _replaced(hospital, *destinations: str) -> None:
    _analysed_again(hospital)
    _composed(hospital, NOON, *destinations, uid="2.25.2")


def _later_one_waits(hospital) -> None:
    _replaced(hospital)


def _later_one_arrived(hospital) -> None:
    _replaced(hospital)
    _send(hospital, "pacs", NOON + seconds(DAY))  # whatever came before, it is asked again by then


def _later_one_is_there(hospital) -> None:
    _later_one_arrived(hospital)
    assert confirm_deliveries(hospital.database, "pacs", ["2.25.2"], NOON) == 1


@pytest.mark.parametrize("overtake", [_later_one_waits, _later_one_arrived, _later_one_is_there])
@pytest.mark.parametrize("reach", [_rejected, _given_up, _lost])
@pytest.mark.parametrize("among", [None, WaitsForPerson.UNDELIVERED])
def test_a_report_is_not_sent_after_the_one_that_replaced_it(
    hospital, database_path, reach, overtake, among
) -> None:
    reach(hospital)
    overtake(hospital)
    first, second = read_dossier(hospital.database, STUDY).deliveries

    seen = read_overview(database_path, NOON)
    stuck = stuck_studies(hospital.database, WaitsForPerson.UNDELIVERED)
    retried = retry_study(hospital.database, STUDY, NOON, destinations=["pacs"], among=among)

    assert (seen.undelivered, seen.stuck_count, stuck) == (0, 0, ())
    assert (retried.delivery_ids, retried.overtaken_delivery_ids) == ((), (first.id,))
    assert not retried.anything
    assert read_dossier(hospital.database, STUDY).deliveries == (first, second)


def test_of_two_reports_that_were_rejected_only_the_later_is_sent_again(
    hospital, database_path
) -> None:
    _rejected(hospital)
    _replaced(hospital)
    _answer(hospital, 0xC000, times=3)
    first, second = read_dossier(hospital.database, STUDY).deliveries

    seen = read_overview(database_path, NOON)
    retried = retry_study(hospital.database, STUDY, NOON, destinations=["pacs"])

    assert [item.id for item in seen.stuck] == [str(second.id)]
    assert retried.delivery_ids == (second.id,)
    assert retried.overtaken_delivery_ids == (first.id,)


def test_a_report_is_not_sent_before_the_one_that_the_same_retry_offers(hospital) -> None:
    _rejected_and_replaced(hospital)
    assert len(stuck_studies(hospital.database, WaitsForPerson.UNDELIVERED)) == 1

    retry_study(hospital.database, STUDY, NOON, destinations=["pacs"])

    first, second = read_dossier(hospital.database, STUDY).deliveries
    assert (first.state, second.state) == (DeliveryState.REJECTED, DeliveryState.PENDING)


def test_a_report_waits_for_a_person_while_the_later_one_went_elsewhere(
    hospital, database_path
) -> None:
    _rejected(hospital)
    _replaced(hospital, "archive")
    _send(hospital, "archive", NOON)
    first, _ = read_dossier(hospital.database, STUDY).deliveries

    seen = read_overview(database_path, NOON)
    (stuck,) = stuck_studies(hospital.database, WaitsForPerson.UNDELIVERED)
    retried = retry_study(hospital.database, STUDY, NOON)

    assert (seen.undelivered, stuck.study_instance_uid) == (1, STUDY)
    assert retried.delivery_ids == (first.id,)


def test_a_later_report_that_was_given_up_for_good_replaces_nothing_until_it_is_revived(
    hospital, database_path
) -> None:
    _delivered(hospital)
    _replaced(hospital)
    retry_study(hospital.database, STUDY, NOON, destinations=["archive"])
    first, second, offered = read_dossier(hospital.database, STUDY).deliveries
    assert (second.last_comment, offered.destination) == (NO_LONGER_CONFIGURED, "archive")
    for _ in range(MISSES_UNTIL_STUCK):
        record_confirmation_miss(hospital.database, [first.id], NOON)

    seen = read_overview(database_path, NOON)
    (stuck,) = stuck_studies(hospital.database, WaitsForPerson.UNDELIVERED)
    retried = retry_study(hospital.database, STUDY, NOON, destinations=["pacs", "archive"])

    assert (seen.stuck_count, stuck.study_instance_uid) == (1, STUDY)
    assert retried.delivery_ids == (second.id,)
    assert retried.overtaken_delivery_ids == (first.id,)


def test_the_reports_of_another_model_replace_none(hospital) -> None:
    _rejected(hospital)
    other = replace(CXR, name="cxr-fracture")
    for number in (2, 3):
        _analysed_again(hospital, model=other, number=number)
        _composed_and_sent(hospital, NOON, uid=f"2.25.{number}")
    first, *_ = read_dossier(hospital.database, STUDY).deliveries

    retried = retry_study(hospital.database, STUDY, NOON, destinations=["pacs"])

    assert (retried.delivery_ids, retried.overtaken_delivery_ids) == ((first.id,), ())


def test_the_oldest_waiting_study_includes_one_whose_job_waits(hospital, database_path) -> None:
    hospital.enqueue()
    hospital.arrive(1, study="1.2.9", now=NOON + seconds(1))

    before = read_overview(database_path, NOON).oldest_waiting
    (job,) = hospital.claim()
    finish_job(hospital.database, Analysed(job, (PNEUMONIA,), NOON), NOON)
    after = read_overview(database_path, NOON).oldest_waiting

    assert before is not None
    assert after is not None
    assert (before.study_instance_uid, before.state) == (STUDY, StudyState.ROUTED)
    assert after.study_instance_uid == "1.2.9"


def test_the_overview_of_no_database_says_so(database_path: Path) -> None:
    with pytest.raises(DatabaseMissing):
        read_overview(database_path, NOON)


def test_the_overview_does_not_wait_for_the_heavy_libraries() -> None:
    program = (
        "import sys, storage.overview, storage.errors, storage.states;"
        "print(sorted({'sqlalchemy', 'alembic', 'numpy', 'pydicom'} & set(sys.modules)))"
    )

    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == "[]"


def test_reading_and_writing_rows_does_not_load_dicom_or_migrations() -> None:
    program = (
        "import sys, storage.dossier, storage.jobs, storage.outbox, storage.retry;"
        "print(sorted({'alembic', 'pydicom'} & set(sys.modules)))"
    )

    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == "[]"
