"""Reception: what medimgd, DCMTK, Orthanc and pynetdicom take from the same senders, in turns.

What is reached for is stated before measuring, beside each table. Only medimgd and Orthanc sync
files before they answer Success.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from tests.benchmarks import association_setups, copy_limit, large_object, objects
from tests.benchmarks.contenders import (
    FORKING,
    ORTHANC,
    OURS,
    PYNETDICOM,
    SHIPPED,
    TUNED,
    UNSYNCED,
)
from tests.benchmarks.figures import Table
from tests.benchmarks.material import Workshop, fresh_studies
from tests.benchmarks.rounds import Column, Contender, compare, rate_table
from tests.benchmarks.senders import as_sent, dcmsend

ASSOCIATIONS = (1, 2, 4)
SLICES, QUICK_SLICES = 120, 40

_CONTENDERS = (
    Contender(OURS),
    Contender(UNSYNCED),
    Contender(SHIPPED, 0.1),
    Contender(FORKING),
    Contender(TUNED),
    Contender(ORTHANC, 0.25),
    Contender(PYNETDICOM, 0.25),
)
_STOCK, _WITHOUT_NAGLE = "stock", "no delay"
_SENDERS = {
    _STOCK: "stock dcmsend (Nagle's algorithm on)",
    _WITHOUT_NAGLE: "dcmsend, TCP_NODELAY=1",
}
_REACH = {
    _STOCK: f"20 x {SHIPPED.name}, 3 x {FORKING.name}, 2 x {ORTHANC.name}, 5 x {PYNETDICOM.name}",
    _WITHOUT_NAGLE: f"1 x {FORKING.name} (1.2 x without syncs) at 2 and 4 associations, "
    f"2 x {ORTHANC.name}, 5 x {PYNETDICOM.name}",
}
_NOTES = (
    "receivers take turns, in every round each anew with an empty folder and a disk at rest",
    "'medimgd is': the median of its rates over the median of the other's, 1.0 is equal",
    "medimgd and Orthanc sync files before Success, the others do not",
    "syncs without effect: those of files and folders; SQLite goes on syncing the index",
    "medimgd runs as many receivers on its port as 'medimgd run' starts on this machine",
    "CPU: user and system per 10^9 bytes of files over all columns, until the index is written",
)


def measure(workshop: Workshop) -> Iterator[Table]:
    """Yield the tables, those of CT slices first."""
    yield from _slice_tables(workshop)
    yield from copy_limit.measure(workshop)
    yield from objects.measure(workshop)
    yield from large_object.measure(workshop)
    yield from association_setups.measure(workshop)


def _slice_tables(workshop: Workshop) -> Iterator[Table]:
    slices = QUICK_SLICES if workshop.quick else SLICES
    with workshop.passing_room("slices") as folder:
        originals = as_sent(workshop.ct_series, workshop.room("as-sent"))
        count = 1 + len(_SENDERS) * sum(ASSOCIATIONS)
        warm_up, *studies = fresh_studies(originals, count, folder, slices)
        columns = [
            Column(
                f"{sender}, {count}",
                [studies.pop() for _ in range(count)],
                partial(dcmsend, nagle=sender == _STOCK),
            )
            for sender in _SENDERS
            for count in ASSOCIATIONS
        ]
        results = compare(workshop, _CONTENDERS, columns, warm_up.beginning(0.1))
    for sender, description in _SENDERS.items():
        table = rate_table(
            f"512 x 512 CT slices per second from {description}, on 1, 2 and 4 associations",
            _CONTENDERS,
            {str(count): f"{sender}, {count}" for count in ASSOCIATIONS},
            results,
        )
        table.notes = [f"reached for: {_REACH[sender]}", _slices_note(slices), *_NOTES]
        yield table


def _slices_note(slices: int) -> str:
    return (
        f"{slices} slices per association, {slices // 10} to DCMTK as shipped, {slices // 4} to "
        "Orthanc and pynetdicom; one dcmsend per association, its start (20 to 30 ms) included"
    )
