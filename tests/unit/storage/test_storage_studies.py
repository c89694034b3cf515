"""Recording arrivals, the study's clock, and completion by evidence."""

from __future__ import annotations

from dataclasses import replace

import pytest
from storage_hospital import NOON, STUDY, make_data_set, make_prefix, seconds

from storage.arrivals import Arrival, Stored
from storage.associations import close_association, close_associations_of, open_association
from storage.audit import list_audit
from storage.completion import (
    MORE_THAN_ONE_PATIENT,
    NOTHING_BUT_CONFLICTS,
    CompletionRules,
    DeadlineAction,
    ReceivingStudy,
    Verdict,
    complete_due_studies,
    complete_now,
    judge,
    judge_receiving,
)
from storage.door import list_refused_instances, record_refused_instance
from storage.dossier import read_dossier
from storage.errors import IllegalMove, ImagesLost, NotFound, SpoolFailure
from storage.preparation import Preparation, finish_preparation
from storage.recording import Recorded, record_instances
from storage.reindexing import reindex
from storage.retry import retry_study
from storage.states import StudyState
from storage.stuck_studies import WaitsForPerson
from storage.studies import (
    get_series,
    get_study,
    instance_paths,
    instance_set_digest,
    list_studies,
)

RULES = CompletionRules(quiet_seconds=30, deadline_seconds=600)


def test_a_new_study_is_received_with_its_series_and_instances(hospital) -> None:
    recorded = hospital.arrive(2, 1, accession="A1")

    assert recorded == Recorded(new=2, identical=0, conflicts=0, reopened=())
    study = get_study(hospital.database, STUDY)
    assert (study.state, study.instance_count, study.modalities) == ("receiving", 2, ("CT",))
    assert (study.patient_name, study.accession_number) == ("Marked, Name", "A1")
    (series,) = get_series(hospital.database, STUDY)
    assert [each.sop_instance_uid for each in series.instances] == [f"{STUDY}.1.1", f"{STUDY}.1.2"]
    for path in instance_paths(hospital.database, STUDY).values():
        assert hospital.spool.absolute(path).is_file()


def test_a_study_does_not_show_its_patient_in_a_log(hospital) -> None:
    hospital.arrive(1)

    assert "Marked" not in repr(get_study(hospital.database, STUDY))


def test_the_same_instance_again_changes_nothing(hospital) -> None:
    hospital.arrive(1)
    before = get_study(hospital.database, STUDY)

    recorded = hospital.arrive(1, now=NOON + seconds(20))

    assert (recorded.new, recorded.identical) == (0, 1)
    assert get_study(hospital.database, STUDY) == before


def test_the_same_instance_twice_in_one_batch_is_recorded_once(hospital) -> None:
    recorded = hospital.arrive(1, 1, 2)

    assert (recorded.new, recorded.identical) == (2, 1)
    assert get_study(hospital.database, STUDY).instance_count == 2


def test_other_content_under_a_known_uid_flags_the_study_once(hospital) -> None:
    hospital.arrive(1)
    before = get_study(hospital.database, STUDY)

    for _ in range(2):
        hospital.arrive(1, now=NOON + seconds(5), pixels=b"\7\7\7\7")

    study = get_study(hospital.database, STUDY)
    assert study == replace(before, conflict_count=1)
    (conflict,) = read_dossier(hospital.database, STUDY).conflicts
    assert hospital.spool.absolute(conflict.path).read_bytes().endswith(b"\7\7\7\7")


def test_one_uid_in_two_series_of_a_study_is_a_conflict(hospital) -> None:
    hospital.arrive(1)
    sop = f"{STUDY}.1.1"
    data_set = make_data_set(sop, series=f"{STUDY}.2")

    stored = hospital.spool.store(make_prefix(sop), data_set)
    recorded = record_instances(hospital.database, [Arrival(stored)], NOON)

    assert (recorded.new, recorded.conflicts) == (0, 1)


def test_attributes_missing_at_first_are_filled_in_by_later_instances(hospital) -> None:
    hospital.arrive(1)
    hospital.arrive(2, accession="A7")
    hospital.arrive(3, accession="A8")

    assert get_study(hospital.database, STUDY).accession_number == "A7"


MARTHA = {"patient_id": "4711", "patient_name": "Marked^Martha"}


