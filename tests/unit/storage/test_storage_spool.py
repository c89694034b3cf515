"""The spool: names, identity, conflicts, and nothing left behind by what failed."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from storage_hospital import STUDY, make_data_set, make_prefix

import storage.durable
import storage.incoming
import storage.spool
from dicom_io.errors import InvalidUID, UnreadableInstance
from storage.arrivals import StoreOutcome
from storage.contents import content_digest, short_form
from storage.durable import move_without_replacing, start_writing
from storage.errors import SpoolFailure, SpoolFull
from storage.removal import remove_set_aside, set_aside
from storage.spool import Spool

SOP = f"{STUDY}.1.1"


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool", min_free_bytes=0)


def _files(spool: Spool) -> list[str]:
    found = (path for path in spool.folder.rglob("*") if path.is_file())
    return sorted(path.relative_to(spool.folder).as_posix() for path in found)


def test_an_instance_is_stored_byte_for_byte_under_its_uids(spool: Spool) -> None:
    prefix, data_set = make_prefix(SOP), make_data_set(SOP)

    stored = spool.store(prefix, memoryview(data_set))

    assert stored.outcome is StoreOutcome.NEW
    assert stored.relative_path == f"studies/{STUDY}/{STUDY}.1/{SOP}.dcm"
    assert stored.path.read_bytes() == prefix + data_set
    assert stored.size == len(prefix + data_set)
    assert stored.header.sop_instance_uid == SOP
    assert _files(spool) == [stored.relative_path]


def test_the_same_instance_again_changes_nothing_even_from_another_sender(spool: Spool) -> None:
    first = spool.store(make_prefix(SOP), make_data_set(SOP))
    before = first.path.stat()

    again = spool.store(make_prefix(SOP, ae="OTHER_AND_LONGER"), make_data_set(SOP))

    assert again.outcome is StoreOutcome.IDENTICAL
    assert (again.path, again.content_digest) == (first.path, first.content_digest)
    assert first.path.stat().st_ino == before.st_ino
    assert _files(spool) == [first.relative_path]


def test_other_content_of_the_same_size_is_kept_beside_and_only_once(spool: Spool) -> None:
    first = spool.store(make_prefix(SOP), make_data_set(SOP, pixels=b"\1\2\3\4"))
    original = first.path.read_bytes()

    other = spool.store(make_prefix(SOP), make_data_set(SOP, pixels=b"\4\3\2\1"))
    spool.store(make_prefix(SOP), make_data_set(SOP, pixels=b"\4\3\2\1"))

    assert other.outcome is StoreOutcome.CONFLICT
    assert other.path.name == f"{SOP}.conflict-{short_form(other.content_digest)}.dcm"
    assert first.path.read_bytes() == original
    assert other.path.read_bytes().endswith(b"\4\3\2\1")
    assert len(_files(spool)) == 2


def test_the_same_bytes_in_another_transfer_syntax_are_other_content(spool: Spool) -> None:
    data_set = make_data_set(SOP)
    first = spool.store(make_prefix(SOP), data_set)

    other = spool.store(make_prefix(SOP, "1.2.840.10008.1.2.4.70"), data_set)

    assert other.outcome is StoreOutcome.CONFLICT
    assert other.content_digest != first.content_digest


def test_what_validate_raises_is_passed_on_and_nothing_is_stored(spool: Spool) -> None:
    def disagree(header) -> None:
        raise UnreadableInstance(f"command names another instance than {header.sop_instance_uid}")

    with pytest.raises(UnreadableInstance, match="another instance"):
        spool.store(make_prefix(SOP), make_data_set(SOP), disagree)

    assert _files(spool) == []


@pytest.mark.parametrize("uid", ["../../etc/passwd", "1.2/3", "", "1.2." + "3" * 64, "..", "1..2"])
@pytest.mark.parametrize("which", ["study", "series", "sop"])
def test_a_uid_that_is_none_never_becomes_a_path(spool: Spool, which: str, uid: str) -> None:
    sop = uid if which == "sop" else SOP
    changes = {} if which == "sop" else {which: uid}

    with pytest.raises((InvalidUID, UnreadableInstance)) as caught:
        spool.store(make_prefix(SOP), make_data_set(sop, **changes))

    # What is no UID at all may be anything, a name in the wrong place too.
    assert "passwd" not in str(caught.value)

    assert _files(spool) == []
    assert sorted(path.name for path in spool.folder.parent.iterdir()) == ["spool"]


def test_what_the_disk_damaged_is_kept_and_does_not_bar_the_instance_that_comes_again(
    spool: Spool,
) -> None:
    damaged = spool.store(make_prefix(SOP), make_data_set(SOP)).path
    damaged.write_bytes(b"")

    again = spool.store(make_prefix(SOP), make_data_set(SOP))

    assert again.outcome is StoreOutcome.CONFLICT
    assert again.path.read_bytes() == make_prefix(SOP) + make_data_set(SOP)
    assert damaged.read_bytes() == b""
    again.path.write_bytes(again.path.read_bytes()[:-1])
    with pytest.raises(SpoolFailure, match="damaged: move it away"):
        spool.store(make_prefix(SOP), make_data_set(SOP))


def test_an_unreadable_data_set_leaves_nothing_behind(spool: Spool) -> None:
    with pytest.raises(UnreadableInstance) as caught:
        spool.store(make_prefix(SOP), b"\xff\xff not DICOM")

    assert _files(spool) == []
    # The sender sees 64 characters of it: what is wrong, not where we had put it.
    assert ".part" not in str(caught.value)


def test_below_the_watermark_nothing_is_accepted(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", min_free_bytes=1 << 60)

    assert not spool.has_room()
    with pytest.raises(SpoolFull, match="free space") as caught:
        spool.store(make_prefix(SOP), make_data_set(SOP))

    assert caught.value.retryable
    assert _files(spool) == []


def test_a_size_that_would_pass_the_watermark_is_refused_beforehand(spool: Spool) -> None:
    assert spool.has_room(1000)
    assert not spool.has_room(spool.free_bytes() * 2)


@pytest.mark.parametrize(
    ("number", "error"), [(errno.ENOSPC, SpoolFull), (errno.EIO, SpoolFailure)]
)
@pytest.mark.parametrize(
    "call", ["os.write", "os.fdatasync", "storage.spool.move_without_replacing"]
)
def test_a_disk_that_fails_is_reported_as_retryable_and_leaves_nothing(
    spool: Spool, monkeypatch, call, number, error
) -> None:
    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(call, fail)
    with pytest.raises(error, match=errno.errorcode[number]) as caught:
        spool.store(make_prefix(SOP), make_data_set(SOP))

    assert caught.value.retryable
    assert "Marked" not in str(caught.value)
    assert _files(spool) == []


def test_a_folder_that_cannot_be_synced_is_reported_and_the_next_try_makes_it_good(
    spool: Spool, monkeypatch
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", fail)
        with pytest.raises(SpoolFailure, match="EIO"):
            spool.store(make_prefix(SOP), make_data_set(SOP))
        with pytest.raises(SpoolFailure, match="EIO"):
            spool.store(make_prefix(SOP), make_data_set(SOP))

    again = spool.store(make_prefix(SOP), make_data_set(SOP))

    assert again.outcome is StoreOutcome.IDENTICAL
    assert again.path.read_bytes() == make_prefix(SOP) + make_data_set(SOP)
    assert _files(spool) == [again.relative_path]


def test_everything_is_synced_before_store_returns(spool: Spool, monkeypatch) -> None:
    steps: list[str] = []
    real_sync, real_move = os.fsync, storage.spool.move_without_replacing

    def sync(descriptor: int) -> None:
        target = Path(f"/proc/self/fd/{descriptor}").readlink()
        steps.append("sync " + target.relative_to(spool.folder).as_posix().split(".part")[0][:24])
        real_sync(descriptor)

    def move(source: Path, target: Path) -> None:
        steps.append("move")
        real_move(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "fdatasync", sync)
    monkeypatch.setattr(storage.spool, "move_without_replacing", move)
    spool.store(make_prefix(SOP), make_data_set(SOP))

    assert steps[0].startswith("sync incoming/receiver.")
    # The first try finds no folder. After the second the name is synced into its folder, and the
    # folders that were made into their parents.
    way = [f"sync studies/{STUDY}"[:29], f"sync studies/{STUDY}"[:29], "sync studies"]
    assert steps[1:] == ["move", "move", *way]


@pytest.mark.parametrize("name", ["renameat2", None])
def test_a_move_never_replaces_whatever_this_system_offers(tmp_path, monkeypatch, name) -> None:
    if name is None:
        monkeypatch.setattr(storage.durable, "_renameat2_call", None)
    source, target, taken = (tmp_path / each for each in ("source", "target", "taken"))
    source.write_bytes(b"new")
    taken.write_bytes(b"old")

    with pytest.raises(FileExistsError):
        move_without_replacing(source, taken)
    assert (source.read_bytes(), taken.read_bytes()) == (b"new", b"old")
    with pytest.raises(FileNotFoundError):
        move_without_replacing(source, tmp_path / "nowhere" / "target")

    move_without_replacing(source, target)

    assert target.read_bytes() == b"new"
    assert not source.exists()


def test_a_large_instance_is_synced_as_it_grows_and_stops_at_the_watermark(
    spool: Spool, monkeypatch
) -> None:
    monkeypatch.setattr(storage.incoming, "SYNC_EVERY_BYTES", 1000)
    synced: list[int] = []
    real_sync = os.fdatasync

    def sync(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_size)
        real_sync(descriptor)

    monkeypatch.setattr(os, "fdatasync", sync)
    incoming = spool.begin(make_prefix(SOP), "1.2.840.10008.1.2.1")
    for _ in range(4):
        incoming.write(memoryview(bytes(600)))
    assert len(synced) == 2

    spool.min_free_bytes = 1 << 60
    incoming.write(memoryview(bytes(600)))
    with pytest.raises(SpoolFull):
        incoming.write(memoryview(bytes(600)))
    incoming.discard()

    assert _files(spool) == []


def test_the_disk_begins_to_write_while_an_instance_arrives(spool: Spool, monkeypatch) -> None:
    monkeypatch.setattr(storage.incoming, "START_WRITING_EVERY_BYTES", 1000)
    began_at: list[int] = []

    def start(descriptor: int) -> None:
        began_at.append(os.fstat(descriptor).st_size)
        start_writing(descriptor)

    monkeypatch.setattr(storage.incoming, "start_writing", start)
    incoming = spool.begin(make_prefix(SOP), "1.2.840.10008.1.2.1")
    head = len(make_prefix(SOP))
    for _ in range(5):
        incoming.write(memoryview(bytes(600)))
    incoming.discard()

    assert began_at == [head + 1200, head + 2400]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_to_begin_is_a_disk_that_fails(spool: Spool, monkeypatch, number) -> None:
    monkeypatch.setattr(storage.incoming, "START_WRITING_EVERY_BYTES", 1)
    monkeypatch.setattr(storage.durable, "_sync_file_range_call", failing_with(number))

    with pytest.raises(SpoolFailure, match=errno.errorcode[number]):
        spool.store(make_prefix(SOP), make_data_set(SOP))

    assert _files(spool) == []


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM, errno.EINVAL, errno.ESPIPE, None])
def test_a_system_that_cannot_begin_early_stores_all_the_same(
    spool: Spool, monkeypatch, number
) -> None:
    call = None if number is None else failing_with(number)
    monkeypatch.setattr(storage.incoming, "START_WRITING_EVERY_BYTES", 1)
    monkeypatch.setattr(storage.durable, "_sync_file_range_call", call)

    stored = spool.store(make_prefix(SOP), make_data_set(SOP))

    assert stored.path.read_bytes() == make_prefix(SOP) + make_data_set(SOP)


def failing_with(number: int) -> Callable[..., int]:
    """Return a call of the C library that fails."""

    def call(*_: object) -> int:
        ctypes.set_errno(number)
        return -1

    return call


def test_threads_storing_one_uid_agree_on_a_single_winner(spool: Spool) -> None:
    contents = [make_data_set(SOP, pixels=bytes([each % 2]) * 4) for each in range(16)]
    outcomes: list[StoreOutcome] = []
    barrier = threading.Barrier(len(contents))

    def store(data_set: bytes) -> None:
        barrier.wait()
        outcomes.append(spool.store(make_prefix(SOP), data_set).outcome)

    threads = [threading.Thread(target=store, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert outcomes.count(StoreOutcome.NEW) == 1
    assert outcomes.count(StoreOutcome.IDENTICAL) == 7
    assert outcomes.count(StoreOutcome.CONFLICT) == 8
    assert len(_files(spool)) == 2


def test_stored_files_are_found_again_with_what_store_said_of_them(spool: Spool) -> None:
    first = spool.store(make_prefix(SOP), make_data_set(SOP))
    other = spool.store(make_prefix(SOP), make_data_set(SOP, pixels=b"\7\7\7\7"))
    (spool.folder / "studies" / "lost+found").mkdir()

    found = [spool.read_stored(path) for path in spool.stored_instances()]

    assert found == [first, other]
    assert content_digest(first.path) == first.content_digest


def test_a_stored_file_that_lost_its_head_is_unreadable(spool: Spool) -> None:
    stored = spool.store(make_prefix(SOP), make_data_set(SOP))
    stored.path.write_bytes(b"")

    with pytest.raises(UnreadableInstance):
        spool.read_stored(stored.path)
    with pytest.raises(UnreadableInstance):
        content_digest(stored.path)


def test_sweeping_removes_what_dead_receivers_left_and_nothing_else(tmp_path: Path) -> None:
    incoming = tmp_path / "spool" / "incoming"
    incoming.mkdir(parents=True)
    here, now = re.sub(r"[^A-Za-z0-9_-]", "-", os.uname().nodename), time.time()

    def part(name: str, age_seconds: float) -> Path:
        path = incoming / name
        path.touch()
        os.utime(path, (now - age_seconds, now - age_seconds))
        return path

    abandoned = {
        part(f"receiver-0.{here}.1.aa.part", 60),
        part(f"receiver-0.{here}.{os.getpid()}.ab.part", 60),
        part(f"receiver-1.{here}.999999999.bb.part", -60),
        # The clock was set back since its process died.
        part(f"receiver-0.{here}.999999999.bc.part", -60),
        part("receiver-0.elsewhere.999999999.cc.part", 90_000),
    }
    spool = Spool(tmp_path / "spool", min_free_bytes=0, slot="receiver-0")
    in_use = {
        part(f"receiver-1.{here}.1.dd.part", 60),
        part(f"receiver-0.{here}.{os.getpid()}.ee.part", -60),
        part("receiver-0.elsewhere.999999999.ff.part", 60),
        part("notes.txt", 90_000),
    }

    swept = spool.sweep_incoming()

    assert swept == len(abandoned)
    assert set(incoming.iterdir()) == in_use


def test_removing_files_frees_their_folders_and_keeps_their_neighbours(spool: Spool) -> None:
    gone = spool.store(make_prefix(SOP), make_data_set(SOP))
    sop = f"{STUDY}.2.1"
    stays = spool.store(make_prefix(sop), make_data_set(sop, series=f"{STUDY}.2"))

    paths = [gone.relative_path, "studies/1.2/3.4/5.6.dcm"]
    set_aside(spool, paths)
    assert _files(spool) == [f"removing/{gone.relative_path}", stays.relative_path]
    assert not gone.path.parent.exists()
    freed = remove_set_aside(spool, paths)

    assert freed == gone.size
    assert _files(spool) == [stays.relative_path]
    set_aside(spool, [stays.relative_path])
    assert remove_set_aside(spool, [stays.relative_path]) == stays.size
    assert list((spool.folder / "studies").iterdir()) == []


def test_removing_never_leaves_the_spool(spool: Spool, tmp_path: Path) -> None:
    outside = tmp_path / "precious"
    outside.touch()

    for path in ("../precious", "studies/../../precious", str(outside), "incoming/x"):
        for move in (set_aside, remove_set_aside):
            with pytest.raises(SpoolFailure, match="not a path of the spool"):
                move(spool, [path])

    assert outside.exists()


def test_a_spool_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SpoolFailure, match="create the spool"):
        Spool(tmp_path / "file" / "spool")


def test_a_series_is_synced_with_its_way_again_when_that_is_long_ago(
    spool: Spool, monkeypatch
) -> None:
    synced: list[str] = []
    real_sync = os.fsync

    def sync(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        real_sync(descriptor)

    monkeypatch.setattr(os, "fsync", sync)
    spool.store(make_prefix(SOP), make_data_set(SOP))
    spool.store(make_prefix(f"{SOP}.1"), make_data_set(f"{SOP}.1"))
    assert synced.count("studies") == 1

    # Retention and another receiver may have been here meanwhile.
    monkeypatch.setattr(storage.spool, "_REMEMBERED_SECONDS", 0.0)
    spool.store(make_prefix(f"{SOP}.2"), make_data_set(f"{SOP}.2"))

    assert synced.count("studies") == 2
    assert synced.count(STUDY) == 2
