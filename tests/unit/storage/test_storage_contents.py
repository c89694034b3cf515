"""Digests of contents: how they are made and written, and those of earlier versions."""

from __future__ import annotations

import errno
import hashlib
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from blake3 import blake3
from earlier_version import set_back, set_digest, sha256_of_content
from storage_hospital import (
    EXPLICIT_LITTLE,
    NOON,
    STUDY,
    Hospital,
    make_data_set,
    make_prefix,
    seconds,
)

from dicom_io.errors import UnreadableInstance
from storage import redigesting
from storage import spool as spool_module
from storage.arrivals import Arrival, StoreOutcome
from storage.completion import complete_now
from storage.contents import (
    ContentDigest,
    DigestAlgorithm,
    algorithm_of,
    content_digest,
    holds,
    short_form,
)
from storage.database import migrate, open_database
from storage.dossier import read_dossier
from storage.errors import SpoolFailure
from storage.preparation import Preparation, finish_preparation
from storage.reception import record_reports
from storage.recording import Recorded, record_instances
from storage.reindexing import reindex
from storage.results import results_awaiting_composition, withhold_result
from storage.retention import purge_finished_studies
from storage.spool import Spool
from storage.states import StudyState
from storage.studies import ConflictRecord, InstanceRecord, get_study

SOP = f"{STUDY}.1.1"
SEVENS = b"\7\7\7\7"
NINES = b"\x09\x09\x09\x09"
MUCH_LATER = NOON + seconds(40 * 86400)


def test_a_digest_names_its_algorithm_and_covers_transfer_syntax_and_data_set() -> None:
    whole = EXPLICIT_LITTLE.encode() + b"\0" + b"data set"
    digest, earlier = (ContentDigest(EXPLICIT_LITTLE, each) for each in ("blake3", "sha256"))

    for fragment in (b"data", b" ", b"set"):
        digest.update(memoryview(fragment))
        earlier.update(memoryview(fragment))

    assert digest.text() == f"blake3:{blake3(whole).hexdigest()}"
    assert earlier.text() == hashlib.sha256(whole).hexdigest()
    assert algorithm_of(digest.text()) is DigestAlgorithm.BLAKE3
    assert algorithm_of(earlier.text()) is DigestAlgorithm.SHA256
    assert short_form(digest.text()) == blake3(whole).hexdigest()[:12]
    assert short_form(earlier.text()) == earlier.text()[:12]


def test_a_digest_keeps_nothing_of_a_buffer_that_is_used_again() -> None:
    # Above the size from which the hash lets other threads run meanwhile.
    buffer = bytearray(b"a" * 100_000)
    digest, whole = ContentDigest(EXPLICIT_LITTLE), blake3(EXPLICIT_LITTLE.encode() + b"\0")
    for letter in (b"b", b"c"):
        whole.update(bytes(buffer))
        with memoryview(buffer) as view:
            digest.update(view[:60_000])
            digest.update(view[60_000:])
        buffer[:] = letter * 150_000

    assert digest.text() == f"blake3:{whole.hexdigest()}"


