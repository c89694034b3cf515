"""An installation of medimgd in a temporary folder, run as an administrator runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daemon.config import Config, load_config
from dicom_io.association import Destination
from dicom_io.receiving.instances import STORED, StoreAnswer, StoreRequest
from dicom_io.receiving.part10 import file_prefix
from dicom_io.receiving.server import StorageServer
from dicom_io.sending import PathOutcome, send_paths
from storage.database import Database, open_database
from storage.dossier import StudyDossier, read_dossier
from storage.errors import NotFound, StorageError
from storage.processes import ProcessRecord, list_processes
from storage.states import DeliveryState, JobState, ResultState, StudyState
from storage.studies import list_studies
from tests.sinks import GatheringSink

WAIT_SECONDS = 120.0
ROLES = ("receiver", "scheduler", "preparer", "worker", "courier")
_REST = frozenset({StudyState.UNMATCHED, StudyState.REFUSED, StudyState.HELD})


@dataclass(frozen=True)
class Archive:
    """Where results go: a DICOM node, by address."""

    name: str
    port: int
    ae_title: str = "ARCHIVE"
    confirm: bool = False


class RecordingSink(GatheringSink):
    """An archive in this process: keeps every instance, and can be slow or full."""

    def __init__(self) -> None:
        self.received: list[tuple[str, bytes]] = []
        self.delay_seconds = 0.0
        self.answer = STORED

    def store(self, request: StoreRequest, data_set: bytes) -> StoreAnswer:
        data = file_prefix(request) + data_set
        time.sleep(self.delay_seconds)
        if self.answer is STORED:
            self.received.append((request.sop_class_uid, data))
        return self.answer

    def files(self) -> dict[bytes, None]:
        """Return what is held, each content once."""
        return dict.fromkeys(data for _, data in self.received)


@contextmanager
def recording_archive(
    port: int = 0, sink: RecordingSink | None = None
) -> Iterator[tuple[RecordingSink, Archive]]:
    """Run an archive that remembers what it was sent."""
    sink = sink or RecordingSink()
    with StorageServer(sink, ae_titles=("ARCHIVE",), port=port) as server:
        yield sink, Archive("archive", server.port)


class Installation:
    """A configuration, a data folder and the processes that run on it."""

    def __init__(
        self,
        folder: Path,
        port: int,
        archives: Sequence[Archive] = (),
        models: Path | None = None,
        settings: str = "",
        bundled: bool = False,
    ) -> None:
        self.folder = folder
        self.port = port
        self.config_path = folder / "medimgd.toml"
        self.log_path = folder / "medimgd.log"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        folders = f"[{str(models)!r}]" if models else "[]"
        self.config_path.write_text(
            f"[site]\ndata_folder = {str(folder / 'data')!r}\nnode_id = 'test-node'\n"
            f"[receiver]\nport = {port}\nminimum_free_mib = 1\n"
            "[study]\nquiet_seconds = 0.5\nlease_seconds = 20\n"
            f"[models]\nbundled = {str(bundled).lower()}\nfolders = {folders}\n"
            "[worker]\nlease_seconds = 20\n"
            "[results]\nfirst_retry_seconds = 1\nlongest_retry_seconds = 2\nsend_refusals = true\n"
            "[web]\nport = 0\n" + settings + "".join(_block(archive) for archive in archives)
        )

    @property
    def config(self) -> Config:
        return load_config(self.config_path)

    # Processes

    def start(self, *roles: str) -> None:
        """Start roles one by one, or everything under supervision when none is named.

        A role may name its slot: ``receiver-2``.
        """
        for role in roles or ("all",):
            self.launch(role)
        receivers = range(2, self.config.receiver.process_count + 1)
        for role in roles or (*ROLES, *(f"receiver-{number}" for number in receivers)):
            self.wait(lambda role=role: self._is_ready(role), f"{role} to be ready")

    def launch(self, role: str) -> None:
        """Start one role and do not wait for it."""
        name, _, number = role.partition("-")
        slot = ["--slot", role] if number else []
        with self.log_path.open("ab") as log:
            self.processes[role] = subprocess.Popen(
                [sys.executable, "-m", "daemon", "run", name, "-c", str(self.config_path), *slot],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def kill(self, role: str) -> None:
        """Kill one process as the kernel does when memory runs out."""
        process = self.processes.pop(role)
        process.kill()
        process.wait()

    def stop(self) -> dict[str, int]:
        """Stop everything in order; return exit statuses by role."""
        for process in self.processes.values():
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        codes = {role: process.wait(90) for role, process in self.processes.items()}
        self.processes.clear()
        return codes

    def _is_ready(self, role: str) -> bool:
        process = self.processes.get(role, self.processes.get("all"))
        assert process is not None
        assert process.poll() is None, f"{role} ended:\n{self.log()[-4000:]}"
        found = self._process(role)
        if found is None or (role in self.processes and found.pid != process.pid):
            return False
        return role != "worker" or "models" in found.detail

    def _process(self, role: str) -> ProcessRecord | None:
        slot = role if "-" in role else f"{role}-1"
        return next((each for each in self.read(list_processes, ()) if each.slot == slot), None)

    def child_pid(self, role: str) -> int:
        """Return the process ID a role registered."""
        found = self._process(role)
        assert found is not None, f"{role} registered no process"
        return found.pid

    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    # Sending

    def send(self, *paths: Path) -> list[PathOutcome]:
        """Send files with our own SCU; every status is kept."""
        peer = Destination("medimgd", "127.0.0.1", self.port, "MEDIMGD", "MODALITY")
        return list(send_paths(peer, paths))

    # Looking

    @contextmanager
    def database(self) -> Iterator[Database]:
        database = open_database(self.config.database_path, read_only=True)
        try:
            yield database
        finally:
            database.close()

    def read(self, query: Callable[[Database], Any], otherwise: Any) -> Any:
        """Return what `query` finds, or `otherwise` while there is no database yet."""
        try:
            with self.database() as database:
                return query(database)
        except StorageError:
            return otherwise

    def studies(self) -> Any:
        return self.read(list_studies, ())

    def dossier(self, study_instance_uid: str) -> StudyDossier | None:
        try:
            with self.database() as database:
                return read_dossier(database, study_instance_uid)
        except NotFound:
            return None

    def wait(self, condition: Callable[[], Any], what: str, seconds: float = WAIT_SECONDS) -> Any:
        """Poll until `condition` gives something; fail with the log otherwise."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found = condition()
            if found:
                return found
            time.sleep(0.02)
        raise AssertionError(f"waited in vain for {what}; log:\n{self.log()[-6000:]}")

    def wait_until_over(
        self, study_instance_uid: str, instances: int | None = None
    ) -> StudyDossier:
        """Wait until nothing of a study is under way any more."""

        def over() -> StudyDossier | None:
            found = self.dossier(study_instance_uid)
            if found is None or (instances and found.study.instance_count != instances):
                return None
            return found if is_over(found) else None

        return self.wait(over, f"study {study_instance_uid} to end")

    def run(self, *arguments: str, check: int | None = 0) -> subprocess.CompletedProcess[str]:
        """Run a medimgd command on this installation."""
        done = subprocess.run(
            [sys.executable, "-m", "daemon", *arguments, "--config", str(self.config_path)],
            capture_output=True, text=True, timeout=120, check=False,
            env={**os.environ, "COLUMNS": "200"},
        )  # fmt: skip
        if check is not None:
            assert done.returncode == check, f"{arguments}: {done.stdout}\n{done.stderr}"
        return done

    def run_json(self, *arguments: str, check: int | None = 0) -> Any:
        return json.loads(self.run(*arguments, "--json", check=check).stdout)


def is_over(dossier: StudyDossier) -> bool:
    """True when neither model nor courier has anything left to do with the study."""
    results_over = not any(each.state is ResultState.AWAITING for each in dossier.results)
    sent = not any(each.state is DeliveryState.PENDING for each in dossier.deliveries)
    idle = not any(each.state in (JobState.WAITING, JobState.RUNNING) for each in dossier.jobs)
    ended = dossier.study.state in _REST or dossier.study.state is StudyState.ROUTED
    return ended and idle and results_over and sent


def _block(archive: Archive) -> str:
    return (
        f"[[destinations]]\nname = '{archive.name}'\nhost = '127.0.0.1'\nport = {archive.port}\n"
        f"ae_title = '{archive.ae_title}'\nconfirm = {str(archive.confirm).lower()}\n"
        "timeout_seconds = 10\n"
    )
