"""One multi-frame object of 2 GB: does a receiver's memory stay constant.

Expected: medimgd streams it to the disk and stays below 150 MiB; the processor time is the bare
copy's and the hash's.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from tests.benchmarks.consumption import watched_memory
from tests.benchmarks.contenders import OURS, TUNED
from tests.benchmarks.figures import Table
from tests.benchmarks.material import Workshop
from tests.benchmarks.multi_frame import MultiFrame
from tests.benchmarks.receivers import Receiver, Running
from tests.benchmarks.rounds import ROUNDS, in_turn
from tests.benchmarks.senders import multi_frame
from tests.benchmarks.trials import Trials, processor_per_gigabyte, try_out

_BYTES, _QUICK_BYTES = 2 * 10**9, 256 * 10**6
_RECEIVERS = (OURS, TUNED)
_MOST_MIB = 150.0


def measure(workshop: Workshop) -> Iterator[Table]:
    """Yield one table."""
    size = _QUICK_BYTES if workshop.quick else _BYTES
    trials = {receiver.name: Trials() for receiver in _RECEIVERS}
    memory = {receiver.name: 0.0 for receiver in _RECEIVERS}
    for number in range(workshop.rounds(ROUNDS)):
        for receiver in in_turn(_RECEIVERS, number):
            largest = _send_one(workshop, receiver, size, trials[receiver.name])
            memory[receiver.name] = max(memory[receiver.name], largest)
    yield _table(size, trials, memory)


def _send_one(workshop: Workshop, receiver: Receiver, size: int, trials: Trials) -> float:
    """Add a trial; return the largest resident memory of any of the receiver's processes."""
    made = MultiFrame.fresh(size)
    with workshop.passing_room("large") as folder, receiver.start(folder) as running:
        with watched_memory(running.pids) as memory:
            push = partial(multi_frame, running.port, made)
            trials.rounds.append(try_out(running, (), push, receiver.name))
        _compare(made, running, receiver.name)
    return memory.mib


def _compare(made: MultiFrame, running: Running, name: str) -> None:
    if running.files is not None:
        stored = next(running.files.rglob(f"{made.sop_instance_uid}.dcm"))
        if not made.equals(stored):
            raise RuntimeError(f"{name} stored something else than the object of {made.size} bytes")


def _table(size: int, trials: dict[str, Trials], memory: dict[str, float]) -> Table:
    table = Table(
        f"One multi-frame object of {size / 1e9:g} GB from a sender that only sends",
        ["receiver", "MB/s", "medimgd is", "largest RSS, MiB", "expected", "CPU s/GB", "senders'"],
        notes=[
            "medimgd's file is compared with what was sent, byte for byte",
            "DCMTK with +B: without it, it holds the whole object in memory",
        ],
    )
    ours = trials[OURS.name].megabytes_per_second
    for name, each in trials.items():
        speed = each.megabytes_per_second
        expected = f"below {_MOST_MIB:g}" if name == OURS.name else None
        used = processor_per_gigabyte([each])
        table.rows.append([name, speed, ours / speed, memory[name], expected, *used])
        table.samples[name] = each.rates
    return table
