"""``medimgd retry --state``: which studies are meant, what is asked first, and what comes of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import Result
from sqlalchemy import update
from typer.testing import CliRunner

from daemon.cli.application import app
from daemon.config import Config, SiteSection
from dicom_io.errors import RefusalReason
from storage import schema
from storage.completion import CompletionRules, complete_due_studies
from storage.database import migrate, open_database
from storage.dossier import read_dossier
from storage.states import DeliveryState, StudyState
from storage.stuck_studies import WaitsForPerson, stuck_studies
from storage.studies import get_study
from tests.worklist_material import CXR, TINY, Ward, present


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new database, to be copied: migrating takes longer than most tests."""
    path = tmp_path_factory.mktemp("empty") / "medimgd.sqlite3"
    migrate(path)
    return path


@pytest.fixture
def config(tmp_path: Path, empty: Path) -> Config:
    made = Config(site=SiteSection(data_folder=tmp_path))
    shutil.copy(empty, made.database_path)
    (tmp_path / "medimgd.toml").write_text(f"[site]\ndata_folder = '{tmp_path}'\n")
    return made


@pytest.fixture
def ward(config: Config) -> Iterator[Ward]:
    database = open_database(config.database_path)
    yield Ward(database)
    database.close()


@pytest.fixture
def uids(ward: Ward) -> dict[str, str]:
    """One study of every kind that waits before delivery, and one that waits for nobody."""
    found = {}
    for word in ("held", "unmatched", "refused", "failed", "waiting"):
        found[word] = ward.receive(f"{word}^A")
    ward.hold(found["held"])
    ward.leave_unmatched(found["unmatched"])
    ward.route(found["failed"], TINY)
    ward.fail(TINY)
    ward.route(found["waiting"], CXR)
    ward.route(found["refused"], refusals=[(CXR, RefusalReason.CANNOT_DECODE, "cannot be decoded")])
    return found


def states(ward: Ward, *uids: str) -> list[StudyState]:
    return [get_study(ward.database, uid).state for uid in uids]


def retry(config: Config, *arguments: str, answer: str | None = None) -> Result:
    path = config.site.data_folder / "medimgd.toml"
    return CliRunner().invoke(app, ["retry", *arguments, "--config", str(path)], input=answer)


@pytest.mark.parametrize("waits", ["held", "unmatched", "refused", "failed"])
def test_each_state_means_the_studies_that_wait_over_it(
    ward: Ward, uids: dict[str, str], waits: str
) -> None:
    (found,) = stuck_studies(ward.database, WaitsForPerson(waits))

    assert found.study_instance_uid == uids[waits]
    assert found.since <= ward.now
    assert found.reason


def test_undelivered_means_the_studies_whose_results_were_rejected(
    ward: Ward, testdata: Path
) -> None:
    rejected, sent = (ward.positive(f"{n}^A", present("Pneumonia")) for n in range(2))
    ward.compose(testdata / "single/dx_image.dcm")
    ward.deliver(rejected, 0x0122, "SOP class not supported", times=3)
    ward.deliver(sent, 0x0000)

    (found,) = stuck_studies(ward.database, WaitsForPerson.UNDELIVERED)

    assert (found.study_instance_uid, found.reason) == (rejected, "SOP class not supported")


def test_only_what_came_to_wait_since_is_meant_and_the_longest_comes_first(ward: Ward) -> None:
    first, second, third = (ward.receive(f"{n}^A") for n in range(3))
    ward.hold(second)
    begin = ward.pass_time(60)
    ward.hold(first)
    ward.hold(third)

    all_of_them = stuck_studies(ward.database, WaitsForPerson.HELD)
    late = stuck_studies(ward.database, WaitsForPerson.HELD, since=begin)

    assert [each.study_instance_uid for each in all_of_them] == [second, first, third]
    assert [each.study_instance_uid for each in late] == [first, third]


def test_studies_without_images_are_left_out(ward: Ward, uids: dict[str, str]) -> None:
    with ward.database.write() as connection:
        connection.execute(update(schema.study).values(purged_at=ward.now))

    assert [each for waits in WaitsForPerson for each in stuck_studies(ward.database, waits)] == []


def test_a_dry_run_lists_and_changes_nothing(
    config: Config, ward: Ward, uids: dict[str, str]
) -> None:
    done = retry(config, "--state", "held", "--dry-run")

    assert done.exit_code == 0
    assert uids["held"] in done.stdout
    assert "1 study waits for a person: held" in done.stdout
    assert states(ward, uids["held"]) == [StudyState.HELD]


def test_nothing_is_done_without_a_yes(config: Config, ward: Ward, uids: dict[str, str]) -> None:
    asked = retry(config, "--state", "held", answer="n\n")
    silent = retry(config, "--state", "held", answer="")

    assert "Try 1 study again?" in asked.stdout
    assert (asked.exit_code, silent.exit_code) == (1, 1)
    assert states(ward, uids["held"]) == [StudyState.HELD]


