"""Places for open associations, alone and shared between the receivers of one host."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dicom_io.errors import ReceiverNotStarted
from dicom_io.receiving import shared_places
from dicom_io.receiving.limits import OpenAssociations, ReceiverLimits
from dicom_io.receiving.shared_places import Holder, SharedPlaces

FOUR = ReceiverLimits(maximum_associations=4, maximum_associations_per_address=3)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "locks" / "places"


def test_a_place_is_refused_with_the_setting_that_would_give_one() -> None:
    places = OpenAssociations(FOUR)
    for name in ("a", "b", "c"):
        assert places.enter(name, "10.0.0.1") == ""

    from_one_address = places.enter("d", "10.0.0.1")
    assert places.enter("e", "10.0.0.2") == ""
    in_all = places.enter("f", "10.0.0.3")

    assert "3 associations are open from 10.0.0.1" in from_one_address
    assert "maximum_associations_per_address" in from_one_address
    assert in_all.startswith("4 associations are open, the most allowed")
    assert len(places) == 4


def test_a_rule_may_admit_fewer_than_everyone_together() -> None:
    places = OpenAssociations(ReceiverLimits(maximum_associations=10))
    assert places.enter("a", "10.0.0.1", "CT1 from 10.0.0.0/8", 2) == ""
    assert places.enter("b", "10.0.0.2", "CT1 from 10.0.0.0/8", 2) == ""

    one_more = places.enter("c", "10.0.0.3", "CT1 from 10.0.0.0/8", 2)
    another_rule = places.enter("d", "10.0.0.3", "MR1 from 10.0.0.0/8", 2)

    assert "2 associations are open by the rule CT1 from 10.0.0.0/8" in one_more
    assert another_rule == ""


def test_a_place_given_back_can_be_taken_again() -> None:
    places = OpenAssociations(ReceiverLimits(maximum_associations=1))
    assert places.enter("a", "10.0.0.1") == ""
    assert places.enter("b", "10.0.0.1") != ""

    places.leave("a")
    places.leave("never entered")

    assert places.enter("b", "10.0.0.1") == ""


def test_two_receivers_hold_every_limit_together(path: Path) -> None:
    one, two = SharedPlaces(path), SharedPlaces(path)
    first, second = OpenAssociations(FOUR, one), OpenAssociations(FOUR, two)
    assert first.enter("a", "10.0.0.1") == ""
    assert second.enter("b", "10.0.0.1") == ""
    assert first.enter("c", "10.0.0.1") == ""

    from_one_address = second.enter("d", "10.0.0.1")
    assert second.enter("e", "10.0.0.2", "MR1", 1) == ""
    in_all = first.enter("f", "10.0.0.3")
    first.leave("a")
    by_rule = first.enter("g", "10.0.0.3", "MR1", 1)
    again = first.enter("h", "10.0.0.3")

    assert "3 associations are open from 10.0.0.1" in from_one_address
    assert in_all.startswith("4 associations are open")
    assert "by the rule MR1" in by_rule
    assert again == ""
    assert (len(first), len(second)) == (2, 2)
    one.close()
    two.close()


def test_the_places_of_a_receiver_that_ended_are_free(path: Path) -> None:
    one, two = SharedPlaces(path), SharedPlaces(path)
    first, second = OpenAssociations(FOUR, one), OpenAssociations(FOUR, two)
    for name in "abc":
        assert first.enter(name, "10.0.0.1") == ""
    assert second.enter("d", "10.0.0.1") != ""

    one.close()

    assert second.enter("d", "10.0.0.1") == ""
    two.close()


_HOLDS_THREE = """
import sys, time
from pathlib import Path
from dicom_io.receiving.limits import OpenAssociations, ReceiverLimits
from dicom_io.receiving.shared_places import SharedPlaces
held = OpenAssociations(ReceiverLimits(maximum_associations=4), SharedPlaces(Path(sys.argv[1])))
print([held.enter(name, "10.0.0.1") for name in "abc"], flush=True)
time.sleep(60)
"""


def test_the_places_of_a_killed_process_are_free_at_once(path: Path) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", _HOLDS_THREE, str(path)], stdout=subprocess.PIPE, text=True
    )
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == "['', '', '']\n"
        places = SharedPlaces(path)
        mine = OpenAssociations(ReceiverLimits(maximum_associations=4), places)
        assert mine.enter("d", "10.0.0.2") == ""
        assert mine.enter("e", "10.0.0.2") != ""

        other.send_signal(signal.SIGKILL)
        other.wait()

        assert [mine.enter(name, "10.0.0.2") for name in ("e", "f")] == ["", ""]
        places.close()


def test_never_more_than_the_limit_enter_however_many_ask_at_once(path: Path) -> None:
    limits = ReceiverLimits(maximum_associations=10, maximum_associations_per_address=10)
    shares = [SharedPlaces(path) for _ in range(3)]
    receivers = [OpenAssociations(limits, share) for share in shares]
    entered: list[str] = []

    def ask(number: int) -> None:
        if receivers[number % 3].enter(f"{number}", "10.0.0.1") == "":
            entered.append(f"{number}")

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(entered) == 10
    for share in shares:
        share.close()


def test_a_receiver_too_many_is_told_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_places, "MOST_PROCESSES", 2)
    shares = [SharedPlaces(path) for _ in range(2)]

    with pytest.raises(ReceiverNotStarted, match="2 receivers share"):
        SharedPlaces(path)

    shares.pop().close()
    shares.append(SharedPlaces(path))
    for share in shares:
        share.close()


def test_an_unusable_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "locks").write_text("a file where a folder should be")

    with pytest.raises(ReceiverNotStarted, match=r"cannot use .*locks/places"):
        SharedPlaces(tmp_path / "locks" / "places")


def test_a_broken_file_does_not_turn_peers_away(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    share = SharedPlaces(path)
    places = OpenAssociations(ReceiverLimits(maximum_associations=1), share)
    os.close(share._file)

    assert places.enter("a", "10.0.0.1") == ""
    assert places.enter("b", "10.0.0.1") != ""
    places.leave("a")

    assert [record.action for record in caplog.records] == ["places not shared"]


def test_a_receiver_that_starts_while_another_looks_round_is_counted(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given the region of a receiver that ended, and another that looks at it
    one, ended = SharedPlaces(path), SharedPlaces(path)
    ended.close()
    is_locked, successors = shared_places._is_locked, []

    def successor_starts_meanwhile(descriptor: int, at: int) -> bool:
        was_locked = is_locked(descriptor, at)
        if not was_locked and not successors:
            successors.append(SharedPlaces(path))
        return was_locked

    # when its successor takes the region between the look and what follows from it
    monkeypatch.setattr(shared_places, "_is_locked", successor_starts_meanwhile)
    assert one.others_at_work(11112, 2) == []

    # then the successor counts
    (successor,) = successors
    assert OpenAssociations(FOUR, successor).enter("a", "10.0.0.1") == ""
    successor.announce(11112, 1)
    assert [each.connections for each in one.others_at_work(11112, 2)] == [1]
    with one.exclusively():
        assert one.tally_of_others(Holder("10.0.0.1")).in_all == 1
    one.close()
    successor.close()


def test_nothing_is_written_once_the_places_are_given_back(
    path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    share, other = SharedPlaces(path), SharedPlaces(path)
    places = OpenAssociations(FOUR, share)
    assert places.enter("a", "10.0.0.1") == ""
    descriptor = share._file

    share.close()
    with (tmp_path / "an instance").open("w+b") as instance:
        # The number was free, so that the next file has it.
        assert instance.fileno() == descriptor
        places.leave("a")
        share.announce(11112, 1)
        assert places.enter("b", "10.0.0.1") == ""
        share.close()

        assert instance.read() == b""
    assert share.others_at_work(11112, 2) == []
    assert other.others_at_work(11112, 2) == []
    assert caplog.records == []
    other.close()


def test_taking_a_place_is_quick_beside_busy_receivers(path: Path) -> None:
    limits = ReceiverLimits(maximum_associations=1000, maximum_associations_per_address=1000)
    shares = [SharedPlaces(path) for _ in range(4)]
    receivers = [OpenAssociations(limits, share) for share in shares]
    for number in range(200):
        assert receivers[number % 4].enter(f"{number}", f"10.0.0.{number % 50}") == ""

    seconds = []
    for number in range(200):
        started = time.perf_counter()
        assert receivers[0].enter(f"more {number}", "10.0.0.1") == ""
        receivers[0].leave(f"more {number}")
        seconds.append(time.perf_counter() - started)

    # The middle one, so that a busy machine does not decide: 0.1 ms where this was written.
    assert sorted(seconds)[100] < 0.001
    with shares[0].exclusively():
        assert shares[0].tally_of_others(Holder("10.0.0.1")).in_all == 150
    for share in shares:
        share.close()
