"""Resident memory of each process over 500 one-image studies: flat, or growing with them.

The expectation is stated before measuring: nothing is kept of a study that ended, so after the
first fifty, when pools and caches are filled, no process grows with their number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from storage.processes import list_processes
from tests.acceptance.installation import Installation
from tests.benchmarks.busy_site import busy_site
from tests.benchmarks.consumption import own_resident_kib
from tests.benchmarks.figures import Table
from tests.benchmarks.material import FILM, Workshop, fresh_studies

CHECKPOINTS = (50, 250, 500)
QUICK_CHECKPOINTS = (5, 10, 20)
_IN_FLIGHT = 25
"""Studies the modality may be ahead of the reports, so that queues stay short."""


def measure(workshop: Workshop) -> Iterator[Table]:
    """Yield one table: rows are processes, columns the number of studies behind them."""
    checkpoints = QUICK_CHECKPOINTS if workshop.quick else CHECKPOINTS
    columns = ["process", *(f"{count} studies" for count in checkpoints)]
    table = Table(
        "Resident memory, MiB, with nothing left to do (cxr-pneumonia, one film per study)",
        [*columns, "KiB per study", "expected", "files open"],
        notes=[
            "KiB per study: growth from the first to the last checkpoint",
            "files open: descriptors at the first and the last checkpoint",
        ],
    )
    taken = list(_at_checkpoints(workshop, checkpoints))
    for slot in taken[0]:
        sizes = [each[slot][0] / 1024 for each in taken]
        growth = (taken[-1][slot][0] - taken[0][slot][0]) / (checkpoints[-1] - checkpoints[0])
        files = f"{taken[0][slot][1]} / {taken[-1][slot][1]}"
        table.rows.append([slot, *sizes, growth, 0, files])
    yield table


def _at_checkpoints(
    workshop: Workshop, checkpoints: tuple[int, ...]
) -> Iterator[Mapping[str, tuple[int, int]]]:
    studies = fresh_studies([FILM], 1 + checkpoints[-1], workshop.room("studies"))
    with busy_site(workshop.room("site"), None, bundled=True, warm_up=next(studies)) as site:
        last = ""
        for number, study in enumerate(studies, start=1):
            site.push(study)
            last = study.study_instance_uid
            site.wait_for_reports(max(0, number - _IN_FLIGHT))
            if number in checkpoints:
                site.wait_for_reports(number)
                site.installation.wait_until_over(last)
                yield _sizes(site.installation)


def _sizes(installation: Installation) -> dict[str, tuple[int, int]]:
    """Return resident KiB and open descriptors of each registered process, by slot."""
    known = installation.read(list_processes, ())
    return {each.slot: (own_resident_kib(each.pid), _descriptors(each.pid)) for each in known}


def _descriptors(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