def test_a_file_is_compared_by_the_algorithm_that_the_record_names(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", min_free_bytes=0)
    stored = spool.store(make_prefix(SOP), make_data_set(SOP))
    earlier = sha256_of_content(EXPLICIT_LITTLE, make_data_set(SOP))

    assert content_digest(stored.path) == stored.content_digest
    assert content_digest(stored.path, DigestAlgorithm.SHA256) == earlier
    assert holds(stored.path, stored.content_digest)
    assert holds(stored.path, earlier)
    for other in (f"blake3:{earlier}", "0" * 64, stored.content_digest[7:], "blake9:00", ""):
        assert not holds(stored.path, other)
    stored.path.write_bytes(b"")
    assert not holds(stored.path, stored.content_digest)


@pytest.fixture
def updated(hospital: Hospital, database_path: Path) -> Callable[[], None]:
    """Make what the hospital holds an earlier version's, and start this one."""

    def update() -> None:
        hospital.database.close()
        set_back(database_path, hospital.spool)
        migrate(database_path)
        hospital.database = open_database(database_path)

    return update


def _instances(hospital: Hospital) -> list[InstanceRecord]:
    series = read_dossier(hospital.database, STUDY).series
    return [each for one in series for each in one.instances]


def _conflicts(hospital: Hospital) -> tuple[ConflictRecord, ...]:
    return read_dossier(hospital.database, STUDY).conflicts


def _files(hospital: Hospital) -> list[Path]:
    return list(hospital.spool.stored_instances())


def test_digests_of_before_are_kept_as_they_are(hospital, database_path, updated) -> None:
    hospital.arrive(1, 2)
    hospital.arrive(1, pixels=SEVENS)

    updated()

    assert [each.content_digest for each in _instances(hospital)] == [
        sha256_of_content(EXPLICIT_LITTLE, make_data_set(f"{STUDY}.1.{number}"))
        for number in (1, 2)
    ]
    (conflict,) = _conflicts(hospital)
    digest = sha256_of_content(EXPLICIT_LITTLE, make_data_set(SOP, pixels=SEVENS))
    assert conflict.content_digest == digest
    assert conflict.path.endswith(f"{SOP}.conflict-{digest[:12]}.dcm")
    with closing(sqlite3.connect(database_path)) as connection:
        same = "study_instance_uid, sop_instance_uid, content_digest, path, size, received_at"
        with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
            connection.execute(
                f"INSERT INTO instance_conflict ({same}) SELECT {same} FROM instance_conflict"
            )


@pytest.mark.parametrize("by_reception", [True, False])
def test_an_instance_that_an_earlier_version_recorded_is_known_when_it_comes_again(
    hospital, updated, by_reception: bool
) -> None:
    hospital.arrive(1, 2)
    updated()
    before, rows = get_study(hospital.database, STUDY), _instances(hospital)

    arrivals = [Arrival(hospital.store(number), "again") for number in (1, 2)]
    if by_reception:
        recorded = record_reports(hospital.database, arrivals, "receiver-1", NOON + seconds(5))
    else:
        recorded = record_instances(hospital.database, arrivals, NOON + seconds(5))

    assert [each.stored.outcome for each in arrivals] == [StoreOutcome.IDENTICAL] * 2
    assert recorded == Recorded(new=0, identical=2, conflicts=0, reopened=())
    assert (get_study(hospital.database, STUDY), _instances(hospital)) == (before, rows)
    complete_now(hospital.database, STUDY, NOON)
    assert get_study(hospital.database, STUDY).instance_set_digest == set_digest(
        [(each.sop_instance_uid, each.content_digest) for each in rows]
    )


def test_other_content_under_a_uid_of_an_earlier_version_is_a_conflict_once(
    hospital, updated
) -> None:
    hospital.arrive(1)
    updated()
    before = get_study(hospital.database, STUDY)

    for _ in range(2):
        hospital.arrive(1, pixels=SEVENS)

    assert get_study(hospital.database, STUDY) == replace(before, conflict_count=1)
    (conflict,) = _conflicts(hospital)
    assert hospital.spool.absolute(conflict.path).read_bytes().endswith(SEVENS)
    assert len(_files(hospital)) == 2


def test_a_conflict_that_an_earlier_version_kept_is_not_kept_twice(hospital, updated) -> None:
    hospital.arrive(1)
    hospital.arrive(1, pixels=SEVENS)
    updated()
    before, files = get_study(hospital.database, STUDY), _files(hospital)

    again = hospital.store(1, pixels=SEVENS)
    recorded = record_instances(hospital.database, [Arrival(again)], NOON)

    assert (again.outcome, again.path) == (StoreOutcome.CONFLICT, files[1])
    assert (recorded.conflicts, _files(hospital)) == (0, files)
    assert get_study(hospital.database, STUDY) == before
    assert list((hospital.spool.folder / "incoming").iterdir()) == []
    assert hospital.arrive(1, pixels=NINES).conflicts == 1
    assert len(_files(hospital)) == 3


def _finish(hospital: Hospital) -> None:
    complete_now(hospital.database, STUDY, NOON)
    outcome = Preparation(StudyState.UNMATCHED, "")
    finish_preparation(hospital.database, hospital.claim_study(), outcome, NOON)


@pytest.mark.parametrize(
    "damage", [None, b"", b"\0" * 200, make_prefix(SOP) + make_data_set(SOP, pixels=NINES)]
)
def test_a_conflict_of_an_earlier_version_that_its_disk_lost_is_made_whole_by_what_comes_again(
    hospital, updated, damage: bytes | None
) -> None:
    hospital.arrive(1)
    hospital.arrive(1, pixels=SEVENS)
    updated()
    lost = _files(hospital)[1]
    if damage is None:
        lost.unlink()  # by somebody who found it damaged
    else:
        lost.write_bytes(damage)

    recorded = hospital.arrive(1, pixels=SEVENS)

    (conflict,), (first, kept) = _conflicts(hospital), _files(hospital)
    assert (recorded.conflicts, get_study(hospital.database, STUDY).conflict_count) == (0, 1)
    assert hospital.spool.absolute(conflict.path) == kept
    assert kept.read_bytes().endswith(SEVENS)
    assert conflict.size == kept.stat().st_size
    assert first.read_bytes() == make_prefix(SOP) + make_data_set(SOP)
    assert list((hospital.spool.folder / "incoming").iterdir()) == []
    _finish(hospital)
    assert purge_finished_studies(hospital.database, hospital.spool, MUCH_LATER, older_than_days=30)
    assert _files(hospital) == []


def test_a_sound_conflict_of_an_earlier_version_is_not_overwritten_for_its_name(
    hospital, updated, monkeypatch
) -> None:
    hospital.arrive(1)
    hospital.arrive(1, pixels=SEVENS)
    updated()
    earlier = _files(hospital)[1]
    # As if the first digits of both digests were the same.
    monkeypatch.setattr(spool_module, "_earlier_conflict_name", lambda uid, path: earlier.name)

    assert hospital.arrive(1, pixels=NINES).conflicts == 1

    contents = {path.read_bytes()[-4:] for path in _files(hospital)[1:]}
    assert contents == {SEVENS, NINES}


def test_a_conflict_is_digested_as_an_earlier_version_did_only_beside_another_one(
    hospital, monkeypatch
) -> None:
    read = []
    named = spool_module._earlier_conflict_name

    def watched(instance: str, path: Path) -> str:
        read.append(path)
        return named(instance, path)

    monkeypatch.setattr(spool_module, "_earlier_conflict_name", watched)
    hospital.store(1)
    hospital.store(1, pixels=SEVENS)
    hospital.store(1, pixels=SEVENS)
    hospital.store(2)
    hospital.store(2, pixels=SEVENS)
    assert read == []

    hospital.store(1, pixels=NINES)
    assert len(read) == 1


def test_one_uid_in_two_series_stays_one_conflict(hospital, updated) -> None:
    hospital.arrive(1)
    hospital.arrive(1, series=f"{STUDY}.2")
    updated()
    before = get_study(hospital.database, STUDY)
    assert before.conflict_count == 1

    recorded = hospital.arrive(1, series=f"{STUDY}.2")

    assert (recorded.conflicts, get_study(hospital.database, STUDY)) == (0, before)


def test_a_spool_of_an_earlier_version_read_again_contradicts_no_row(hospital, updated) -> None:
    hospital.arrive(1, 2)
    hospital.arrive(1, pixels=SEVENS)
    unrecorded = [hospital.store(3), hospital.store(2, pixels=SEVENS)]
    updated()

    found = reindex(hospital.database, hospital.spool, NOON)
    again = [Arrival(hospital.spool.read_stored(path)) for path in _files(hospital)]
    recorded = record_instances(hospital.database, again, NOON)

    assert (found.files, found.recorded) == (5, len(unrecorded))
    assert recorded == Recorded(new=0, identical=5, conflicts=0, reopened=())
    assert get_study(hospital.database, STUDY).conflict_count == 2


def test_a_late_instance_of_a_study_of_an_earlier_version_is_digested_as_the_others(
    hospital, updated
) -> None:
    hospital.arrive(1)
    updated()

    hospital.arrive(2)
    for number in (1, 2):
        hospital.arrive(number, study="1.2.3")

    assert [algorithm_of(each.content_digest) for each in _instances(hospital)] == ["sha256"] * 2
    (series,) = read_dossier(hospital.database, "1.2.3").series
    assert [algorithm_of(each.content_digest) for each in series.instances] == ["blake3"] * 2


def test_a_study_of_an_earlier_version_removed_and_sent_again_is_not_analysed_twice(
    hospital, updated
) -> None:
    job = hospital.analyse()
    (result,) = results_awaiting_composition(hospital.database)
    withhold_result(hospital.database, result.id, "kept here", NOON)
    updated()
    assert purge_finished_studies(hospital.database, hospital.spool, MUCH_LATER, older_than_days=30)

    hospital.arrive(1, now=MUCH_LATER)
    complete_now(hospital.database, STUDY, MUCH_LATER)
    prepared = hospital.prepare(MUCH_LATER)

    assert prepared.job_ids == (job,)
    assert len(read_dossier(hospital.database, STUDY).jobs) == 1


def test_an_instance_whose_file_is_gone_is_left_out_of_a_study_of_an_earlier_version(
    hospital, updated
) -> None:
    hospital.analyse()
    (result,) = results_awaiting_composition(hospital.database)
    withhold_result(hospital.database, result.id, "kept here", NOON)
    updated()
    again = hospital.store(1)
    purge_finished_studies(hospital.database, hospital.spool, MUCH_LATER, older_than_days=30)

    recorded = record_instances(hospital.database, [Arrival(again)], MUCH_LATER)

    assert (recorded.new, recorded.identical, recorded.conflicts) == (0, 1, 0)
    assert _instances(hospital) == []


def _fail_to_read(monkeypatch, number: int, *names: str) -> None:
    """Let the disk fail whenever files of these names are digested as an earlier version did."""

    def digest(path: Path, algorithm: DigestAlgorithm) -> str:
        if path.name in names:
            raise OSError(number, "the machine failed", str(path))
        return content_digest(path, algorithm)

    monkeypatch.setattr(redigesting, "content_digest", digest)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.ESTALE, errno.ENOMEM])