@pytest.mark.parametrize(
    ("first", "second", "differs"),
    [
        ({"patient_id": "1"}, {"patient_id": "2"}, True),
        ({"patient_id": "1"}, {"patient_id": "1", "patient_name": "Other"}, False),
        ({"patient_id": "1"}, {"patient_id": ""}, False),
        ({}, {"patient_name": "Other^Name"}, True),
        ({}, {"patient_name": "MARKED^NAME^"}, False),
        ({}, {"patient_name": ""}, False),
        ({}, {"patient_name": "MARKED^NAME=Marcado^Nombre"}, False),
        ({}, {"patient_name": "=Marcado^Nombre"}, True),
        ({"patient_id": "1"}, {"patient_name": "Other^Name"}, True),
    ],
)
@pytest.mark.parametrize("at_once", [True, False])
def test_a_patient_differs_by_id_and_without_one_by_name(
    hospital, first, second, differs: bool, at_once: bool
) -> None:
    stored = [hospital.store(1, **first), hospital.store(2, **second)]
    batches = [stored] if at_once else [[each] for each in stored]

    for batch in batches:
        record_instances(hospital.database, [Arrival(each) for each in batch], NOON)

    assert get_study(hospital.database, STUDY).patient_mismatch_count == int(differs)


def test_a_patient_is_found_by_each_group_of_the_name(hospital) -> None:
    hospital.arrive(1, patient_name="Yamada^Tarou=YAMATO^T")

    for typed in ("yamada", "yamato"):
        (found,) = list_studies(hospital.database, search=typed)
        assert found.study_instance_uid == STUDY


def test_two_patients_under_one_study_are_not_merged_and_wait_for_a_person(hospital) -> None:
    database = hospital.database
    hospital.arrive(1, patient_id="1")

    hospital.arrive(2, accession="A7", **MARTHA)
    (judgement,) = complete_due_studies(database, RULES, NOON + seconds(30))

    study = get_study(database, STUDY)
    assert judgement.verdict is Verdict.HOLD
    assert (study.state, study.reason) == (StudyState.HELD, MORE_THAN_ONE_PATIENT)
    assert (study.patient_id, study.accession_number) == ("1", "")
    trail = list_audit(database, subject=STUDY)
    assert [entry.action for entry in trail] == ["study held", "patient differs"]
    assert trail[1].detail == {"instances": 1}
    assert "4711" not in str(trail) + study.reason
    assert "Martha" not in str(trail) + study.reason


def test_the_operator_may_let_a_study_of_two_patients_be_analysed_and_that_is_kept(
    hospital,
) -> None:
    database = hospital.database
    hospital.arrive(1, patient_id="1")
    hospital.arrive(2, **MARTHA)
    complete_due_studies(database, RULES, NOON + seconds(30))

    assert retry_study(database, STUDY, NOON).prepared_again
    hospital.prepare()

    assert get_study(database, STUDY).state is StudyState.ROUTED
    actions = [entry.action for entry in list_audit(database, subject=STUDY)]
    assert actions[:3] == ["retry", "hold overridden", "study held"]
    hospital.arrive(3, now=NOON + seconds(60), patient_id="1")
    complete_due_studies(database, RULES, NOON + seconds(90))
    assert get_study(database, STUDY).state is StudyState.HELD


@pytest.mark.parametrize("state", ["complete", "routed", "unmatched", "held", "refused"])
def test_a_late_instance_brings_a_study_back(hospital, state: str) -> None:
    hospital.arrive(1)
    complete_now(hospital.database, STUDY, NOON)
    if state != "complete":
        outcome = Preparation(StudyState(state), "for the test")
        finish_preparation(hospital.database, hospital.claim_study(), outcome, NOON)
    first = get_study(hospital.database, STUDY)
    assert first.state == state

    recorded = hospital.arrive(2, now=NOON + seconds(60))

    study = get_study(hospital.database, STUDY)
    assert recorded.reopened == (STUDY,)
    assert (study.state, study.instance_count) == ("receiving", 2)
    assert state in study.reason
    assert study.instance_set_digest is None
    assert study.completion_evidence is None
    complete_now(hospital.database, STUDY, NOON)
    again = get_study(hospital.database, STUDY)
    assert again.instance_set_digest != first.instance_set_digest


def test_the_digest_of_a_set_knows_contents_and_no_order() -> None:
    pairs = [("1.1", "aa"), ("1.2", "bb")]

    assert instance_set_digest(pairs) == instance_set_digest(reversed(pairs))
    assert instance_set_digest(pairs) != instance_set_digest([("1.1", "aa"), ("1.2", "cc")])
    assert instance_set_digest(pairs) != instance_set_digest(pairs[:1])


