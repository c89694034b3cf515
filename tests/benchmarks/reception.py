"""Reception: CT slices pushed by dcmsend into medimgd, DCMTK's storescp and pynetdicom's storescp.

The expectation is stated before measuring: only medimgd syncs before it answers, so one
association of it costs what pynetdicom costs plus the sync of file and folder, the last row.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from tests.acceptance.installation import Installation
from tests.benchmarks.figures import Table, median, timed
from tests.benchmarks.material import StudyFiles, Workshop, fresh_studies
from tests.benchmarks.programs import dcmtk, free_port, peer_environment, serving

ASSOCIATIONS = (1, 2, 4)
SLICES = 60
OURS = "medimgd receiver"
THEIRS = "DCMTK storescp +B --fork"
PYNETDICOM = "pynetdicom storescp"
CEILING = "DCMTK storescp --ignore"
FLOOR = "write and sync alone"


def measure(workshop: Workshop) -> Iterator[Table]:
    """Yield one table: rows are servers, columns the number of parallel associations."""
    slices = workshop.ct_series[: workshop.rounds(SLICES, 15)]
    studies = list(fresh_studies(slices, max(ASSOCIATIONS) + 1, workshop.room("reception")))
    warm_up, pushed = studies[-1], studies[:-1]
    samples = _samples(workshop, pushed, warm_up, workshop.rounds(5))
    table = Table(
        f"512 x 512 CT slices per second, {len(slices)} slices per association, median",
        ["server", *(f"{count} assoc." for count in ASSOCIATIONS),
         *(f"medimgd is, {count}" for count in ASSOCIATIONS)],
        samples={f"{name}, {count}": each for (name, count), each in samples.items()},
        notes=[
            ("dcmsend with TCP_NODELAY=1, one process per association, its start included; "
            "servers take turns in every round, each started anew with an empty folder and warmed"),
            "'medimgd is': its rate over that server's, 1.0 is equal",
            "only medimgd syncs file and folder and parses the header before it answers Success",
            "--ignore stores nothing: the most this sender can deliver here",
        ],
    )  # fmt: skip
    for name in (OURS, THEIRS, PYNETDICOM, CEILING, FLOOR):
        rates = [median(samples[name, count]) for count in ASSOCIATIONS]
        ours = [median(samples[OURS, count]) for count in ASSOCIATIONS]
        shares = [mine / other for mine, other in zip(ours, rates, strict=True)]
        table.rows.append([name, *rates, *shares])
    table.notes.append(_expectation(samples))
    yield table


def _expectation(samples: dict[tuple[str, int], list[float]]) -> str:
    pynetdicom, floor = median(samples[PYNETDICOM, 1]), median(samples[FLOOR, 1])
    expected = 1 / (1 / pynetdicom + 1 / floor)
    return (
        f"expected of medimgd on one association: {expected:.0f} per second (pynetdicom's time "
        f"plus the sync's); measured {median(samples[OURS, 1]):.0f}"
    )


def _samples(
    workshop: Workshop, studies: Sequence[StudyFiles], warm_up: StudyFiles, rounds: int
) -> dict[tuple[str, int], list[float]]:
    samples: dict[tuple[str, int], list[float]] = {}
    for _ in range(rounds):
        for count in ASSOCIATIONS:
            for name, server in _servers(workshop.room("store")).items():
                with server as (port, stored):
                    _push(port, [warm_up])
                    rate = _push(port, studies[:count])
                if name != CEILING:
                    _check_stored(name, stored, [warm_up, *studies[:count]])
                samples.setdefault((name, count), []).append(rate)
            folder = workshop.room("floor")
            samples.setdefault((FLOOR, count), []).append(_write_and_sync(studies[:count], folder))
    return samples


def _servers(folder: Path) -> dict[str, AbstractContextManager[tuple[int, Path]]]:
    return {
        OURS: _medimgd(folder / "medimgd"),
        THEIRS: _storescp(folder / "dcmtk", dcmtk("storescp"), "-q", "+B", "--fork"),
        PYNETDICOM: _storescp(folder / "pynetdicom", sys.executable, "-m", "pynetdicom",
                              "storescp", "-q"),
        CEILING: _storescp(folder / "ignore", dcmtk("storescp"), "-q", "--ignore", "--fork"),
    }  # fmt: skip


@contextmanager
def _medimgd(folder: Path) -> Iterator[tuple[int, Path]]:
    site = Installation(folder, free_port())
    try:
        site.start("receiver")
        yield site.port, site.config.spool_folder / "studies"
    finally:
        site.stop()


@contextmanager
def _storescp(folder: Path, *command: str) -> Iterator[tuple[int, Path]]:
    folder.mkdir()
    port = free_port()
    with serving([*command, "-od", str(folder), str(port)], port):
        yield port, folder


def _check_stored(name: str, folder: Path, studies: Sequence[StudyFiles]) -> None:
    # dcmsend ends with status 0 even when instances were refused.
    stored = sum(1 for path in folder.rglob("*") if path.is_file())
    sent = sum(len(study.paths) for study in studies)
    if stored != sent:
        raise RuntimeError(f"{name} stored {stored} of {sent} instances: no rate can be stated")


def _push(port: int, studies: Sequence[StudyFiles]) -> float:
    """Send each study on its own association, all at once; return instances per second."""
    started = time.perf_counter()
    senders = [
        subprocess.Popen(
            [dcmtk("dcmsend"), "-aec", "MEDIMGD", "+sd", "127.0.0.1", str(port),
             str(study.paths[0].parent)],
            env=peer_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for study in studies
    ]  # fmt: skip
    said = [(sender.communicate()[0], sender.returncode) for sender in senders]
    seconds = time.perf_counter() - started
    for output, status in said:
        if status != 0:
            raise RuntimeError(f"dcmsend ended with {status}: {output.decode()[-2000:]}")
    return sum(len(study.paths) for study in studies) / seconds


def _write_and_sync(studies: Sequence[StudyFiles], folder: Path) -> float:
    """Write the same files one after the other, each synced with its folder; return the rate."""
    contents = [path.read_bytes() for study in studies for path in study.paths]
    target = os.open(folder, os.O_RDONLY)

    def write_all() -> None:
        for number, data in enumerate(contents):
            with (folder / f"{number}.dcm").open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.fsync(target)

    try:
        return len(contents) / timed(write_all)
    finally:
        os.close(target)
