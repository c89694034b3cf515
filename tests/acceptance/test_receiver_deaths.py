"""A receiver that dies before each single step of its work, one after the other, none left out.

What random kills meet by luck is met here by counting: a first life says which steps an instance
takes, and then there is one life for each of them that ends just before it.
"""

from __future__ import annotations

import shutil
import signal
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import pytest

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
from tests.upper_layer import LAST_COMMAND, message, p_data, pdv, store_request

STUDY = "1.2.826.0.1.3680043.10.7"
SERIES = f"{STUDY}.1"
INSTANCE = instance(STUDY, SERIES, 1, b"\1\2" * 20_000)
SAME_UID = instance(STUDY, SERIES, 1, b"\3\4" * 20_000)
NEIGHBOUR = instance(STUDY, SERIES, 2, b"\5\6" * 20_000)

Step = tuple[str, int]

EVERY_TIME = {
    *("open", "write", "sync data", "move"),
    *("answer", "index", "insert rows", "commit rows"),
}


class Ward:
    """One installation whose data folder is put back after every death."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.ledger = Ledger()
        self._data = site.config.site.data_folder
        self._kept = site.folder / "kept"

    def keep(self) -> None:
        """Remember the data folder as it is now; nobody may use it."""
        shutil.copytree(self._data, self._kept)

    def put_back(self) -> None:
        """Make the data folder what it was when it was kept."""
        shutil.rmtree(self._data, ignore_errors=True)
        if self._kept.exists():
            shutil.copytree(self._kept, self._data)

    def live(self, *outgoing: Outgoing) -> None:
        """Let a receiver take these and end in order."""
        self.site.begin()
        self.site.await_listening()
        for each in outgoing:
            assert self.send(each)
        assert self.site.stop() == 0

    def send(self, outgoing: Outgoing) -> bool:
        """Send one instance; False when the receiver died over it."""
        self.ledger.note_sending(outgoing)
        try:
            with Modality(self.site.port) as modality:
                assert modality.send_instance(outgoing) == SUCCESS
                self.ledger.note_acknowledged(outgoing)
                return True
        except ConnectionError:
            return False

    def steps_of(self, act: Callable[[], object]) -> list[Step]:
        """Let a receiver live through `act` and return the steps it took, orderly end included."""
        log = self.site.folder / "steps"
        self.site.begin(steps={"log": str(log)})
        act()
        assert self.site.stop() == 0
        found = [line.split(",") for line in log.read_text().splitlines()]
        return [(name, int(number)) for name, number in found]

    def die_before(self, step: Step, act: Callable[[], object], sabotage: str = "") -> None:
        """Let a receiver live through `act` until just before a step."""
        self.site.begin(steps={"die": step}, sabotage=sabotage or None)
        act()
        assert self.site.await_death() == -signal.SIGKILL

    def expect_exactly(self, outgoing: Sequence[Outgoing]) -> None:
        """Hold that these, and nothing else, are stored, known to the index, and not half."""
        present = self.ledger.judge(self.site.spool, again=True)
        assert present == {each.file_digest for each in outgoing}
        assert len(visible_files(self.site.spool)) == len(outgoing)
        assert self.rows() == {
            path.relative_to(self.site.spool).as_posix() for path in visible_files(self.site.spool)
        }
        left = temporary_files(self.site.spool)
        assert not left, f"{len(left)} temporary files are left"

    def rows(self) -> set[str]:
        query = "SELECT path FROM instance UNION ALL SELECT path FROM instance_conflict"
        with closing(sqlite3.connect(self.site.config.database_path)) as connection:
            paths = [path for (path,) in connection.execute(query)]
        assert len(paths) == len(set(paths))
        return set(paths)


@pytest.mark.parametrize(
    ("before", "sent", "steps"),
    [
        pytest.param([], INSTANCE, {"make folder", "sync folder"}, id="new"),
        pytest.param([INSTANCE], NEIGHBOUR, {"sync folder"}, id="new in a known series"),
        pytest.param([INSTANCE], INSTANCE, {"sync folder", "unlink"}, id="identical"),
        pytest.param([INSTANCE], SAME_UID, {"sync folder", "unlink"}, id="conflict"),
        pytest.param(
            [INSTANCE, SAME_UID], SAME_UID, {"sync folder", "unlink"}, id="the same conflict"
        ),
    ],
)
def test_a_death_before_any_step_of_an_instance_costs_nothing_but_another_try(
    make_site: Callable[..., Site], before: list[Outgoing], sent: Outgoing, steps: set[str]
) -> None:
    ward = Ward(make_site())
    ward.live(*before)
    ward.keep()

    def receive() -> None:
        ward.site.await_listening()
        # The look at the spool that goes with a start might meet the instance too, in one life and
        # not in another, and take steps of its own over it.
        ward.site.await_indexed()
        ward.send(sent)

    taken = ward.steps_of(receive)

    assert {name for name, _ in taken} == EVERY_TIME | steps
    for step in taken:
        ward.put_back()
        ward.ledger = Ledger()
        for each in before:
            ward.ledger.note_sending(each)
            ward.ledger.note_acknowledged(each)
        ward.die_before(step, receive)
        ward.ledger.judge(ward.site.spool)
        ward.live(sent)
        ward.expect_exactly(list({each.file_digest: each for each in (*before, sent)}.values()))


def leave_much_undone(ward: Ward) -> None:
    """Die with half an instance on disk, an open association, and an instance not yet indexed."""
    site = ward.site
    site.begin()
    site.await_listening()
    with Modality(site.port) as half:
        command = store_request(NEIGHBOUR.sop_instance_uid)
        half.send(p_data(pdv(1, LAST_COMMAND, command)))
        half.send(p_data(*message(1, command, NEIGHBOUR.data_set)[1:2]))
        is_written = time.monotonic() + 20
        while not temporary_files(site.spool) or not open_associations(site.config.database_path):
            assert time.monotonic() < is_written
            time.sleep(0.01)
        assert ward.send(INSTANCE)
        site.kill()
    assert temporary_files(site.spool)
    assert ward.rows() == set()


def open_associations(database: Path) -> int:
    with closing(sqlite3.connect(database)) as connection:
        query = "SELECT count(*) FROM association WHERE closed_at IS NULL"
        return int(connection.execute(query).fetchone()[0])


def test_a_death_before_any_step_of_settling_leaves_it_to_the_next_start(
    make_site: Callable[..., Site],
) -> None:
    ward = Ward(make_site())
    leave_much_undone(ward)
    ward.keep()

    def settle() -> None:
        ward.site.await_listening()
        deadline = time.monotonic() + 20
        while not ward.rows():
            assert time.monotonic() < deadline
            time.sleep(0.005)

    taken = ward.steps_of(settle)

    steps = {name for name, _ in taken}
    assert steps == {"unlink", "close associations", "sync folder", "index again"}
    for step in taken:
        ward.put_back()
        ward.die_before(step, lambda: None)
        ward.ledger.judge(ward.site.spool)
        ward.site.begin()
        settle()
        assert ward.site.stop() == 0
        ward.expect_exactly([INSTANCE])
        assert open_associations(ward.site.config.database_path) == 0


@pytest.mark.parametrize(
    ("broken", "step", "seen"),
    [
        ("name before the data", ("sync folder", 1), "half a file is visible"),
        ("acknowledge before the move", ("move", 1), "acknowledged instances are lost"),
        ("write in the open", ("move", 1), "not the final name"),
    ],
)
def test_a_promise_broken_for_one_step_is_seen(
    make_site: Callable[..., Site], broken: str, step: Step, seen: str
) -> None:
    ward = Ward(make_site())

    def receive() -> None:
        ward.site.await_listening()
        ward.send(INSTANCE)

    ward.die_before(step, receive, broken)
    with pytest.raises(AssertionError, match=seen):
        ward.ledger.judge(ward.site.spool)
