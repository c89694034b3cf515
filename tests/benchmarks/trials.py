"""Trials: what one receiver did with what was sent to it, checked, and what that cost.

Owns the order of measuring and the proof that everything was stored. Must not know which receivers
are compared or what is sent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.benchmarks.consumption import processor_seconds
from tests.benchmarks.figures import median
from tests.benchmarks.material import StudyFiles
from tests.benchmarks.receivers import Running
from tests.benchmarks.senders import Sent

GIGABYTE = 1e9
_SETTLE_SECONDS = 30.0
_LOOK_EVERY_SECONDS = 0.02
_SAMPLE = 4
"""Files of each study whose data sets are compared byte by byte."""


@dataclass(frozen=True)
class Trial:
    """One round of sending to one receiver."""

    sent: Sent
    receiver_processor_seconds: float

    @property
    def rate(self) -> float:
        """Instances per second."""
        return self.sent.instances / self.sent.seconds


@dataclass
class Trials:
    """All rounds of one receiver in one column."""

    rounds: list[Trial] = field(default_factory=list)

    @property
    def rates(self) -> list[float]:
        return [each.rate for each in self.rounds]

    @property
    def rate(self) -> float:
        """The median of instances per second."""
        return median(self.rates)

    @property
    def megabytes_per_second(self) -> float:
        """The median of 10^6 bytes of files per second."""
        return median([each.sent.size / each.sent.seconds / 1e6 for each in self.rounds])


def processor_per_gigabyte(columns: Sequence[Trials]) -> tuple[float, float]:
    """Return processor seconds per 10^9 bytes of the receiver and of its senders."""
    trials = [each for column in columns for each in column.rounds]
    gigabytes = sum(each.sent.size for each in trials) / GIGABYTE
    receiver = sum(each.receiver_processor_seconds for each in trials)
    return receiver / gigabytes, sum(each.sent.processor_seconds for each in trials) / gigabytes


def try_out(
    running: Running, studies: Sequence[StudyFiles], push: Callable[[], Sent], name: str
) -> Trial:
    """Push once; prove that everything was stored; return the figures."""
    held, used = running.count(), processor_seconds(running.pids)
    sent = push()
    # What a receiver does after its last Success, indexing above all, is part of its cost.
    _wait_until_stored(running, held + sent.instances, name)
    used = processor_seconds(running.pids) - used
    if running.files is not None:
        for study in studies:
            _compare(study, running.files, name)
    return Trial(sent, used)


def _wait_until_stored(running: Running, wanted: int, name: str) -> None:
    # dcmsend ends with status 0 even when instances were refused.
    deadline = time.monotonic() + _SETTLE_SECONDS
    while (held := running.count()) < wanted and time.monotonic() < deadline:
        time.sleep(_LOOK_EVERY_SECONDS)
    if held != wanted:
        raise RuntimeError(f"{name} holds {held} of {wanted} instances: no rate can be stated")


def _compare(study: StudyFiles, files: Path, name: str) -> None:
    found = {path.name: path for path in (files / study.study_instance_uid).rglob("*.dcm")}
    missing = [path.name for path in study.paths if path.name not in found]
    if missing:
        raise RuntimeError(f"{name} has no file for {len(missing)} instances, e.g. {missing[0]}")
    for path in study.paths[:: max(1, len(study.paths) // _SAMPLE)]:
        if _data_set(found[path.name]) != _data_set(path):
            raise RuntimeError(f"{name} changed the data set of {path.name}")


def _data_set(path: Path) -> bytes:
    """Return what follows group 2, whose length its first element tells (PS3.10 7.1)."""
    data = path.read_bytes()
    return data[144 + int.from_bytes(data[140:144], "little") :]