def test_a_file_of_an_earlier_versions_study_that_cannot_be_read_now_is_recorded_later(
    hospital, updated, monkeypatch, number: int
) -> None:
    hospital.arrive(1)
    updated()
    before = read_dossier(hospital.database, STUDY)
    arrivals = [Arrival(hospital.store(each)) for each in (1, 2)]

    for arrival in arrivals:
        with monkeypatch.context() as patch:
            _fail_to_read(patch, number, arrival.stored.path.name)
            with pytest.raises(SpoolFailure, match=errno.errorcode[number]):
                record_reports(hospital.database, arrivals, "receiver-1", NOON)
        assert read_dossier(hospital.database, STUDY) == before
    recorded = record_reports(hospital.database, arrivals, "receiver-1", NOON)

    assert (recorded.new, recorded.identical, recorded.conflicts) == (1, 1, 0)
    assert [algorithm_of(each.content_digest) for each in _instances(hospital)] == ["sha256"] * 2


def test_a_file_damaged_before_its_digest_of_then_was_made_is_no_conflict(
    hospital, updated
) -> None:
    hospital.arrive(1)
    updated()
    before = read_dossier(hospital.database, STUDY)

    for number, damage in ((1, b""), (2, b""), (3, None)):
        stored = hospital.store(number)
        if damage is None:
            stored.path.unlink()  # new, so that it was not retention
        else:
            stored.path.write_bytes(damage)
        with pytest.raises(UnreadableInstance, match=stored.path.name):
            record_instances(hospital.database, [Arrival(stored)], NOON)

    assert read_dossier(hospital.database, STUDY) == before


