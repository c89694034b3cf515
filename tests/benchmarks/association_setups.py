"""Associations without instances: set-up, C-ECHO and release, again and again.

Expected: within a factor of two of DCMTK, which starts a process for each with --fork; the number
of presentation contexts offered should hardly matter.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.benchmarks.consumption import processor_seconds
from tests.benchmarks.contenders import FORKING, ORTHANC, OURS, SERIAL
from tests.benchmarks.figures import Cell, Table, median
from tests.benchmarks.material import Workshop
from tests.benchmarks.receivers import Running
from tests.benchmarks.rounds import ROUNDS, in_turn
from tests.benchmarks.starting_signal import run_together

_CONTEXTS = (1, 128)
_CLIENTS = (1, 4)
_SECONDS, _QUICK_SECONDS = 0.6, 0.3
_RECEIVERS = (OURS, SERIAL, FORKING, ORTHANC)
_COLUMNS = [(contexts, clients) for contexts in _CONTEXTS for clients in _CLIENTS]

Samples = dict[tuple[str, int, int], list[tuple[float, float]]]
"""By receiver, contexts and clients: associations per second, and processor seconds of each."""


def measure(workshop: Workshop) -> Iterator[Table]:
    """Yield one table."""
    samples: Samples = {}
    seconds = _QUICK_SECONDS if workshop.quick else _SECONDS
    for number in range(workshop.rounds(ROUNDS)):
        for receiver in in_turn(_RECEIVERS, number):
            with workshop.passing_room("setups") as folder, receiver.start(folder) as running:
                _associate(running, 1, 1, seconds / 4)
                for contexts, clients in _COLUMNS:
                    figures = _associate(running, contexts, clients, seconds)
                    samples.setdefault((receiver.name, contexts, clients), []).append(figures)
    yield _table(samples)


def _associate(
    running: Running, contexts: int, clients: int, seconds: float
) -> tuple[float, float]:
    arguments = [str(running.port), str(contexts), str(seconds)]
    used = processor_seconds(running.pids)
    done = run_together("tests.benchmarks.association_client", [arguments] * clients)
    used = processor_seconds(running.pids) - used
    associations = done.total("associations")
    return associations / done.seconds, used / associations


def _table(samples: Samples) -> Table:
    titles = [f"{contexts} x {clients}" for contexts, clients in _COLUMNS]
    table = Table(
        "Associations per second: set-up, C-ECHO, release",
        ["receiver", *titles, *(f"medimgd is, {title}" for title in titles), "CPU ms each"],
        notes=[
            f"reached for: 0.5 x {SERIAL.name} and {FORKING.name}",
            "columns: presentation contexts offered, of five transfer syntaxes each, x clients",
            f"CPU: user and system of the receiver per association of {_CONTEXTS[-1]} contexts",
        ],
    )
    for receiver in _RECEIVERS:
        rates = [_rate(samples, receiver.name, *column) for column in _COLUMNS]
        ratios = [
            _rate(samples, OURS.name, *column) / rate
            for column, rate in zip(_COLUMNS, rates, strict=True)
        ]
        used = [each for _, each in samples[receiver.name, _CONTEXTS[-1], 1]]
        cells: list[Cell] = [receiver.name, *rates, *ratios, median(used) * 1000]
        table.rows.append(cells)
        for title, column in zip(titles, _COLUMNS, strict=True):
            found = samples[receiver.name, *column]
            table.samples[f"{receiver.name}, {title}"] = [rate for rate, _ in found]
    return table


def _rate(samples: Samples, name: str, contexts: int, clients: int) -> float:
    return median([rate for rate, _ in samples[name, contexts, clients]])
