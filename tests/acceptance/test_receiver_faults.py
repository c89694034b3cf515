"""Limits that the kernel itself puts on a receiver, taken away again: it goes on by itself."""

from __future__ import annotations

import resource
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from dicom_io.statuses import StoreStatusValues
from tests.receiver_lives import Site
from tests.senders import (
    SUCCESS,
    Ledger,
    Modality,
    Outgoing,
    instance,
    temporary_files,
    visible_files,
)

OUT_OF_RESOURCES = int(StoreStatusValues.OUT_OF_RESOURCES)
STUDY = "1.2.826.0.1.3680043.10.11"
LARGEST_FILE = 8 * 1024 * 1024
"""Room for the database and its journal."""


def outgoing(number: int, size: int) -> Outgoing:
    return instance(STUDY, f"{STUDY}.1", number, bytes([number]) * size)


def send(modality: Modality, ledger: Ledger, each: Outgoing) -> int:
    ledger.note_sending(each)
    status = modality.send_instance(each)
    if status == SUCCESS:
        ledger.note_acknowledged(each)
    return status


def limit(pid: int, what: int, soft: int) -> int:
    """Set a limit of another process; return what it was."""
    before, hard = resource.prlimit(pid, what)
    resource.prlimit(pid, what, (soft, hard))
    return before


def test_an_instance_too_large_for_the_file_system_is_answered_and_leaves_nothing(
    make_site: Callable[..., Site],
) -> None:
    site, ledger = make_site(), Ledger()
    pid = site.begin()
    site.await_listening()
    small, large, last = outgoing(1, 1000), outgoing(2, LARGEST_FILE), outgoing(3, 1000)

    with Modality(site.port, timeout_seconds=60) as modality:
        before = limit(pid, resource.RLIMIT_FSIZE, LARGEST_FILE)
        limited = [send(modality, ledger, each) for each in (small, large, last)]
        left = temporary_files(site.spool)
        present = ledger.judge(site.spool)
        limit(pid, resource.RLIMIT_FSIZE, before)
        unlimited = send(modality, ledger, large)
        modality.release()

    assert limited == [SUCCESS, OUT_OF_RESOURCES, SUCCESS]
    assert left == []
    assert present == {small.file_digest, last.file_digest}
    assert unlimited == SUCCESS
    assert site.stop() == 0
    assert len(ledger.judge(site.spool, again=True)) == 3
    assert "(EFBIG)" in site.log()


def test_a_receiver_out_of_descriptors_answers_and_goes_on_when_there_are_some(
    make_site: Callable[..., Site],
) -> None:
    site, ledger = make_site(), Ledger()
    pid = site.begin()
    site.await_listening()
    first, second = outgoing(1, 1000), outgoing(2, 1000)

    with Modality(site.port, timeout_seconds=60) as modality:
        assert send(modality, ledger, first) == SUCCESS
        before = limit(pid, resource.RLIMIT_NOFILE, 3)
        limited = send(modality, ledger, second)
        left = temporary_files(site.spool), len(visible_files(site.spool))
        limit(pid, resource.RLIMIT_NOFILE, before)
        unlimited = send(modality, ledger, second)
        modality.release()

    assert limited == OUT_OF_RESOURCES
    assert left == ([], 1)
    assert unlimited == SUCCESS
    assert site.stop() == 0
    assert len(ledger.judge(site.spool, again=True)) == 2


def test_a_database_that_cannot_grow_stops_nobody_from_being_stored(
    make_site: Callable[..., Site],
) -> None:
    site, ledger = make_site(), Ledger()
    pid = site.begin()
    site.await_listening()
    sent = [outgoing(number, 1000) for number in range(1, 6)]

    with Modality(site.port, timeout_seconds=60) as modality:
        # No file may grow beyond what an instance takes: the journal of the database is larger.
        before = limit(pid, resource.RLIMIT_FSIZE, 16 * 1024)
        statuses = [send(modality, ledger, each) for each in sent]
        site.await_that(lambda: "the index waits" in site.log(), "the fault to be noticed")
        limit(pid, resource.RLIMIT_FSIZE, before)
        site.await_that(lambda: "the index goes on" in site.log(), "the index to be written")
        modality.release()

    assert statuses == [SUCCESS] * len(sent)
    assert site.stop() == 0
    assert len(ledger.judge(site.spool, again=True)) == len(sent)
    assert _indexed(site.config.database_path) == len(sent)


def _indexed(database: Path) -> int:
    with closing(sqlite3.connect(database)) as connection:
        return int(connection.execute("SELECT count(*) FROM instance").fetchone()[0])