@pytest.mark.parametrize(("options", "answer"), [(["--yes"], None), ([], "y\n")])
def test_a_yes_sets_all_of_them_going_and_no_others(
    config: Config, ward: Ward, options: list[str], answer: str | None
) -> None:
    held = [ward.receive(f"{n}^A") for n in range(3)]
    unmatched = ward.receive("other^A")
    for uid in held:
        ward.hold(uid)
    ward.leave_unmatched(unmatched)

    done = retry(config, "--state", "held", *options, answer=answer)

    assert done.exit_code == 0
    assert "tried again: 3 of 3 studies" in done.stdout
    assert states(ward, *held) == [StudyState.COMPLETE] * 3
    assert states(ward, unmatched) == [StudyState.UNMATCHED]


@pytest.mark.parametrize(
    "since", ["1d", "2000-01-01", "2000-01-01T10:00", "2000-01-01T10:00+02:00"]
)
def test_since_takes_spans_and_instants(
    config: Config, ward: Ward, uids: dict[str, str], since: str
) -> None:
    done = retry(config, "--state", "failed", "--since", since, "--dry-run", "--json")

    found = [each["study_instance_uid"] for each in json.loads(done.stdout)]
    assert found == [uids["failed"]]


def test_since_leaves_out_what_waited_before(config: Config, ward: Ward, uids) -> None:
    done = retry(config, "--state", "failed", "--since", "2999-01-01", "--yes")

    assert "0 studies wait for a person: failed" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["1.2.3", "--state", "held"],
        ["1.2.3", "--dry-run"],
        ["1.2.3", "--yes"],
        ["1.2.3", "--since", "1d"],
        ["--state", "tired"],
        ["--state", "held", "--since", "soon"],
        ["--state", "held", "--json"],
    ],
    ids=" ".join,
)
def test_what_cannot_be_meant_is_refused(
    config: Config, ward: Ward, uids: dict[str, str], arguments: list[str]
) -> None:
    done = retry(config, *arguments)

    assert done.exit_code == 2
    assert states(ward, uids["held"]) == [StudyState.HELD]


def test_one_study_is_retried_as_before(config: Config, ward: Ward, uids: dict[str, str]) -> None:
    done = retry(config, uids["held"], "--json")

    answer = json.loads(done.stdout)
    assert (answer["completed_now"], answer["retried"]["prepared_again"]) == (False, True)
    assert states(ward, uids["held"]) == [StudyState.COMPLETE]


def undelivered(ward: Ward, film: Path) -> str:
    """Return a study whose report its archive rejected."""
    uid = ward.positive("rejected^A", present("Pneumonia"), patient_id="A")
    ward.compose(film)
    ward.deliver(uid, 0x0122, "SOP class not supported", times=3)
    return uid


def pending(ward: Ward, uid: str) -> int:
    deliveries = read_dossier(ward.database, uid).deliveries
    return sum(each.state is DeliveryState.PENDING for each in deliveries)


def test_a_report_that_a_later_one_replaced_is_not_sent_and_the_person_reads_why(
    config: Config, ward: Ward, testdata: Path
) -> None:
    film = testdata / "single/dx_image.dcm"
    uid = undelivered(ward, film)
    ward.receive("rejected^A", study=uid, first=2, patient_id="A")
    ward.route(uid, CXR)
    ward.analyse(CXR, present("Pneumonia"))
    ward.compose(film)
    ward.deliver(uid, 0x0000)

    many = retry(config, "--state", "undelivered", "--dry-run")
    one = retry(config, uid)

    assert "0 studies wait for a person: undelivered" in many.stdout
    assert f"{uid}: delivery 1 is not sent again: a later report went" in one.stdout
    assert "is tried again" not in one.stdout
    assert pending(ward, uid) == 0


def test_many_are_retried_and_none_is_completed_that_is_still_received(
    config: Config, ward: Ward, testdata: Path
) -> None:
    uid = undelivered(ward, testdata / "single/dx_image.dcm")
    ward.receive("rejected^A", study=uid, first=2, patient_id="A")

    done = retry(config, "--state", "undelivered", "--yes")

    assert done.exit_code == 0
    assert f"{uid}: it is still being received; 'medimgd retry {uid}' goes on" in done.stdout
    assert "tried again: 0 of 1 study" in done.stdout
    assert states(ward, uid) == [StudyState.RECEIVING]
    assert pending(ward, uid) == 0


@pytest.mark.parametrize("waits", ["undelivered", "held"])
def test_a_study_of_two_patients_stays_held_until_it_is_named(
    config: Config, ward: Ward, testdata: Path, waits: str
) -> None:
    uid = undelivered(ward, testdata / "single/dx_image.dcm")
    ward.receive("other^B", study=uid, first=2, patient_id="B")
    complete_due_studies(ward.database, CompletionRules(), ward.pass_time(600))

    done = retry(config, "--state", waits, "--yes")

    assert f"{uid}: it stays held (instances of more than one patient" in done.stdout
    assert states(ward, uid) == [StudyState.HELD]
    assert pending(ward, uid) == 2
    retry(config, uid)
    assert states(ward, uid) == [StudyState.COMPLETE]


def test_a_hold_ends_only_where_it_is_what_the_studies_wait_over(
    config: Config, ward: Ward, testdata: Path
) -> None:
    uid = undelivered(ward, testdata / "single/dx_image.dcm")
    ward.receive("rejected^A", study=uid, first=2, patient_id="A")
    ward.hold(uid)

    found = []
    for waits in ("undelivered", "held"):
        retry(config, "--state", waits, "--yes")
        found += states(ward, uid)

    assert found == [StudyState.HELD, StudyState.COMPLETE]
