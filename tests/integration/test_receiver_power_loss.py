"""Whatever the power does after a Success: the instance is on the disk, folders and all.

No test can switch the machine off; the order of the receiver's calls decides, and is held here
against a disk that keeps nothing but what was synced.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

import storage.incoming
import storage.spool
from daemon.indexing import IndexWriter
from storage.database import migrate, open_database
from storage.durable import sync_folder
from storage.reindexing import reindex
from storage.spool import Spool
from tests.power_loss import Disk
from tests.reception_here import ReceptionHere
from tests.senders import SUCCESS, Modality, Outgoing, instance

STUDY = "1.2.826.0.1.3680043.10.8"
SERIES = f"{STUDY}.1"
INSTANCE = instance(STUDY, SERIES, 1, b"\1\2" * 30_000)
SAME_UID = instance(STUDY, SERIES, 1, b"\3\4" * 30_000)
NEIGHBOUR = instance(STUDY, SERIES, 2, b"\5\6" * 30_000)
IN_ANOTHER_SERIES = instance(STUDY, f"{STUDY}.2", 1, b"\7\7" * 30_000)

Begin = Callable[[], int]


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch, tmp_path)


@pytest.fixture
def begin(tmp_path: Path, free_port: int) -> Iterator[Begin]:
    """Begin a receiver's life on the data folder and return its port; the one before ends."""
    (tmp_path / "data").mkdir()  # As the lock of the slot makes it: not synced.
    migrate(tmp_path / "data" / "medimgd.db")
    lives: list[ReceptionHere] = []

    def begin() -> int:
        for life in lives:
            life.end()
        lives.append(ReceptionHere(tmp_path / "data", free_port))
        return free_port

    yield begin
    for life in lives:
        life.end()


def send(port: int, *outgoing: Outgoing) -> None:
    with Modality(port) as modality:
        for each in outgoing:
            assert modality.send_instance(each) == SUCCESS


def is_on(survivors: dict[str, bytes], outgoing: Outgoing) -> bool:
    """True when a file below ``studies`` holds an instance to its last byte."""
    stem = f"/{outgoing.sop_instance_uid}."
    return any(
        path.startswith("data/spool/studies/") and stem in path
        and content.endswith(outgoing.data_set)
        for path, content in survivors.items()
    )  # fmt: skip


def test_every_kind_of_success_is_on_the_disk_before_it_is_said(disk: Disk, begin: Begin) -> None:
    sent = [INSTANCE, NEIGHBOUR, INSTANCE, SAME_UID, SAME_UID, IN_ANOTHER_SERIES]

    send(begin(), *sent)

    assert len(disk.at_answers) == len(sent)
    for number, survivors in enumerate(disk.at_answers):
        for earlier in sent[: number + 1]:
            assert is_on(survivors, earlier), f"{earlier.sop_instance_uid} at answer {number}"
    assert disk.unsynced_names == []


@pytest.mark.parametrize("left", ["folders", "the file as well"])
def test_what_a_predecessor_named_and_did_not_sync_is_synced_before_success(
    disk: Disk, begin: Begin, tmp_path: Path, left: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as without_sync:
        without_sync.setattr(storage.spool, "sync_folder", lambda folder: None)
        send(begin(), INSTANCE if left == "the file as well" else NEIGHBOUR)
    assert disk.survivors() == {}

    send(begin(), INSTANCE)

    assert is_on(disk.at_answers[-1], INSTANCE)


def test_what_is_indexed_again_is_on_the_disk_whoever_named_it(
    disk: Disk, begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as without_sync:
        without_sync.setattr(storage.spool, "sync_folder", lambda folder: None)
        without_sync.setattr(IndexWriter, "put", lambda index, report: None)
        send(begin(), INSTANCE)
    spool = Spool(tmp_path / "data" / "spool", 0)
    with closing(open_database(tmp_path / "data" / "medimgd.db")) as database:
        found = reindex(database, spool, datetime.now(UTC))

    assert found.recorded == 1
    assert is_on(disk.survivors(), INSTANCE)


def test_an_instance_in_folders_that_another_association_has_just_made_is_on_the_disk(
    disk: Disk, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_made, may_sync = threading.Event(), threading.Event()

    def sync_late(folder: str | Path) -> None:
        if threading.current_thread() is not first and not is_made.is_set():
            is_made.set()
            may_sync.wait(20)
        sync_folder(folder)

    port = begin()
    first = threading.current_thread()
    monkeypatch.setattr(storage.spool, "sync_folder", sync_late)
    monkeypatch.setattr("storage.durable.sync_folder", sync_late)
    other = threading.Thread(target=send, args=(port, NEIGHBOUR))
    other.start()
    try:
        assert is_made.wait(20)
        send(port, INSTANCE, IN_ANOTHER_SERIES)
        answers = list(disk.at_answers)
    finally:
        may_sync.set()
        other.join()

    assert is_on(answers[0], INSTANCE)
    assert is_on(answers[1], IN_ANOTHER_SERIES)


def test_a_folder_that_retention_removed_is_synced_again_when_it_is_made_again(
    disk: Disk, begin: Begin, tmp_path: Path
) -> None:
    port = begin()
    send(port, INSTANCE)
    series = tmp_path / "data" / "spool" / "studies" / STUDY / SERIES
    (series / f"{INSTANCE.sop_instance_uid}.dcm").unlink()
    series.rmdir()
    series.parent.rmdir()
    sync_folder(series.parents[1])

    send(port, NEIGHBOUR)

    assert is_on(disk.at_answers[-1], NEIGHBOUR)


@pytest.mark.parametrize(
    "place", ["storage.spool.sync_folder", "storage.incoming.os.fdatasync"], ids=["names", "bytes"]
)
def test_a_sync_that_is_left_out_is_seen(
    disk: Disk, begin: Begin, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    port = begin()
    monkeypatch.setattr(place, lambda target: None)

    send(port, INSTANCE)

    assert not is_on(disk.at_answers[0], INSTANCE)
    assert bool(disk.unsynced_names) == ("fdatasync" in place)
