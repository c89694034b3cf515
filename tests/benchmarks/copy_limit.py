"""How far reception is from a bare copy, socket to file, on the same machine.

Expected: parsing PDUs, hashing, reading the header and indexing cost about as much processor time
again as the copy itself; the syncs are the same.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.benchmarks.contenders import OURS, TUNED, UNSYNCED
from tests.benchmarks.figures import Table
from tests.benchmarks.material import Workshop, fresh_studies
from tests.benchmarks.receivers import raw_copy
from tests.benchmarks.rounds import Column, Contender, compare, rate_table
from tests.benchmarks.senders import lean, raw

_SYNCED = raw_copy("bare copy with the same syncs", "--sync")
_UNSYNCED = raw_copy("bare copy")
_ASSOCIATIONS = (1, 2, 4)
_SLICES, _QUICK_SLICES = 100, 30
_CONTENDERS = (
    Contender(OURS),
    Contender(_SYNCED, push=raw),
    Contender(UNSYNCED),
    Contender(_UNSYNCED, push=raw),
    Contender(TUNED),
)


def measure(workshop: Workshop) -> Iterator[Table]:
    """Yield one table."""
    slices = _QUICK_SLICES if workshop.quick else _SLICES
    with workshop.passing_room("limit") as folder:
        warm_up, *studies = fresh_studies(
            workshop.ct_series, 1 + sum(_ASSOCIATIONS), folder, slices
        )
        columns = [
            Column(str(count), [studies.pop() for _ in range(count)], lean)
            for count in _ASSOCIATIONS
        ]
        results = compare(workshop, _CONTENDERS, columns, warm_up.beginning(0.1))
    table = rate_table(
        "CT slices per second from senders that only send, on 1, 2 and 4 associations",
        _CONTENDERS,
        {column.title: column.title for column in columns},
        results,
    )
    table.notes = [
        "reached for: a large part of the bare copy with the same syncs (1.0 is the limit)",
        f"{slices} slices per association, sent by Python without decoding, its start not included",
        "to the copy by sendfile, to others in PDUs of 128 KiB, or as long as the receiver takes",
        "the bare copy: recv_into, write, a file for each slice, a process for each connection",
        "its syncs: fdatasync, then rename, then fsync of the folder, as medimgd's",
    ]
    yield table
