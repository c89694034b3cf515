"""Reception: what medimgd, DCMTK, Orthanc and pynetdicom take from the same senders, in turns.

What is reached for is stated before measuring, beside each table. Only medimgd and Orthanc sync
files before they answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from tests.benchmarks.figures import Table
from tests.benchmarks.material import StudyFiles, Workshop, fresh_studies
from tests.benchmarks.receivers import (
    WITHOUT_SYNC,
    Receiver,
    medimgd,
    orthanc_archive,
    pynetdicom,
    storescp,
)
from tests.benchmarks.senders import as_sent, dcmsend
from tests.benchmarks.trials import Trials, processor_per_gigabyte, try_out

ASSOCIATIONS = (1, 2, 4)
SLICES, QUICK_SLICES = 160, 40

OURS = medimgd()
UNSYNCED = medimgd("medimgd, syncs without effect", WITHOUT_SYNC)
SHIPPED = storescp("DCMTK as shipped", nagle=True)
FORKING = storescp("DCMTK --fork, TCP_NODELAY", "--fork")
ORTHANC = orthanc_archive()
PYNETDICOM = pynetdicom()

STOCK, WITHOUT_NAGLE = True, False
_SENDERS = {STOCK: "stock dcmsend (Nagle's algorithm on)", WITHOUT_NAGLE: "dcmsend, TCP_NODELAY=1"}


@dataclass(frozen=True)
class Contender:
    """A receiver, and what part of an association's slices it is sent so as not to take all day."""

    receiver: Receiver
    share: float = 1.0


_CONTENDERS = (
    Contender(OURS),
    Contender(UNSYNCED),
    Contender(SHIPPED, 0.1),
    Contender(FORKING),
    Contender(ORTHANC, 0.5),
    Contender(PYNETDICOM, 0.5),
)

_NOTES = (
    "receivers take turns, in every round each anew with an empty folder and a disk at rest",
    "'medimgd is': the median of its rates over the other's, 1.0 is equal",
    "medimgd and Orthanc sync files before Success, the others do not",
    "medimgd runs as many receivers on its port as 'medimgd run' starts on this machine",
    "CPU: user and system per 10^9 bytes of files over all columns, until the index is written",
)

Key = tuple[str, bool, int]
"""Receiver, whether the sender has Nagle's algorithm on, and associations."""

_REACH = {
    STOCK: {SHIPPED.name: "20 x", FORKING.name: "3 x", ORTHANC.name: "2 x", PYNETDICOM.name: "5 x"},
    WITHOUT_NAGLE: {
        FORKING.name: "1 x at 2 and 4 associations, 1.2 x without syncs",
        ORTHANC.name: "2 x",
        PYNETDICOM.name: "5 x",
    },
}


def measure(workshop: Workshop) -> Iterator[Table]:
    """Yield the tables, those of CT slices first."""
    trials = _slices(workshop)
    for nagle in _SENDERS:
        yield _slice_table(workshop, trials, nagle=nagle)


def _slices(workshop: Workshop) -> dict[Key, Trials]:
    slices = QUICK_SLICES if workshop.quick else SLICES
    trials: dict[Key, Trials] = {}
    with workshop.passing_room("slices") as folder:
        originals = as_sent(workshop.ct_series, workshop.room("as-sent"))
        # Every association brings what its receiver never saw; all receivers get the same.
        count = 1 + len(_SENDERS) * sum(ASSOCIATIONS)
        warm_up, *studies = fresh_studies(originals, count, folder, slices)
        for number in range(workshop.rounds(5)):
            for contender in (*_CONTENDERS[number:], *_CONTENDERS[:number]):
                _turn(workshop, contender, warm_up, studies, trials)
    return trials


def _turn(
    workshop: Workshop,
    contender: Contender,
    warm_up: StudyFiles,
    studies: Sequence[StudyFiles],
    trials: dict[Key, Trials],
) -> None:
    """One receiver's part of one round: started anew, warmed, then sent to in every way."""
    name, left = contender.receiver.name, list(studies)
    with (
        workshop.passing_room("store") as folder,
        contender.receiver.start(folder) as running,
    ):
        first = [warm_up.beginning(0.1)]
        try_out(running, first, partial(dcmsend, running.port, first, nagle=False), name)
        for nagle in _SENDERS:
            for count in ASSOCIATIONS:
                sent = [left.pop().beginning(contender.share) for _ in range(count)]
                push = partial(dcmsend, running.port, sent, nagle=nagle)
                trial = try_out(running, sent, push, name)
                trials.setdefault((name, nagle, count), Trials()).rounds.append(trial)


def _slice_table(workshop: Workshop, trials: dict[Key, Trials], *, nagle: bool) -> Table:
    slices = QUICK_SLICES if workshop.quick else SLICES
    table = Table(
        f"512 x 512 CT slices per second from {_SENDERS[nagle]}",
        ["receiver, associations:", *map(str, ASSOCIATIONS),
         *(f"medimgd is, {count}" for count in ASSOCIATIONS), "CPU s/GB", "sender s/GB"],
    )  # fmt: skip
    ours = [trials[OURS.name, nagle, count].rate for count in ASSOCIATIONS]
    for contender in _CONTENDERS:
        name = contender.receiver.name
        columns = [trials[name, nagle, count] for count in ASSOCIATIONS]
        ratios = [mine / each.rate for mine, each in zip(ours, columns, strict=True)]
        used = processor_per_gigabyte(columns)
        table.rows.append([name, *(each.rate for each in columns), *ratios, *used])
        for count, column in zip(ASSOCIATIONS, columns, strict=True):
            table.samples[f"{name}, {count}"] = column.rates
    reach = ", ".join(f"{factor} {name}" for name, factor in _REACH[nagle].items())
    table.notes = [f"reached for: {reach}", _slices_note(slices), *_NOTES]
    return table


def _slices_note(slices: int) -> str:
    return (
        f"{slices} slices per association, {slices // 10} to DCMTK as shipped, {slices // 2} to "
        "Orthanc and pynetdicom; one dcmsend per association, its start (20 to 30 ms) included"
    )
