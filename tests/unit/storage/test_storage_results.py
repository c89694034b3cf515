"""Results, documents and the outbox."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from storage_hospital import CXR, NOON, PNEUMONIA, STUDY, seconds

from dicom_io.statuses import StoreStatusValues
from storage.backoff import DeliveryPolicy, backoff_seconds
from storage.completion import complete_now
from storage.confirmation import (
    confirm_deliveries,
    record_confirmation_miss,
    sent_query,
    unconfirmed_deliveries,
    unconfirmed_queries,
)
from storage.deliveries import MISSES_UNTIL_STUCK, delivery_states
from storage.destinations import (
    DeliveryOutcome,
    destination_state,
    learn_sr_sop_class,
    list_destinations,
)
from storage.documents import is_own_sop_instance_uid, read_document
from storage.dossier import read_dossier
from storage.endings import Analysed, finish_job
from storage.errors import IllegalMove, NotFound
from storage.outbox import (
    MOST_PUT_OFF,
    due_deliveries,
    keeps_the_rest_waiting,
    leading_query,
    record_outcomes,
    replace_document,
    wake_destination,
)
from storage.overview import read_overview
from storage.redelivery import deliver_undelivered
from storage.results import (
    mark_uncomposable,
    predecessor_documents,
    results_awaiting_composition,
    store_documents,
    withhold_result,
)
from storage.retry import retry_study
from storage.states import NO_LONGER_CONFIGURED, DeliveryState, ResultState

COMPREHENSIVE_3D = "1.2.840.10008.5.1.4.1.1.88.34"
ENHANCED = "1.2.840.10008.5.1.4.1.1.88.22"
CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
POLICY = DeliveryPolicy(jitter=0.0)


@dataclass(frozen=True)
class Document:
    role: str
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str = "2.25.9"
    data: bytes = b"bytes"


SR = Document("SR", COMPREHENSIVE_3D, "2.25.1", data=b"the report")
SC = Document("SC", CAPTURE, "2.25.2", data=b"the picture")


def _compose(hospital, *destinations: str, study: str = STUDY, documents=(SR, SC)) -> int:
    hospital.analyse(study)
    (result,) = results_awaiting_composition(hospital.database)
    store_documents(hospital.database, result.id, documents, destinations or ("pacs",), NOON)
    return result.id


def _answer(hospital, *outcomes: DeliveryOutcome, now=NOON, destination: str = "pacs", **policy):
    return record_outcomes(hospital.database, destination, outcomes, now, replace(POLICY, **policy))


def test_a_result_waits_for_composition_with_all_the_composer_needs(hospital) -> None:
    hospital.analyse()

    (result,) = results_awaiting_composition(hospital.database)

    assert (result.model, result.findings, result.state) == (CXR, (PNEUMONIA,), "awaiting")
    assert len(result.result_digest) == 64
    assert predecessor_documents(hospital.database, result) == ()


def test_documents_are_composed_once_and_only_those_bytes_are_kept(hospital) -> None:
    result_id = _compose(hospital)
    other = replace(SR, sop_instance_uid="2.25.77", data=b"composed again")

    kept = store_documents(hospital.database, result_id, [other], ["pacs"], NOON)

    assert [document.sop_instance_uid for document in kept] == ["2.25.1", "2.25.2"]
    assert [read_document(hospital.database, each.id) for each in kept] == [SR.data, SC.data]
    assert results_awaiting_composition(hospital.database) == ()
    assert not is_own_sop_instance_uid(hospital.database, "2.25.77")


def test_our_own_objects_are_known_by_their_uid(hospital) -> None:
    _compose(hospital)

    assert is_own_sop_instance_uid(hospital.database, "2.25.2")
    assert not is_own_sop_instance_uid(hospital.database, "2.25.3")
    with pytest.raises(NotFound):
        read_document(hospital.database, 999)


def test_a_later_version_finds_the_documents_of_its_predecessor(hospital) -> None:
    _compose(hospital)
    hospital.arrive(2, now=NOON + seconds(1))
    complete_now(hospital.database, STUDY, NOON + seconds(2))
    hospital.prepare(NOON + seconds(3))
    (job,) = hospital.claim(now=NOON + seconds(4))
    finish_job(hospital.database, Analysed(job, (PNEUMONIA,), NOON), NOON + seconds(5))

    (result,) = results_awaiting_composition(hospital.database)

    assert result.version_number == 2
    found = predecessor_documents(hospital.database, result)
    assert [each.sop_instance_uid for each in found] == ["2.25.1", "2.25.2"]


def test_the_picture_goes_before_the_report_and_results_in_order(hospital) -> None:
    first = _compose(hospital, "pacs", "archive")
    second = _compose(
        hospital,
        study="1.2.9",
        documents=(replace(SR, sop_instance_uid="2.25.11"),),
    )

    groups = due_deliveries(hospital.database, NOON)

    assert [(each.destination, each.result_id) for each in groups] == [
        ("archive", first),
        ("pacs", first),
        ("pacs", second),
    ]
    assert [each.role for each in groups[0].deliveries] == ["SC", "SR"]
    assert groups[0].study_instance_uid == STUDY
    assert due_deliveries(hospital.database, NOON, limit=1) == groups[:1]


def test_answers_are_kept_verbatim_and_success_and_warnings_are_sent(hospital) -> None:
    _compose(hospital)
    (group,) = due_deliveries(hospital.database, NOON)
    picture, report = group.deliveries

    sent = _answer(
        hospital,
        DeliveryOutcome(picture.id, 0x0000),
        DeliveryOutcome(report.id, 0xB007, "élément ignoré"),
    )

    assert [each.state for each in sent] == [DeliveryState.SENT, DeliveryState.SENT]
    assert (sent[1].last_status, sent[1].last_comment) == (0xB007, "élément ignoré")
    assert sent[1].sent_at == NOON
    assert due_deliveries(hospital.database, NOON) == ()
    assert destination_state(hospital.database, "pacs").last_success_at == NOON


def test_an_outage_opens_the_breaker_and_everything_goes_when_it_ends(hospital) -> None:
    _compose(hospital, "pacs", "archive")
    (_, pacs) = due_deliveries(hospital.database, NOON)
    silence = [DeliveryOutcome(each.id, None, "connection refused") for each in pacs.deliveries]

    _answer(hospital, *silence)
    _answer(hospital, *silence, now=NOON + seconds(20))

    state = destination_state(hospital.database, "pacs")
    assert state.consecutive_failures == 2
    assert state.breaker_until == NOON + seconds(20 + 30)
    assert state.last_answer == "connection refused"
    before = due_deliveries(hospital.database, NOON + seconds(49))
    assert [group.destination for group in before] == ["archive"]
    after = due_deliveries(hospital.database, NOON + seconds(51))
    assert [group.destination for group in after] == ["archive", "pacs"]
    assert len(after[1].deliveries) == 2


def test_the_operator_can_wake_a_destination(hospital) -> None:
    _compose(hospital)
    (group,) = due_deliveries(hospital.database, NOON)
    picture, report = group.deliveries
    _answer(hospital, DeliveryOutcome(picture.id, None), DeliveryOutcome(report.id, 0xA700))
    assert due_deliveries(hospital.database, NOON) == ()

    assert wake_destination(hospital.database, "pacs", NOON) == 1

    assert len(due_deliveries(hospital.database, NOON)[0].deliveries) == 2


def test_a_destination_short_of_resources_is_asked_again_later(hospital) -> None:
    _compose(hospital)
    (group,) = due_deliveries(hospital.database, NOON)
    answers = [
        DeliveryOutcome(each.id, StoreStatusValues.OUT_OF_RESOURCES) for each in group.deliveries
    ]

    (delivery, _) = _answer(hospital, *answers)

    assert (delivery.state, delivery.attempts) == (DeliveryState.PENDING, 1)
    assert delivery.next_attempt_at == NOON + seconds(15)
    assert destination_state(hospital.database, "pacs").breaker_until == NOON + seconds(15)


@pytest.mark.parametrize(
    "refusal",
    [{"status": 0xC000}, {"status": 0xA900}, {"status": None, "context_refused": True}],
    ids=["C000", "A900", "context"],
)
def test_a_permanent_refusal_is_repeated_a_little_and_then_waits_for_a_person(
    hospital, refusal
) -> None:
    _compose(hospital, documents=(SR,))
    (group,) = due_deliveries(hospital.database, NOON)
    outcome = DeliveryOutcome(group.deliveries[0].id, comment="no", **refusal)

    states = [
        _answer(hospital, outcome, now=NOON + seconds(100 * each))[0].state for each in range(3)
    ]

    assert states == [DeliveryState.PENDING, DeliveryState.PENDING, DeliveryState.REJECTED]
    assert destination_state(hospital.database, "pacs").breaker_until is None
    actions = [entry.action for entry in read_dossier(hospital.database, STUDY).audit]
    assert actions[-1] == "delivery rejected"


def _put_off(hospital, times: int = 1, **answer) -> None:
    """Let an archive put off the picture alone, and take something else, so that it is open."""
    first = _compose(hospital)
    picture = due_deliveries(hospital.database, NOON)[0].deliveries[0]
    answer = {"status": StoreStatusValues.OUT_OF_RESOURCES} | answer
    for _ in range(times):
        _answer(hospital, DeliveryOutcome(picture.id, comment="no", **answer))
    _compose(hospital, study="1.2.9", documents=(replace(SR, sop_instance_uid="2.25.11"),))
    other = next(
        each
        for each in due_deliveries(hospital.database, NOON + seconds(3600))
        if each.result_id != first
    )
    _answer(hospital, DeliveryOutcome(other.deliveries[0].id, 0))


def test_a_report_waits_with_a_picture_that_was_put_off(hospital) -> None:
    _put_off(hospital)

    assert due_deliveries(hospital.database, NOON + seconds(14)) == ()

    (group,) = due_deliveries(hospital.database, NOON + seconds(15))
    assert [each.role for each in group.deliveries] == ["SC", "SR"]


@pytest.mark.parametrize(
    ("times", "answer"),
    [
        (MOST_PUT_OFF, {}),
        (1, {"status": 0xC000}),
        (3, {"status": 0xC000}),
        (1, {"status": None, "context_refused": True}),
    ],
    ids=["put off too often", "refused", "rejected", "not negotiated"],
)
def test_no_other_picture_keeps_its_report_waiting(hospital, times, answer) -> None:
    _put_off(hospital, times, **answer)

    (group,) = due_deliveries(hospital.database, NOON + seconds(1))

    assert [each.role for each in group.deliveries] == ["SR"]


def test_a_picture_that_is_given_up_keeps_nothing_waiting(hospital) -> None:
    _compose(hospital)
    (group,) = due_deliveries(hospital.database, NOON)
    picture = group.deliveries[0]
    full = DeliveryOutcome(picture.id, StoreStatusValues.OUT_OF_RESOURCES)
    late = NOON + seconds(POLICY.max_age_seconds)

    assert keeps_the_rest_waiting(picture, full, NOON, POLICY)
    assert not keeps_the_rest_waiting(picture, full, late, POLICY)
    assert not keeps_the_rest_waiting(picture, replace(full, status=0xC000), NOON, POLICY)
    assert not keeps_the_rest_waiting(picture, replace(full, status=0), NOON, POLICY)


def _plan(hospital, query) -> list[str]:
    with hospital.database.read() as connection:
        compiled = query.limit(32).compile(connection, compile_kwargs={"render_postcompile": True})
        unbound = (None,) * len(compiled.positiontup or ())
        steps = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {compiled}", unbound).all()
    return [row.detail for row in steps if row.detail.startswith(("S", "USE"))]


def test_a_round_reads_no_more_of_what_waits_than_it_sends(hospital) -> None:
    first, *others = _plan(hospital, leading_query("pacs", NOON))

    assert "ix_delivery_queue (state=? AND destination=?)" in first
    # What is asked about a row is looked up by its result; sorting would read all of them.
    assert [each.split(" (")[1] for each in others] == [
        "result_id=?)",
        "result_id=?)",
        "rowid=?)",
        "study_instance_uid=? AND model_name=? AND version_number<?)",
        "result_id=?)",
    ]


def test_a_turn_of_confirming_reads_no_more_of_what_was_sent_than_it_asks_for(hospital) -> None:
    never_asked, missed = (
        _plan(hospital, query) for query in unconfirmed_queries("pacs", NOON, NOON)
    )
    answered = _plan(hospital, sent_query("pacs", ["2.25.1"]))

    index = (
        "SEARCH delivery USING COVERING INDEX ix_delivery_unconfirmed (state=? AND destination=?"
    )
    assert never_asked == [f"{index} AND confirm_next_at=? AND sent_at<?)"]
    assert missed == [f"{index} AND confirm_next_at<?)"]
    assert [each.split(" (")[1] for each in answered] == [
        "sop_instance_uid=?)",
        "rowid=?)",
        "result_id=?)",
    ]


def test_what_is_too_old_is_dead_and_can_be_retried(hospital) -> None:
    _compose(hospital)
    (group,) = due_deliveries(hospital.database, NOON)
    picture, report = (DeliveryOutcome(each.id, None) for each in group.deliveries)

    dead = _answer(hospital, picture, report, now=NOON + seconds(3601), max_age_seconds=3600)
    retried = retry_study(hospital.database, STUDY, NOON + seconds(4000))

    assert [each.state for each in dead] == [DeliveryState.DEAD] * 2
    assert retried.delivery_ids == (report.delivery_id, picture.delivery_id)
    (again,) = due_deliveries(hospital.database, NOON + seconds(99999))
    assert [each.attempts for each in again.deliveries] == [0, 0]


def test_a_destination_may_be_away_as_long_as_the_site_says_however_often_it_is_tried(
    hospital,
) -> None:
    _compose(hospital, documents=(SR,))
    (group,) = due_deliveries(hospital.database, NOON)
    silence = DeliveryOutcome(group.deliveries[0].id, None, "connection refused")
    every_five_minutes = range(0, 7 * 86400, 300)

    states = {
        _answer(hospital, silence, now=NOON + seconds(each))[0].state for each in every_five_minutes
    }

    assert states == {DeliveryState.PENDING}
    (dead,) = _answer(hospital, silence, now=NOON + seconds(7 * 86400))
    assert dead.state is DeliveryState.DEAD


@pytest.mark.parametrize(
    "refusal",
    [{"status": 0x0110}, {"status": None, "context_refused": True}],
    ids=["failure", "context"],
)
def test_what_was_tried_during_an_outage_is_not_held_against_a_document(hospital, refusal) -> None:
    _compose(hospital, documents=(SR,))
    (group,) = due_deliveries(hospital.database, NOON)
    silence = DeliveryOutcome(group.deliveries[0].id, None, "connection refused")
    starting = replace(silence, comment="starting", **refusal)
    for each in range(40):
        _answer(hospital, silence, now=NOON + seconds(300 * each))

    answers = [
        _answer(hospital, starting, now=NOON + seconds(20000 + 100 * each))[0] for each in range(3)
    ]

    assert [each.state for each in answers] == ["pending", "pending", "rejected"]
    assert [each.attempts for each in answers] == [1, 2, 3]
    assert answers[0].next_attempt_at == NOON + seconds(20015)


def test_an_archive_that_is_back_and_full_is_tried_again_soon(hospital) -> None:
    _compose(hospital, documents=(SR,))
    (group,) = due_deliveries(hospital.database, NOON)
    silence = DeliveryOutcome(group.deliveries[0].id, None, "connection refused")
    for each in range(40):
        _answer(hospital, silence, now=NOON + seconds(300 * each))

    back = replace(silence, status=StoreStatusValues.OUT_OF_RESOURCES)
    (delivery,) = _answer(hospital, back, now=NOON + seconds(20000))

    assert delivery.next_attempt_at == NOON + seconds(20015)


def test_an_answer_that_comes_twice_changes_nothing_more(hospital) -> None:
    _compose(hospital, documents=(SR,))
    (group,) = due_deliveries(hospital.database, NOON)
    outcome = DeliveryOutcome(group.deliveries[0].id, 0)

    (first,) = _answer(hospital, outcome)
    (second,) = _answer(hospital, replace(outcome, status=0xC000), now=NOON + seconds(9))

    assert second == first


def test_a_fallback_class_replaces_the_document_for_one_destination(hospital) -> None:
    _compose(hospital, "old", "older", "modern", documents=(SR,))
    deliveries = {
        group.destination: group.deliveries[0] for group in due_deliveries(hospital.database, NOON)
    }
    enhanced = Document("SR", ENHANCED, "2.25.3", data=b"simpler")
    again = replace(enhanced, data=b"never kept")

    replaced = replace_document(hospital.database, deliveries["old"].id, enhanced, NOON)
    shared = replace_document(hospital.database, deliveries["older"].id, again, NOON)
    learn_sr_sop_class(hospital.database, "old", ENHANCED)

    assert (replaced.sop_class_uid, replaced.state) == (ENHANCED, DeliveryState.PENDING)
    assert shared.document_id == replaced.document_id
    assert read_document(hospital.database, replaced.document_id) == b"simpler"
    assert is_own_sop_instance_uid(hospital.database, "2.25.3")
    classes = {
        group.destination: group.deliveries[0].sop_class_uid
        for group in due_deliveries(hospital.database, NOON)
    }
    assert classes == {"old": ENHANCED, "older": ENHANCED, "modern": COMPREHENSIVE_3D}
    assert [each.sr_sop_class_uid for each in list_destinations(hospital.database)] == [ENHANCED]


def test_confirmation_comes_after_sending_and_only_for_what_was_sent(hospital) -> None:
    result_id = _compose(hospital)
    (group,) = due_deliveries(hospital.database, NOON)
    picture, report = group.deliveries
    _answer(hospital, DeliveryOutcome(picture.id, 0))

    waiting = unconfirmed_deliveries(hospital.database, sent_before=NOON + seconds(1))
    uids = [picture.sop_instance_uid, report.sop_instance_uid]
    assert confirm_deliveries(hospital.database, "archive", uids, NOON) == 0
    assert confirm_deliveries(hospital.database, "pacs", uids, NOON + seconds(9)) == 1

    assert [each.id for each in waiting] == [picture.id]
    assert unconfirmed_deliveries(hospital.database, sent_before=NOON + seconds(1)) == ()
    assert delivery_states(hospital.database, [result_id]) == {
        result_id: {DeliveryState.CONFIRMED: 1, DeliveryState.PENDING: 1}
    }


def _sent(hospital, *destinations: str, study: str = STUDY, number: int = 1) -> list:
    document = replace(SR, sop_instance_uid=f"2.25.{number}")
    _compose(hospital, *destinations, study=study, documents=(document,))
    groups = [
        group
        for group in due_deliveries(hospital.database, NOON)
        if group.study_instance_uid == study
    ]
    return [
        _answer(
            hospital,
            DeliveryOutcome(group.deliveries[0].id, 0),
            destination=group.destination,
        )[0]
        for group in groups
    ]


def test_what_a_retry_sends_again_is_not_confirmed_for_having_been_sent_before(
    hospital, monkeypatch
) -> None:
    # Given a report that was not found, and an answer that it is there after all,
    (lost,) = _sent(hospital)
    for _ in range(MISSES_UNTIL_STUCK):
        record_confirmation_miss(hospital.database, [lost.id], NOON)
    write = hospital.database.write

    @contextmanager
    def after_a_retry():
        monkeypatch.undo()
        assert retry_study(hospital.database, STUDY, NOON).delivery_ids == (lost.id,)
        with write() as connection:
            yield connection

    # when a retry has the write lock before it is recorded,
    monkeypatch.setattr(hospital.database, "write", after_a_retry)
    count = confirm_deliveries(hospital.database, "pacs", [lost.sop_instance_uid], NOON)

    # it stays pending, as the retry left it.
    assert count == 0
    ((waits,),) = [group.deliveries for group in due_deliveries(hospital.database, NOON)]
    assert waits.id == lost.id


def test_what_is_not_found_is_asked_for_less_and_less_often_and_starves_nobody(hospital) -> None:
    (old,) = _sent(hospital)
    (new,) = _sent(hospital, study="1.2.9", number=2)

    def asked(now, **filters) -> list[int]:
        found = unconfirmed_deliveries(
            hospital.database, sent_before=NOON + seconds(1), now=now, limit=1, **filters
        )
        return [each.id for each in found]

    assert asked(NOON) == [old.id]
    record_confirmation_miss(hospital.database, [old.id], NOON)
    assert asked(NOON) == [new.id]
    # Both are due by then; who waits longest for the next question comes first.
    assert asked(NOON + seconds(60)) == [new.id]
    confirm_deliveries(hospital.database, "pacs", [new.sop_instance_uid], NOON)
    record_confirmation_miss(hospital.database, [old.id, new.id], NOON + seconds(60))
    assert asked(NOON + seconds(179)) == []
    assert asked(NOON + seconds(180)) == [old.id]

    now = NOON
    for _ in range(9):
        record_confirmation_miss(hospital.database, [old.id], now)
        now += seconds(3600)
        assert asked(now) == [old.id]
    states = delivery_states(hospital.database, [new.result_id])
    assert states == {new.result_id: {DeliveryState.CONFIRMED: 1}}


def test_each_destination_is_asked_for_its_own_and_only_those_named(hospital) -> None:
    archive, pacs = _sent(hospital, "archive", "pacs")
    _sent(hospital, "pacs", study="1.2.9", number=2)

    def asked(*destinations: str) -> list[int]:
        found = unconfirmed_deliveries(
            hospital.database,
            sent_before=NOON + seconds(1),
            destinations=destinations or None,
            limit=1,
        )
        return [each.id for each in found]

    assert asked() == [archive.id, pacs.id]
    assert asked("pacs") == [pacs.id]
    assert unconfirmed_deliveries(hospital.database, sent_before=NOON, destinations=()) == ()


def test_what_is_never_found_is_shown_as_stuck_and_sent_again_by_retry(hospital) -> None:
    (delivery,) = _sent(hospital)
    for each in range(MISSES_UNTIL_STUCK - 1):
        record_confirmation_miss(hospital.database, [delivery.id], NOON + seconds(each))
    assert read_overview(hospital.database.path, NOON).stuck == ()
    record_confirmation_miss(hospital.database, [delivery.id], NOON)

    (item,) = read_overview(hospital.database.path, NOON).stuck
    assert (item.kind, item.state) == ("delivery", "sent")
    assert item.reason == "pacs: sent but not found by C-FIND"
    assert retry_study(hospital.database, STUDY, NOON).delivery_ids == (delivery.id,)
    (group,) = due_deliveries(hospital.database, NOON)
    assert [each.confirm_misses for each in group.deliveries] == [0]


def test_a_result_may_be_withheld_or_be_impossible_to_compose(hospital) -> None:
    hospital.analyse()
    hospital.analyse("1.2.9")
    withheld, impossible = results_awaiting_composition(hospital.database)

    withhold_result(hospital.database, withheld.id, "refusals are not sent", NOON)
    mark_uncomposable(hospital.database, impossible.id, "no StudyInstanceUID", NOON)

    assert results_awaiting_composition(hospital.database) == ()
    with pytest.raises(IllegalMove):
        withhold_result(hospital.database, impossible.id, "", NOON)
    assert retry_study(hospital.database, STUDY, NOON).result_ids == ()
    assert retry_study(hospital.database, "1.2.9", NOON).result_ids == (impossible.id,)
    (again,) = results_awaiting_composition(hospital.database)
    assert (again.id, again.state) == (impossible.id, ResultState.AWAITING)


@given(
    st.integers(1, 10_000),
    st.floats(0.1, 100),
    st.floats(100, 10_000),
    st.floats(0, 1),
    st.floats(0, 1, exclude_max=True),
)
def test_a_delay_grows_to_its_limit_and_stays_within_its_jitter(
    failures, first, longest, jitter, chance
) -> None:
    delay = backoff_seconds(failures, first, longest, jitter, chance)
    middle = backoff_seconds(failures, first, longest, 0.0, chance)

    assert first <= middle <= longest
    assert middle <= backoff_seconds(failures + 1, first, longest, 0.0, chance)
    assert middle * (1 - jitter) * 0.999 <= delay <= middle * (1 + jitter) * 1.001


def test_delays_double() -> None:
    delays = [backoff_seconds(each, 15, 100, 0.0, 0.5) for each in (1, 2, 3, 4, 5)]

    assert delays == [15, 30, 60, 100, 100]


def test_what_was_tried_least_goes_first(hospital) -> None:
    _compose(hospital, "a-pacs", "b-pacs")
    first, _ = due_deliveries(hospital.database, NOON)
    assert first.destination == "a-pacs"

    for delivery in first.deliveries:
        _answer(hospital, DeliveryOutcome(delivery.id, None, "broke off"), destination="a-pacs")

    groups = due_deliveries(hospital.database, NOON + seconds(3600))
    assert [group.destination for group in groups] == ["b-pacs", "a-pacs"]


def _compose_again(hospital, number: int, *destinations: str) -> int:
    """Compose the next version of the study's result, after a late instance."""
    now = NOON + seconds(number)
    hospital.arrive(number, now=now)
    complete_now(hospital.database, STUDY, now)
    hospital.prepare(now)
    (job,) = hospital.claim(now=now)
    finish_job(hospital.database, Analysed(job, (PNEUMONIA,), now), now)
    (result,) = results_awaiting_composition(hospital.database)
    documents = [replace(SR, sop_instance_uid=f"2.25.{number}1")]
    store_documents(hospital.database, result.id, documents, destinations or ("pacs",), now)
    return result.id