@pytest.mark.parametrize("changes", [{}, {"pixels": SEVENS}])
def test_a_file_that_is_gone_since_it_came_again_contradicts_nothing(
    hospital, updated, changes: dict[str, bytes]
) -> None:
    hospital.arrive(1)
    hospital.arrive(1, **changes)
    updated()
    before = read_dossier(hospital.database, STUDY)
    again = hospital.store(1, **changes)
    again.path.unlink()

    recorded = record_instances(hospital.database, [Arrival(again)], NOON)

    assert recorded == Recorded(new=0, identical=1, conflicts=0, reopened=())
    assert read_dossier(hospital.database, STUDY) == before


def test_a_walk_goes_on_past_a_file_that_cannot_be_digested_as_then(
    hospital, updated, monkeypatch
) -> None:
    hospital.arrive(1)
    updated()
    unread, other = hospital.store(2), hospital.store(3)
    hospital.store(1, study="1.2.3")

    with monkeypatch.context() as patch:
        _fail_to_read(patch, errno.EIO, unread.path.name)
        found = reindex(hospital.database, hospital.spool, NOON)
    paths = {each.path for each in _instances(hospital)}
    again = reindex(hospital.database, hospital.spool, NOON)

    assert (found.recorded, found.unreadable) == (2, (unread.relative_path,))
    assert other.relative_path in paths
    assert (again.recorded, again.unreadable) == (1, ())
    assert get_study(hospital.database, STUDY).conflict_count == 0
