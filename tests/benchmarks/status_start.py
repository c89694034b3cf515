"""``medimgd status`` from a cold start, whole process, beside ``python -c pass``.

Measured against a database of 500 analysed studies with no daemon running: what an administrator
meets on a bad day.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta

from daemon.exit_codes import ExitCode
from storage.database import migrate, open_database
from storage.spool import Spool
from tests.acceptance.installation import Installation
from tests.benchmarks.figures import Table, median, percentile, timed
from tests.benchmarks.material import Workshop
from tests.ports import free_port
from tests.storage_hospital import NOON, STUDY, Hospital

STUDIES = 500


def measure(workshop: Workshop) -> Iterator[Table]:
    """Yield one table: rows are commands."""
    studies = workshop.rounds(STUDIES, 20)
    site = Installation(workshop.room("status"), free_port())
    _fill(site, studies)
    medimgd = [sys.executable, "-m", "daemon"]
    named = ["--config", str(site.config_path)]
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "medimgd --help": [*medimgd, "--help"],
        "medimgd status": [*medimgd, "status", *named],
        "medimgd status --json": [*medimgd, "status", "--json", *named],
    }
    rounds = workshop.rounds(25, 3)
    samples = _interleaved(commands, rounds)
    floor = median(samples["python -c pass"])
    table = Table(
        f"Milliseconds from start to end of a process, {studies} studies, {rounds} rounds",
        ["command", "median", "95th percentile", "above python -c pass"],
        samples=samples,
    )
    for name, values in samples.items():
        middle = median(values)
        table.rows.append([name, middle, percentile(values, 95), middle - floor])
    yield table


def _fill(site: Installation, studies: int) -> None:
    path = site.config.database_path
    migrate(path)
    database = open_database(path)
    hospital = Hospital(database, Spool(site.config.spool_folder, 0))
    for number in range(studies):
        hospital.analyse(f"{STUDY}.{number}", NOON + timedelta(seconds=number))
    database.close()


def _interleaved(commands: dict[str, list[str]], rounds: int) -> dict[str, list[float]]:
    samples: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(-1, rounds):
        for name, command in commands.items():
            seconds = timed(lambda command=command: _run(command))
            if number >= 0:  # the first of each fills the page cache
                samples[name].append(1000 * seconds)
    return samples


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (ExitCode.OK, ExitCode.NEEDS_ATTENTION):
        raise RuntimeError(f"{command} ended with {done.returncode}:\n{done.stderr}")