def test_a_later_version_never_goes_before_an_earlier_one(hospital) -> None:
    first = _compose(hospital, "pacs", "archive", documents=(SR,))
    second = _compose_again(hospital, 2, "pacs", "archive")
    other = _compose(hospital, study="1.2.9", documents=(replace(SR, sop_instance_uid="2.25.5"),))
    later = NOON + seconds(60)

    def due(now=later):
        groups = due_deliveries(hospital.database, now)
        return [(group.destination, group.result_id) for group in groups]

    assert due() == [("archive", first), ("pacs", first), ("pacs", other)]
    archive, pacs, _ = due_deliveries(hospital.database, later)
    _answer(
        hospital, DeliveryOutcome(archive.deliveries[0].id, 0), now=later, destination="archive"
    )
    _answer(hospital, DeliveryOutcome(pacs.deliveries[0].id, 0xC000, "no"), now=later)

    # The first version waits for its next attempt at one destination and has left the other.
    assert due() == [("archive", second), ("pacs", other)]
    assert due(later + seconds(15)) == [("archive", second), ("pacs", other), ("pacs", first)]
    _answer(hospital, DeliveryOutcome(pacs.deliveries[0].id, 0), now=later + seconds(15))
    assert due(later + seconds(15)) == [
        ("archive", second),
        ("pacs", second),
        ("pacs", other),
    ]