RECEIVING = ReceivingStudy(
    study_instance_uid=STUDY,
    modalities=("CT",),
    instance_count=10,
    expected_instances=None,
    receiving_since=NOON,
    last_instance_at=NOON + seconds(100),
    open_associations=0,
)


@pytest.mark.parametrize(
    ("changes", "at", "verdict", "words"),
    [
        ({}, 129, Verdict.WAIT, "quiet for 29 of 30 s"),
        ({}, 130, Verdict.COMPLETE, "no open association"),
        ({"open_associations": 1}, 130, Verdict.WAIT, "1 open association"),
        ({"open_associations": 1}, 600, Verdict.COMPLETE, "deadline"),
        ({"expected_instances": 10, "open_associations": 1}, 101, Verdict.COMPLETE, "10 of 10"),
        ({"expected_instances": 11}, 101, Verdict.WAIT, "quiet for 1"),
        ({"expected_instances": 11}, 130, Verdict.COMPLETE, "quiet"),
        ({"instance_count": 0, "hold_reason": "odd"}, 129, Verdict.WAIT, "quiet for 29 of 30 s"),
        ({"instance_count": 0, "hold_reason": "odd"}, 130, Verdict.HOLD, "odd"),
    ],
)
def test_a_study_is_judged_by_quiet_count_and_deadline(changes, at, verdict, words) -> None:
    judgement = judge(replace(RECEIVING, **changes), RULES, NOON + seconds(at))

    assert judgement.verdict is verdict
    assert words in judgement.reason
    assert judgement.evidence["reason"] == judgement.reason


def test_the_deadline_may_hold_instead() -> None:
    rules = replace(RULES, deadline_action=DeadlineAction.HOLD)
    study = replace(RECEIVING, open_associations=2)

    assert judge(study, rules, NOON + seconds(600)).verdict is Verdict.HOLD


def test_the_most_patient_modality_counts() -> None:
    rules = replace(RULES, quiet_seconds_by_modality={"CT": 60.0, "SR": 5.0})

    for modalities, needed in ((("CT", "SR"), 60), (("SR",), 5), (("MR",), 30)):
        study = replace(RECEIVING, modalities=modalities)
        assert judge(study, rules, NOON + seconds(99 + needed)).verdict is Verdict.WAIT
        assert judge(study, rules, NOON + seconds(100 + needed)).verdict is Verdict.COMPLETE


def test_a_waiting_study_says_when_it_is_due() -> None:
    assert judge(RECEIVING, RULES, NOON + seconds(101)).due_at == NOON + seconds(130)


def test_an_open_association_keeps_its_studies_open_and_closing_it_moves_their_clock(
    hospital,
) -> None:
    database = hospital.database
    open_association(database, "a", slot="receiver-0", now=NOON, calling_ae_title="CT1")
    hospital.arrive(1, association_id="a")

    assert complete_due_studies(database, RULES, NOON + seconds(100)) == ()
    close_association(database, "a", NOON + seconds(110))
    assert complete_due_studies(database, RULES, NOON + seconds(139)) == ()
    (judgement,) = complete_due_studies(database, RULES, NOON + seconds(140))

    study = get_study(database, STUDY)
    assert study.state is StudyState.COMPLETE
    assert study.completion_evidence == judgement.evidence
    assert study.completed_at == NOON + seconds(140)
    (association,) = read_dossier(database, STUDY).associations
    assert (association.calling_ae_title, association.closed_at) == ("CT1", NOON + seconds(110))


def test_a_clock_set_back_costs_a_study_one_more_quiet_time(hospital) -> None:
    hospital.arrive(1)
    earlier = NOON - seconds(7200)

    assert complete_due_studies(hospital.database, RULES, earlier) == ()
    (judgement,) = judge_receiving(hospital.database, RULES, earlier + seconds(1))
    assert (judgement.reason, judgement.due_at) == ("quiet for 1 of 30 s", earlier + seconds(30))
    assert complete_due_studies(hospital.database, RULES, earlier + seconds(29)) == ()

    (moved,) = complete_due_studies(hospital.database, RULES, earlier + seconds(30))
    assert moved.verdict is Verdict.COMPLETE


def test_a_deadline_is_counted_anew_after_the_clock_was_set_back(hospital) -> None:
    open_association(hospital.database, "a", slot="receiver-0", now=NOON)
    hospital.arrive(1, association_id="a")
    earlier = NOON - seconds(7200)

    assert complete_due_studies(hospital.database, RULES, earlier) == ()
    (moved,) = complete_due_studies(hospital.database, RULES, earlier + seconds(600))

    assert "deadline" in moved.reason


