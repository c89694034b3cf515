"""The flag of a study and the order of reading: nothing unknown ever looks like a negative."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sqlalchemy import insert, select

from daemon.config import Config, DestinationSection, SiteSection, WebSection
from daemon.errors import UnknownStudy
from daemon.status import read_status
from daemon.worklist.flags import (
    SEVERITY,
    FlagValues,
    Statement,
    flag_of,
)
from daemon.worklist.lines import DeliverySummary, StudyLine, read_worklist
from daemon.worklist.lookup import find_study
from daemon.worklist.study_page import read_study_page
from dicom_io.errors import RefusalReason
from storage import schema
from storage.confirmation import record_confirmation_miss
from storage.database import Database, migrate, open_database
from storage.deliveries import MISSES_UNTIL_STUCK
from storage.dossier import read_dossier
from storage.results import mark_uncomposable, results_awaiting_composition
from storage.retry import retry_study
from storage.states import StudyState
from storage.studies import list_studies
from tests.worklist_material import CXR, HEAD, TINY, Ward, absent, present, undetermined


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    path = tmp_path / "medimgd.sqlite3"
    migrate(path)
    opened = open_database(path)
    yield opened
    opened.close()


@pytest.fixture
def ward(database: Database) -> Ward:
    return Ward(database)


def config(*finding_order: str) -> Config:
    return Config(web=WebSection(finding_order=finding_order))


def line_of(ward: Ward, uid: str) -> StudyLine:
    lines = read_worklist(ward.database, config()).lines
    return next(line for line in lines if line.study_instance_uid == uid)


def statement(flag: FlagValues, *, earlier: bool = False) -> Statement:
    return Statement(flag, "Label", "", None, "m@1", "M", False, earlier)


statements = st.lists(
    st.builds(
        statement,
        st.sampled_from(
            [f for f in FlagValues if f not in {FlagValues.HELD, FlagValues.UNMATCHED}]
        ),
        earlier=st.booleans(),
    )
)


@given(st.sampled_from(StudyState), statements)
@example(StudyState.ROUTED, [statement(FlagValues.NEGATIVE, earlier=True)])
@example(StudyState.UNMATCHED, [statement(FlagValues.NEGATIVE)])
def test_a_study_is_negative_only_when_all_that_is_said_of_it_now_is_negative(
    state: StudyState, said: list[Statement]
) -> None:
    flag = flag_of(state, said)

    current = [one.flag for one in said if not one.earlier_images_only]
    if flag is FlagValues.NEGATIVE:
        assert state is StudyState.ROUTED
        assert set(current) == {FlagValues.NEGATIVE}


@given(st.sampled_from(StudyState), statements, statements)
def test_another_statement_never_makes_a_flag_milder(
    state: StudyState, said: list[Statement], more: list[Statement]
) -> None:
    before, after = flag_of(state, said), flag_of(state, said + more)

    # "Pending" of a routed study stands for no answer at all, and an answer may replace it.
    if any(not one.earlier_images_only for one in said):
        assert SEVERITY[after] <= SEVERITY[before]


@given(st.sampled_from(StudyState), statements)
def test_a_positive_is_never_hidden(state: StudyState, said: list[Statement]) -> None:
    seen = any(one.flag is FlagValues.POSITIVE for one in said)

    assert (flag_of(state, said) is FlagValues.POSITIVE) == seen


@pytest.mark.parametrize("earlier", [FlagValues.NEGATIVE, FlagValues.REFUSED, FlagValues.FAILED])
def test_what_was_not_found_in_earlier_images_says_nothing_of_the_study_now(
    earlier: FlagValues,
) -> None:
    said = [statement(earlier, earlier=True)]

    assert flag_of(StudyState.ROUTED, said) is FlagValues.PENDING
    assert flag_of(StudyState.UNMATCHED, said) is FlagValues.UNMATCHED


def test_a_study_of_which_nothing_is_said_is_pending() -> None:
    assert flag_of(StudyState.ROUTED, []) is FlagValues.PENDING


def test_the_sites_order_comes_before_certainty_and_unnamed_findings_follow_by_alphabet(
    ward: Ward,
) -> None:
    certain = ward.positive("A", present("Effusion", 0.99))
    unnamed = ward.positive("B", present("Atelectasis", 0.999))
    worse = ward.positive("C", present("pneumothorax", 0.55))
    worst = ward.positive("D", present("Pneumothorax", 0.80))
    unclear = ward.positive("E", undetermined("Pneumothorax", 0.5))

    lines = read_worklist(ward.database, config("Pneumothorax", "Effusion")).lines

    assert [line.study_instance_uid for line in lines] == [worst, worse, certain, unnamed, unclear]


def test_a_positive_of_one_model_keeps_the_refusal_of_another_in_sight(ward: Ward) -> None:
    uid = ward.receive("A")
    refusal = (CXR, RefusalReason.OUTSIDE_CONTRACT, "PatientAge: found 54")
    ward.route(uid, HEAD, refusals=[refusal])
    ward.analyse(HEAD, present("Bleeding", 0.7))

    line = line_of(ward, uid)

    assert line.flag is FlagValues.POSITIVE
    assert line.finding == "Bleeding"
    assert line.certainty_percent == 70.0
    assert [one.flag for one in line.other_statements] == [FlagValues.REFUSED]
    assert line.models == (HEAD.at_version, CXR.at_version)


def test_a_negative_of_one_model_does_not_outweigh_the_refusal_of_another(ward: Ward) -> None:
    uid = ward.receive("A")
    ward.route(uid, HEAD, refusals=[(CXR, RefusalReason.CANNOT_DECODE, "no decoder")])
    ward.analyse(HEAD, absent("Bleeding"))

    assert line_of(ward, uid).flag is FlagValues.REFUSED


def test_a_negative_waits_for_the_other_model(ward: Ward) -> None:
    uid = ward.receive("A")
    ward.route(uid, HEAD, CXR)
    ward.analyse(HEAD, absent("Bleeding"))

    line = line_of(ward, uid)

    assert line.flag is FlagValues.PENDING
    assert CXR.at_version in line.waits_for
    ward.analyse(CXR, absent("Pneumonia"))
    assert line_of(ward, uid).flag is FlagValues.NEGATIVE


def test_a_negative_about_earlier_images_is_pending_again_and_says_so(ward: Ward) -> None:
    uid = ward.positive("A", absent("Pneumonia"))
    assert line_of(ward, uid).flag is FlagValues.NEGATIVE

    ward.receive("A", study=uid, first=2)

    line = line_of(ward, uid)
    assert line.flag is FlagValues.PENDING
    assert [one.earlier_images_only for one in line.statements] == [True]


def test_a_positive_about_earlier_images_stays_positive_and_says_so(ward: Ward) -> None:
    uid = ward.positive("A", present("Pneumonia"))

    ward.receive("A", study=uid, first=2)

    line = line_of(ward, uid)
    assert line.flag is FlagValues.POSITIVE
    assert line.earlier_images_only


def test_the_result_of_all_images_replaces_the_earlier_one(ward: Ward) -> None:
    uid = ward.positive("A", present("Pneumonia"))
    ward.receive("A", study=uid, first=2)
    ward.route(uid, CXR)
    ward.analyse(CXR, absent("Pneumonia"))

    line = line_of(ward, uid)

    assert line.flag is FlagValues.NEGATIVE
    assert line.superseded_versions == 1
    page = read_study_page(ward.database, config(), uid)
    assert [version.version_number for version in page.latest] == [2]
    assert page.latest[0].replaces_version == 1
    assert [version.version_number for version in page.replaced] == [1]


@pytest.mark.parametrize(
    ("deed", "flag"),
    [
        ("fail", FlagValues.FAILED),
        ("hold", FlagValues.HELD),
        ("refuse", FlagValues.REFUSED),
        ("receive", FlagValues.PENDING),
        ("leave_unmatched", FlagValues.UNMATCHED),
    ],
)
def test_what_ends_without_a_finding_carries_its_own_flag(
    ward: Ward, deed: str, flag: FlagValues
) -> None:
    uid = ward.receive("A")
    if deed == "fail":
        ward.route(uid, TINY)
        ward.fail(TINY)
    elif deed == "refuse":
        ward.route(uid, refusals=[(CXR, RefusalReason.QUALITY, "too dark")])
    elif deed != "receive":
        getattr(ward, deed)(uid)

    assert line_of(ward, uid).flag is flag


def test_a_failed_analysis_waits_for_a_person(ward: Ward) -> None:
    uid = ward.receive("A")
    ward.route(uid, TINY)
    ward.fail(TINY)

    assert line_of(ward, uid).waits_for.endswith("a person")


def test_counts_cover_everything_while_the_filter_shows_one_flag(ward: Ward) -> None:
    ward.positive("A", present("Pneumonia"))
    ward.positive("B", absent("Pneumonia"))
    ward.receive("C")

    found = read_worklist(ward.database, config(), flag=FlagValues.NEGATIVE)

    assert [line.patient_name for line in found.lines] == ["B"]
    assert found.counts[FlagValues.POSITIVE] == found.counts[FlagValues.PENDING] == 1
    assert found.judged == 3
    assert found.is_complete


def test_a_search_finds_part_of_a_name(ward: Ward) -> None:
    ward.positive("Muster^Mara", present("Pneumonia"))
    ward.positive("Beispiel^Bruno", present("Pneumonia"))

    found = read_worklist(ward.database, config(), search=" muster ")

    assert [line.patient_name for line in found.lines] == ["Muster^Mara"]


@pytest.mark.parametrize(
    ("name", "typed"),
    [
        ("ИВАНОВ, ИВАН", "иванов"),
        ("Παπαδόπουλος, Άννα", "ΠΑΠΑΔΌΠΟΥΛΟΣ"),
        ("MÜLLER, JÖRG", "müller, jörg"),
        ("ﾔﾏﾀﾞ, ﾀﾛｳ", "ヤマダ"),
    ],
    ids=["Cyrillic", "Greek", "German", "half-width Japanese"],
)
def test_a_search_finds_a_name_in_whatever_letters_it_is_typed(
    ward: Ward, name: str, typed: str
) -> None:
    ward.positive(name, present("Pneumonia"))
    ward.positive("Beispiel, Bruno", present("Pneumonia"))

    found = read_worklist(ward.database, config(), search=typed)

    assert [line.patient_name for line in found.lines] == [name]


def test_a_destination_that_was_taken_out_needs_nobody_any_more(
    ward: Ward, testdata: Path, tmp_path: Path
) -> None:
    """One archive is away and taken out of the configuration; its successor takes everything."""
    uid = ward.positive("A", present("Pneumonia"))
    ward.compose(testdata / "single/dx_image.dcm")
    ward.deliver(uid, None, "connection refused", times=3)
    retry_study(ward.database, uid, ward.pass_time(9), destinations=["new"])
    ward.deliver(uid, 0x0000)
    new = DestinationSection(name="new", host="127.0.0.1", port=104, ae_title="NEW")
    settings = config().model_copy(
        update={"site": SiteSection(data_folder=tmp_path), "destinations": (new,)}
    )

    line = line_of(ward, uid)

    assert line.delivery == DeliverySummary("sent 2/2", needs_person=False)
    assert line.waits_for == "confirmation by the archive"
    assert read_study_page(ward.database, settings, uid).line == line
    attention = read_status(settings, ward.now).attention
    assert not [sentence for sentence in attention if "does not take results" in sentence]


def attention_of(ward: Ward, folder: Path) -> str:
    settings = config().model_copy(update={"site": SiteSection(data_folder=folder)})
    return "\n".join(read_status(settings, ward.now).attention)


def test_a_result_that_cannot_be_written_is_named_with_its_remedy(
    ward: Ward, tmp_path: Path
) -> None:
    ward.positive("A", present("Pneumonia"))
    (result,) = results_awaiting_composition(ward.database)
    mark_uncomposable(ward.database, result.id, "no reference header", ward.now)

    attention = attention_of(ward, tmp_path)

    assert "1 result could not be written, which no archive gets: see 'medimgd retry" in attention
    assert "have not moved" not in attention


def test_what_an_archive_accepted_and_does_not_hold_waits_for_a_person(
    ward: Ward, testdata: Path, tmp_path: Path
) -> None:
    uid = ward.positive("A", present("Pneumonia"))
    ward.compose(testdata / "single/dx_image.dcm")
    ward.deliver(uid, 0x0000)
    lost = read_dossier(ward.database, uid).deliveries[0].id
    for _ in range(MISSES_UNTIL_STUCK):
        record_confirmation_miss(ward.database, [lost], ward.pass_time(3600))

    line = line_of(ward, uid)

    attention = attention_of(ward, tmp_path)
    assert "1 result was rejected or given up, or accepted and not found" in attention
    assert "have not moved" not in attention
    assert line.delivery == DeliverySummary("not found 1/2", needs_person=True)
    assert line.waits_for == "confirmation by the archive, then a person"
    page = read_study_page(ward.database, config(), uid)
    assert page.line == line
    words = {each.delivery_id == lost: each.state_words for each in page.deliveries}
    assert words == {True: "sent, not found there", False: "sent"}


def test_a_line_keeps_the_patient_out_of_its_repr(ward: Ward) -> None:
    uid = ward.positive("Marked^Name", present("Pneumonia"), description="Marked^Name")

    assert "Marked" not in repr(line_of(ward, uid))


def test_a_study_is_found_by_uid_by_its_beginning_and_by_accession_number(ward: Ward) -> None:
    uid = ward.receive("A", study="1.2.3.4.5", accession="ACC-1")
    ward.receive("B", study="1.2.3.9", accession="ACC-2")

    assert find_study(ward.database, uid) == uid
    assert find_study(ward.database, "1.2.3.4") == uid
    assert find_study(ward.database, " acc-1 ") == uid


@pytest.mark.parametrize("typed", ["1.2", "", "A", "Marked^Name", "1.9"])
def test_what_means_no_study_or_several_is_refused_without_naming_anyone(
    ward: Ward, typed: str
) -> None:
    ward.receive("Marked^Name", study="1.2.3.4.5", accession="ACC-1")
    ward.receive("A", study="1.2.3.9", accession="ACC-2")

    with pytest.raises(UnknownStudy, match="type the whole Study Instance UID") as caught:
        find_study(ward.database, typed)

    assert "Marked" not in str(caught.value)


def add_newer_studies(ward: Ward, like: str, count: int) -> None:
    """Add studies whose accession number holds a 7, received after `like`."""
    table, later = schema.study, ward.pass_time(60)
    with ward.database.write() as connection:
        found = connection.execute(select(table).where(table.c.study_instance_uid == like))
        row = dict(found.mappings().one())
        rows = [
            row
            | {
                "study_instance_uid": f"2.25.9.{number}",
                "accession_number": f"A7-{number}",
                "last_instance_at": later,
            }
            for number in range(count)
        ]
        connection.execute(insert(table), rows)


def test_an_old_study_is_meant_however_many_newer_ones_resemble_it(ward: Ward) -> None:
    uid = ward.receive("A", study="1.2.3", accession="7")
    add_newer_studies(ward, uid, 1001)

    assert find_study(ward.database, "7") == uid

    ward.receive("B", study="1.2.9", accession="7")
    with pytest.raises(UnknownStudy, match="2 studies match '7'"):
        find_study(ward.database, "7")


def test_a_uid_is_found_although_it_begins_another(ward: Ward) -> None:
    ward.receive("A", study="1.2.3")
    ward.receive("B", study="1.2.3.4")

    assert find_study(ward.database, "1.2.3") == "1.2.3"


def test_the_timeline_follows_the_study_from_reception_to_analysis(ward: Ward) -> None:
    uid = ward.positive("A", present("Pneumonia"))

    steps = read_study_page(ward.database, config(), uid).timeline

    assert [step.name for step in steps] == [
        "first image received", "last image received", "complete", "prepared",
        "analysis started", "analysed",
    ]  # fmt: skip
    assert steps[0].seconds == 0
    assert steps[2].seconds == pytest.approx(31, abs=1)
    assert steps[2].detail == "completed by the operator"


def test_the_page_of_a_study_has_the_same_line_as_the_worklist(ward: Ward) -> None:
    uid = ward.receive("A")
    ward.route(uid, HEAD, refusals=[(CXR, RefusalReason.QUALITY, "too dark")])

    page = read_study_page(ward.database, config(), uid)

    assert page.line == line_of(ward, uid)
    assert len(list_studies(ward.database)) == 1
