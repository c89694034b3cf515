"""What the figures were measured on: machine, disk, load and versions.

Owns the header of every report; reads /proc and changes nothing.
"""

from __future__ import annotations

import os
import platform
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from tests.benchmarks.figures import median, rounds_of
from tests.benchmarks.programs import ProgramMissing, dcmtk

_LIBRARIES = (
    "medimgd", "pydicom", "pynetdicom", "numpy", "keras", "tensorflow", "sqlalchemy", "highdicom",
)  # fmt: skip
SYNC_BYTES = 4096
_SYNC_ROUNDS = 50


def describe(folder: Path) -> dict[str, str]:
    """Return the facts, by name; `folder` lies on the disk that is measured."""
    return {
        "machine": f"{_processor()}, {os.cpu_count()} cores, {_memory_gib():.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "disk": f"{_file_system(folder)}; {SYNC_BYTES} bytes and fdatasync take "
        f"{sync_seconds(folder) * 1000:.2f} ms",
        "load average": load_average(),
        "source": _source(),
        "python": f"{platform.python_version()} ({sys.executable})",
        "sqlite": sqlite3.sqlite_version,
        "dcmtk": _dcmtk_version(),
        "libraries": ", ".join(_named_version(name) for name in _LIBRARIES),
    }


def show(facts: Mapping[str, str]) -> None:
    """Print the facts."""
    for name, value in facts.items():
        print(f"{name:14}{value}")


def load_average() -> str:
    """Return the load averages of 1, 5 and 15 minutes."""
    return " ".join(f"{value:.2f}" for value in os.getloadavg())


def sync_seconds(folder: Path, size: int = SYNC_BYTES, rounds: int = _SYNC_ROUNDS) -> float:
    """Return the median time to append `size` random bytes to a file and sync them."""
    data = os.urandom(size)
    path = folder / "sync-probe"
    with path.open("wb") as file:

        def append() -> None:
            file.write(data)
            file.flush()
            os.fdatasync(file.fileno())

        seconds = median(rounds_of(append, rounds))
    path.unlink()
    return seconds


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3


def _file_system(folder: Path) -> str:
    """Return type and device of the mount `folder` lies on."""
    best = ("", "unknown", "unknown")
    for line in Path("/proc/mounts").read_text().splitlines():
        device, mount, kind = line.split()[:3]
        if folder.resolve().is_relative_to(mount) and len(mount) > len(best[0]):
            best = (mount, kind, device)
    return f"{best[1]} on {best[2]}"


def _source() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return "unknown: git is not installed"
    return done.stdout.strip() or "unknown: not a git checkout"


def _dcmtk_version() -> str:
    try:
        command = [dcmtk("storescp"), "--version"]
    except ProgramMissing as error:
        return str(error)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return next(iter(done.stdout.splitlines()), "unknown").strip("$ ")


def _named_version(name: str) -> str:
    try:
        return f"{name} {version(name)}"
    except ModuleNotFoundError:  # a checkout that is run without being installed
        return f"{name} (not installed)"