def test_quiet_is_never_negative() -> None:
    judgement = judge(RECEIVING, RULES, NOON)

    assert judgement.verdict is Verdict.WAIT
    assert judgement.evidence["quiet_seconds"] == 0


def test_associations_of_a_dead_receiver_are_closed_by_its_successor(hospital) -> None:
    for name, slot in (("a", "receiver-0"), ("b", "receiver-1")):
        open_association(hospital.database, name, slot=slot, now=NOON)
    hospital.arrive(1, association_id="a")

    assert close_associations_of(hospital.database, "receiver-0", NOON + seconds(5)) == 1
    assert close_associations_of(hospital.database, "receiver-0", NOON + seconds(6)) == 0
    assert get_study(hospital.database, STUDY).last_instance_at == NOON + seconds(5)


def test_a_closed_association_does_not_move_a_study_that_left_reception(hospital) -> None:
    open_association(hospital.database, "a", slot="receiver-0", now=NOON)
    hospital.arrive(1, association_id="a")
    complete_now(hospital.database, STUDY, NOON)
    before = get_study(hospital.database, STUDY)

    close_association(hospital.database, "a", NOON + seconds(500))

    assert get_study(hospital.database, STUDY) == before


def test_a_held_study_is_completed_by_the_operator_only(hospital) -> None:
    database = hospital.database
    open_association(database, "a", slot="receiver-0", now=NOON)
    hospital.arrive(1, association_id="a")
    rules = replace(RULES, deadline_action=DeadlineAction.HOLD)

    complete_due_studies(database, rules, NOON + seconds(600))
    assert get_study(database, STUDY).state is StudyState.HELD
    assert complete_due_studies(database, rules, NOON + seconds(9999)) == ()
    complete_now(database, STUDY, NOON + seconds(700))

    assert get_study(database, STUDY).state is StudyState.COMPLETE
    actions = [entry.action for entry in list_audit(database, subject=STUDY)]
    assert actions == ["complete now", "study held"]
    with pytest.raises(IllegalMove):
        complete_now(database, STUDY, NOON + seconds(701))


def test_studies_are_listed_newest_first_and_found_by_name_and_number(hospital) -> None:
    other = "1.2.826.0.1.3680043.10.2"
    hospital.arrive(1, accession="100%")
    hospital.arrive(1, study=other, now=NOON + seconds(9))
    complete_now(hospital.database, other, NOON)

    def listed(**filters: object) -> list[str]:
        return [each.study_instance_uid for each in list_studies(hospital.database, **filters)]

    assert listed() == [other, STUDY]
    assert listed(limit=1, offset=1) == [STUDY]
    assert listed(states=[StudyState.COMPLETE]) == [other]
    assert listed(search="marked") == [other, STUDY]
    assert listed(search="0%") == [STUDY]
    assert listed(search="_") == []
    assert listed(search=other) == [other]


def test_an_unknown_study_is_named(hospital) -> None:
    with pytest.raises(NotFound, match=r"1\.2\.3"):
        get_study(hospital.database, "1.2.3")


def test_what_was_acknowledged_and_not_recorded_is_indexed_at_the_next_start(hospital) -> None:
    hospital.arrive(1)
    unrecorded = [hospital.store(2), hospital.store(1, study="1.2.3")]
    hospital.store(1, pixels=b"\7\7\7\7")
    broken = unrecorded[0].path.with_name("1.2.9.dcm")
    broken.write_bytes(b"not DICOM")

    found = reindex(hospital.database, hospital.spool, NOON + seconds(50))
    again = reindex(hospital.database, hospital.spool, NOON + seconds(90))

    assert (found.files, found.recorded, found.missing) == (5, 3, 0)
    assert [name.rsplit("/", 1)[1] for name in found.unreadable] == ["1.2.9.dcm"]
    assert (again.recorded, len(again.unreadable)) == (0, 1)
    study = get_study(hospital.database, STUDY)
    assert (study.instance_count, study.conflict_count) == (2, 1)
    assert study.last_instance_at == NOON + seconds(50)
    assert get_study(hospital.database, "1.2.3").state is StudyState.RECEIVING


def test_after_the_loss_of_the_database_the_patient_is_that_of_the_images(hospital) -> None:
    for patient_id in ("1", "2"):  # The second content of the UID is kept beside the first.
        hospital.store(1, patient_id=patient_id, accession=f"A{patient_id}")
    hospital.store(2, patient_id="1")

    reindex(hospital.database, hospital.spool, NOON)

    study = get_study(hospital.database, STUDY)
    assert (study.patient_id, study.accession_number) == ("1", "A1")
    assert (study.instance_count, study.conflict_count, study.patient_mismatch_count) == (2, 1, 0)


