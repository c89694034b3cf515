"""Receivers killed at hundreds of random moments: nothing acknowledged is lost, nothing half seen.

Every life is a fork that runs what ``medimgd run receiver`` runs, on the same data folder and port
as the one before. Modalities send all the time and send again what was not acknowledged.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field

import pytest

from tests.receiver_lives import Site
from tests.senders import Ledger, Senders, temporary_files, visible_files

KILLS = int(os.environ.get("MEDIMGD_TEST_KILLS", "200"))
"""For a night's run: ``MEDIMGD_TEST_KILLS=20000``."""
SEED = int(os.environ.get("MEDIMGD_TEST_SEED", "1"))
ASSOCIATIONS = 3
START_SECONDS = 0.09
"""About how long a life takes until it listens: one kill in four falls into it."""
SENDING_SECONDS = 0.06
PLACES = (
    "before the first answer",
    "within an instance",
    "between name and answer",
    "before the index",
)
SABOTAGED_KILLS = 60
"""A broken promise is seen within these, or the test is worth nothing."""
SETTLED_KILLS = 12
"""Enough to leave half files and instances without a row behind."""


@dataclass
class Campaign:
    """One series of lives and deaths, and where the deaths fell."""

    site: Site
    chance: random.Random
    slots: tuple[str, ...] = ("receiver-1",)
    sabotage: str | None = None
    ledger: Ledger = field(default_factory=Ledger)
    fell: Counter[str] = field(default_factory=Counter)
    answers_before: int = 0
    patience_seconds: float = 60

    def run(self, kills: int) -> None:
        """Kill so many times while modalities send, and judge the spool after each."""
        with Senders(self.site.port, self.ledger, ASSOCIATIONS, self.chance.randrange(10**6)):
            try:
                for slot in self.slots:
                    self._begin(slot)
                for number in range(kills):
                    self._kill_and_judge(self.slots[number % len(self.slots)])
            finally:
                self.site.kill_all()

    def finish(self) -> None:
        """Let one receiver live, settle and end in order; then everything must add up."""
        slot = self.slots[0]
        self._begin(slot)
        self.site.await_listening()
        self._await(lambda: self._rows() == self._files(), "the index to know every file")
        assert self.site.stop(slot) == 0
        self.ledger.judge(self.site.spool, again=True)
        left = temporary_files(self.site.spool)
        assert not left, f"{len(left)} temporary files are left"
        assert self._rows() == self._files()
        assert self._ask("PRAGMA integrity_check") == [("ok",)]
        assert self._ask("SELECT count(*) FROM association WHERE closed_at IS NULL") == [(0,)]

    def _begin(self, slot: str) -> None:
        self.site.begin(slot, sabotage=self.sabotage)

    def _kill_and_judge(self, slot: str) -> None:
        if self.chance.random() < 0.25:
            time.sleep(self.chance.uniform(0, START_SECONDS))
        else:
            before = self.ledger.answers
            self._await(lambda: self.ledger.answers > before, "an answer")
            time.sleep(self.chance.uniform(0, SENDING_SECONDS))
        assert self.site.kill(slot) == -signal.SIGKILL, self.site.log()[-4000:]
        present = self.ledger.judge(self.site.spool)
        self._note_where(len(present - self.ledger.acknowledged()))
        self._begin(slot)

    def _note_where(self, unanswered: int) -> None:
        answers = self.ledger.answers
        self.fell["before the first answer"] += answers == self.answers_before
        self.fell["within an instance"] += bool(temporary_files(self.site.spool))
        self.fell["between name and answer"] += bool(unanswered)
        self.fell["before the index"] += bool(self._files() - self._rows())
        self.answers_before = answers

    def _files(self) -> set[str]:
        spool = self.site.spool
        return {path.relative_to(spool).as_posix() for path in visible_files(spool)}

    def _rows(self) -> set[str]:
        paths = "SELECT path FROM instance UNION ALL SELECT path FROM instance_conflict"
        return {path for (path,) in self._ask(paths)}

    def _ask(self, query: str) -> list[tuple]:
        with closing(sqlite3.connect(self.site.config.database_path)) as connection:
            try:
                return connection.execute(query).fetchall()
            except sqlite3.OperationalError:
                return []  # Killed before the first migration was over.

    def _await(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + self.patience_seconds
        while not condition():
            assert time.monotonic() < deadline, f"waited for {what}:\n{self.site.log()[-4000:]}"
            time.sleep(0.001)


def test_a_receiver_killed_at_any_moment_loses_nothing_and_shows_nothing_half(
    make_site: Callable[..., Site],
) -> None:
    campaign = Campaign(make_site(), random.Random(SEED))

    campaign.run(KILLS)
    campaign.finish()

    print(f"{KILLS} kills, {campaign.ledger.answers} acknowledged; {dict(campaign.fell)}")
    assert campaign.ledger.answers > KILLS
    for where in PLACES:
        assert campaign.fell[where] > 0, f"no kill fell {where}: {campaign.fell}"


def test_one_of_two_receivers_killed_at_any_moment_loses_nothing_and_shows_nothing_half(
    make_site: Callable[..., Site],
) -> None:
    slots = ("receiver-1", "receiver-2")
    campaign = Campaign(make_site("processes = 2\n"), random.Random(SEED + 1), slots)

    campaign.run(KILLS // 5)
    campaign.finish()

    assert campaign.ledger.answers > KILLS // 5


@pytest.mark.parametrize(
    ("broken", "seen"),
    [
        ("name before the data", "half a file is visible"),
        ("write in the open", "half a file is visible|not the final name"),
        ("acknowledge before the move", "acknowledged instances are lost"),
        ("forget the file", "acknowledged instances are lost"),
    ],
)
def test_a_broken_promise_is_seen(make_site: Callable[..., Site], broken: str, seen: str) -> None:
    campaign = Campaign(make_site(), random.Random(SEED), sabotage=broken)

    with pytest.raises(AssertionError, match=seen):
        campaign.run(SABOTAGED_KILLS)


@pytest.mark.parametrize(
    ("broken", "seen"),
    [
        ("sweep nothing", "temporary files are left"),
        ("index nothing again", "waited for the index to know every file"),
    ],
)
def test_what_a_start_leaves_undone_is_seen(
    make_site: Callable[..., Site], broken: str, seen: str
) -> None:
    campaign = Campaign(make_site(), random.Random(SEED), sabotage=broken)
    campaign.run(SETTLED_KILLS)
    campaign.patience_seconds = 3

    with pytest.raises(AssertionError, match=seen):
        campaign.finish()
