"""The receivers that are compared: medimgd, DCMTK's storescp, Orthanc, pynetdicom's storescp.

Owns how each is started, how many instances it holds, and which processes it consists of. Must not
know what is sent to them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sqlalchemy import text

from daemon.running import children_of
from storage.database import Database, migrate
from storage.processes import list_processes
from tests.acceptance.installation import Installation
from tests.benchmarks.programs import dcmtk, orthanc, serving
from tests.ports import free_port

START_ONE = "daemon"
"""The module an installation's ``medimgd`` is."""
WITHOUT_SYNC = "tests.benchmarks.without_sync"


@dataclass(frozen=True)
class Running:
    """A receiver that takes associations."""

    port: int
    pids: tuple[int, ...]
    count: Callable[[], int]
    """How many instances it holds now, everything that comes after Success included."""
    files: Path | None = None
    """Where its files bear their SOP Instance UID as their name; None where they do not."""


@dataclass(frozen=True)
class Receiver:
    """A kind of receiver, by the name its row bears."""

    name: str
    start: Callable[[Path], AbstractContextManager[Running]]
    """Given an empty folder."""


def medimgd(
    name: str = "medimgd", module: str = START_ONE, settings: str = "", processes: int = 0
) -> Receiver:
    """Return medimgd as shipped, or started by another module of the same arguments."""
    return Receiver(name, partial(_medimgd, module, settings, processes))


def storescp(name: str, *options: str, nagle: bool = False) -> Receiver:
    """Return DCMTK's storescp."""
    return Receiver(name, partial(_storescp, options, nagle))


def pynetdicom(name: str = "pynetdicom storescp") -> Receiver:
    """Return the application that pynetdicom ships."""
    return Receiver(name, _pynetdicom)


def orthanc_archive(name: str = "Orthanc") -> Receiver:
    """Return Orthanc with its own defaults, admitting everybody."""
    return Receiver(name, _orthanc)


def raw_copy(name: str, *options: str) -> Receiver:
    """Return the program that copies from sockets to files and knows no DICOM."""
    return Receiver(name, partial(_raw_copy, options))


@contextmanager
def _medimgd(module: str, settings: str, processes: int, folder: Path) -> Iterator[Running]:
    site = Installation(folder, free_port(), settings=settings)
    if processes:
        whole = site.config_path.read_text()
        site.config_path.write_text(
            whole.replace("[receiver]\n", f"[receiver]\nprocesses = {processes}\n")
        )
    # As ``medimgd run`` does it: the database first, then each receiver in a slot of its own.
    site.config.database_path.parent.mkdir(parents=True, exist_ok=True)
    migrate(site.config.database_path)
    slots = [child.slot for child in children_of(site.config) if child.role == "receiver"]
    try:
        for slot in slots:
            _launch(site, module, slot)
        site.wait(lambda: _all_ready(site, slots), f"{slots} to be ready")
        pids = tuple(process.pid for process in site.processes.values())
        count = partial(site.read, _indexed, 0)
        yield Running(site.port, pids, count, site.config.spool_folder / "studies")
    finally:
        site.stop()


def _launch(site: Installation, module: str, slot: str) -> None:
    with site.log_path.open("ab") as log:
        site.processes[slot] = subprocess.Popen(
            [sys.executable, "-m", module, "run", "receiver", "--slot", slot,
             "-c", str(site.config_path)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip


def _all_ready(site: Installation, slots: list[str]) -> bool:
    for slot, process in site.processes.items():
        if process.poll() is not None:
            raise RuntimeError(f"{slot} ended:\n{site.log()[-4000:]}")
    known = site.read(list_processes, ())
    return {each.slot for each in known if each.state == "ready"} >= set(slots)


def _indexed(database: Database) -> int:
    with database.read() as connection:
        return int(connection.execute(text("SELECT count(*) FROM instance")).scalar_one())


@contextmanager
def _storescp(options: tuple[str, ...], nagle: bool, folder: Path) -> Iterator[Running]:
    port = free_port()
    command = [dcmtk("storescp"), "-q", *options, "-od", str(folder), str(port)]
    with serving(command, port, nagle=nagle) as pid:
        yield Running(port, (pid,), partial(_files_in, folder))


@contextmanager
def _pynetdicom(folder: Path) -> Iterator[Running]:
    port = free_port()
    command = [sys.executable, "-m", "pynetdicom", "storescp", "-q", "-od", str(folder), str(port)]
    with serving(command, port) as pid:
        yield Running(port, (pid,), partial(_files_in, folder))


@contextmanager
def _raw_copy(options: tuple[str, ...], folder: Path) -> Iterator[Running]:
    port = free_port()
    module = "tests.benchmarks.raw_copy"
    command = [sys.executable, "-m", module, "serve", str(port), str(folder), *options]
    with serving(command, port) as pid:
        yield Running(port, (pid,), partial(_files_in, folder))


def _files_in(folder: Path) -> int:
    return sum(1 for path in folder.rglob("*") if path.is_file())


@contextmanager
def _orthanc(folder: Path) -> Iterator[Running]:
    port, http_port = free_port(), free_port()
    configuration = folder / "orthanc.json"
    configuration.write_text(json.dumps(_orthanc_configuration(port, http_port, folder / "store")))
    with serving([orthanc(), str(configuration)], port) as pid:
        yield Running(port, (pid,), partial(_orthanc_instances, http_port))


def _orthanc_configuration(port: int, http_port: int, store: Path) -> dict[str, object]:
    return {
        "StorageDirectory": str(store),
        "IndexDirectory": str(store),
        "Plugins": [],
        "DicomAet": "MEDIMGD",
        "DicomPort": port,
        "DicomCheckCalledAet": False,
        "DicomAlwaysAllowStore": True,
        "DicomAlwaysAllowEcho": True,
        "UnknownSopClassAccepted": True,
        "HttpPort": http_port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
    }


def _orthanc_instances(http_port: int) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{http_port}/statistics", timeout=20) as answer:
        return int(json.loads(answer.read())["CountInstances"])