def test_a_retry_offers_a_result_to_a_destination_it_never_had(hospital) -> None:
    _compose(hospital, "pacs")

    retried = retry_study(hospital.database, STUDY, NOON, destinations=["pacs", "archive"])

    groups = due_deliveries(hospital.database, NOON)
    assert [group.destination for group in groups] == ["archive", "pacs"]
    assert [each.role for each in groups[0].deliveries] == ["SC", "SR"]
    assert set(retried.delivery_ids) == {each.id for each in groups[0].deliveries}
    again = retry_study(hospital.database, STUDY, NOON, destinations=["pacs", "archive"])
    assert not again.anything


def test_a_new_destination_gets_the_latest_version_only(hospital) -> None:
    _compose(hospital, documents=(SR,))
    second = _compose_again(hospital, 2)

    retry_study(hospital.database, STUDY, NOON, destinations=["pacs", "archive"])

    deliveries = read_dossier(hospital.database, STUDY).deliveries
    assert [each.result_id for each in deliveries if each.destination == "archive"] == [second]


def test_a_retry_gives_up_what_a_destination_without_configuration_was_to_get(hospital) -> None:
    _compose(hospital, "pacs", "old-pacs", documents=(SR,))
    old, _ = due_deliveries(hospital.database, NOON)
    for _ in range(3):
        _answer(
            hospital, DeliveryOutcome(old.deliveries[0].id, 0xC000, "no"), destination="old-pacs"
        )

    for _ in range(2):
        retried = retry_study(hospital.database, STUDY, NOON, destinations=["pacs"])
        assert retried.delivery_ids == ()

    by_name = {each.destination: each for each in read_dossier(hospital.database, STUDY).deliveries}
    assert by_name["pacs"].state is DeliveryState.PENDING
    ended = by_name["old-pacs"]
    assert (ended.state, ended.last_comment) == (DeliveryState.DEAD, NO_LONGER_CONFIGURED)
    back = retry_study(hospital.database, STUDY, NOON, destinations=["pacs", "old-pacs"])
    assert back.delivery_ids == (ended.id,)


def test_results_composed_without_a_destination_go_when_there_is_one(hospital) -> None:
    hospital.analyse()
    hospital.analyse("1.2.9")
    composed, withheld = results_awaiting_composition(hospital.database)
    store_documents(hospital.database, composed.id, [SR, SC], [], NOON)
    withhold_result(hospital.database, withheld.id, "", NOON)
    path = hospital.database.path
    assert read_overview(path, NOON).results_without_delivery == 1
    assert deliver_undelivered(hospital.database, [], NOON) == 0

    assert deliver_undelivered(hospital.database, ["pacs"], NOON) == 2

    (group,) = due_deliveries(hospital.database, NOON)
    assert (group.result_id, len(group.deliveries)) == (composed.id, 2)
    assert read_overview(path, NOON).results_without_delivery == 0
    assert deliver_undelivered(hospital.database, ["pacs", "archive"], NOON) == 0