def _known_by_a_conflict_alone(hospital) -> Stored:
    """Let a disk damage the first file of a study, of which the index knows the second alone."""
    first = hospital.store(1)
    hospital.store(1, pixels=b"\7\7\7\7")
    first.path.write_bytes(b"damaged")
    found = reindex(hospital.database, hospital.spool, NOON)
    assert (found.recorded, found.unreadable) == (1, (first.relative_path,))
    return first


def test_a_study_known_by_conflicts_alone_is_held_until_its_images_come_again(hospital) -> None:
    first = _known_by_a_conflict_alone(hospital)

    assert complete_due_studies(hospital.database, RULES, NOON + seconds(29)) == ()
    complete_due_studies(hospital.database, RULES, NOON + seconds(30))

    study = get_study(hospital.database, STUDY)
    assert (study.state, study.reason) == (StudyState.HELD, NOTHING_BUT_CONFLICTS)
    first.path.unlink()
    assert hospital.arrive(1, now=NOON + seconds(60)).reopened == (STUDY,)
    complete_due_studies(hospital.database, RULES, NOON + seconds(90))
    assert get_study(hospital.database, STUDY).state is StudyState.COMPLETE


def test_no_retry_has_a_study_analysed_of_which_no_image_is_known(hospital) -> None:
    _known_by_a_conflict_alone(hospital)
    with pytest.raises(ImagesLost, match="send the study again"):
        complete_now(hospital.database, STUDY, NOON)
    complete_due_studies(hospital.database, RULES, NOON + seconds(30))

    with pytest.raises(ImagesLost, match="send the study again"):
        retry_study(hospital.database, STUDY, NOON + seconds(40))
    among_many = retry_study(
        hospital.database, STUDY, NOON + seconds(40), among=WaitsForPerson.HELD
    )

    assert among_many.stays_held
    assert get_study(hospital.database, STUDY).state is StudyState.HELD


def test_a_file_the_database_refuses_does_not_stop_the_indexing_of_others(
    hospital, monkeypatch
) -> None:
    good, bad = hospital.store(1), hospital.store(2)
    unreadable = hospital.store(3, study="1.2.3")
    read_stored = hospital.spool.read_stored

    def read(path):
        if path == unreadable.path:
            raise SpoolFailure("the disk lost it")
        stored = read_stored(path)
        if path != bad.path:
            return stored
        return replace(stored, header=replace(stored.header, instance_number=2**80))

    monkeypatch.setattr(hospital.spool, "read_stored", read)
    found = reindex(hospital.database, hospital.spool, NOON)

    assert (found.recorded, found.unrecorded) == (1, (bad.relative_path,))
    assert found.unreadable == (unreadable.relative_path,)
    assert list(instance_paths(hospital.database, STUDY).values()) == [good.relative_path]
    (entry,) = list_audit(hospital.database)
    assert (entry.detail["unrecorded"], entry.detail["unreadable"]) == (1, 1)


def test_a_study_folder_that_cannot_be_listed_is_passed_by(hospital, monkeypatch) -> None:
    hospital.store(1)
    hospital.store(1, study="1.2.3")
    instances_of = hospital.spool.instances_of

    def listed(uid):
        if uid == "1.2.3":
            raise SpoolFailure("the disk lost it")
        return instances_of(uid)

    monkeypatch.setattr(hospital.spool, "instances_of", listed)
    found = reindex(hospital.database, hospital.spool, NOON)

    assert (found.recorded, found.unreadable) == (1, ("studies/1.2.3",))


def test_rows_whose_file_is_gone_are_counted_even_when_the_whole_study_is(hospital) -> None:
    hospital.arrive(1, 2)
    (hospital.spool.absolute(hospital.store(1).relative_path)).unlink()

    assert reindex(hospital.database, hospital.spool, NOON).missing == 1


def test_refusals_at_the_door_are_kept_and_cut_to_size(hospital) -> None:
    record_refused_instance(
        hospital.database, NOON, reason="unknown calling AE", address="10.0.0.9"
    )
    record_refused_instance(
        hospital.database,
        NOON,
        reason="UID",
        status=0xC000,
        calling_ae_title="X",
        sop_instance_uid="9" * 5000,
    )

    newest, oldest = list_refused_instances(hospital.database)
    assert (newest.status, len(newest.sop_instance_uid)) == (0xC000, 256)
    assert (oldest.reason, oldest.status) == ("unknown calling AE", None)
