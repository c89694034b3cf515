"""``medimgd demo``: the main job, visibly, on embedded defaults, with a small archive as the PACS.

Owns the demonstration's ports, its configuration file and what it expects. Everything it shows is
done by the ordinary processes; nothing here takes a short cut.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from daemon.catalogue import serving
from daemon.config import Config, load_config
from daemon.errors import DemonstrationFailed
from daemon.role import now_utc
from daemon.status import read_status
from dicom_io.association import Destination
from dicom_io.errors import MedimgdError
from dicom_io.header import read_header
from dicom_io.receiving.folder_sink import FolderSink
from dicom_io.receiving.server import StorageServer
from dicom_io.results.reading import report_text
from dicom_io.results.request import DocumentRole
from dicom_io.sending import send_paths
from dicom_io.wording import number_of
from storage.database import Database, open_database
from storage.documents import read_document
from storage.dossier import StudyDossier, read_dossier
from storage.errors import NotFound
from storage.results import ResultKind
from storage.states import DeliveryState, JobState, ResultState, StudyState

SAMPLES = Path(__file__).resolve().parent / "samples"
ARCHIVE_AE_TITLE = "DEMOPACS"
MODALITY_AE_TITLE = "MODALITY"
FIRST_PORT = 11112
FIRST_WEB_PORT = 8042
PORTS_TRIED = 100
START_SECONDS = 180.0
"""TensorFlow's first import from a cold disk takes most of it."""
ANALYSIS_SECONDS = 180.0

Say = Callable[[str], None]

_ENDED = frozenset({StudyState.UNMATCHED, StudyState.REFUSED, StudyState.HELD})
_ARRIVED = frozenset({DeliveryState.SENT, DeliveryState.CONFIRMED})
_UNFINISHED = frozenset({JobState.WAITING, JobState.RUNNING})


@dataclass(frozen=True, slots=True)
class Sample:
    """One bundled study."""

    title: str
    folder: Path
    study_instance_uid: str


@dataclass(frozen=True, slots=True)
class Ended:
    """How one sample ended."""

    sample: Sample
    dossier: StudyDossier

    @property
    def reports_arrived(self) -> int:
        """Reports the archive has accepted."""
        return sum(
            delivery.role == DocumentRole.REPORT and delivery.state in _ARRIVED
            for delivery in self.dossier.deliveries
        )

    @property
    def findings_expected(self) -> int:
        """Analyses the study was routed to; each owes a report."""
        return sum(job.state is not JobState.SUPERSEDED for job in self.dossier.jobs)


def bundled_samples() -> tuple[Sample, ...]:
    """Return the three studies that come with medimgd."""
    titles = {"chest-xray": "chest X-ray", "ct": "chest CT", "mr": "head MR"}
    return tuple(
        Sample(title, SAMPLES / name, read_header(next((SAMPLES / name).glob("*.dcm")))
               .study_instance_uid)
        for name, title in titles.items()
    )  # fmt: skip


def run_demo(folder: Path, say: Say, *, once: bool) -> None:
    """Show a study going in and its report coming back.

    Parameters
    ----------
    folder : Path
        Where state, archive, configuration and log go; kept between runs.
    say : callable
        Prints one line.
    once : bool
        End after the demonstration instead of staying up for more.

    Raises
    ------
    DemonstrationFailed
        An expected report did not arrive; the message says which and where the log lies.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # A closed terminal ends the demonstration as Ctrl-C does: nothing is left running.
        signal.signal(number, _interrupt)
    folder.mkdir(parents=True, exist_ok=True)
    samples = bundled_samples()
    with _archive(folder / "archive") as archive:
        config_path = _write_config(folder, archive.port)
        config = load_config(config_path)
        say(f"archive (plays the PACS): {ARCHIVE_AE_TITLE} on 127.0.0.1 port {archive.port}")
        with _daemon(config_path, folder / "medimgd.log") as process:
            say("medimgd starts (TensorFlow takes some seconds) ...")
            database = _wait_until_ready(config, process)
            try:
                say(
                    f"medimgd receives as {config.receiver.ae_title} on 127.0.0.1 "
                    f"port {config.receiver.port}; worklist: http://127.0.0.1:{config.web.port}/"
                )
                ended = _show(config, database, samples, say)
                _report(folder, config, database, ended, say)
                _check(ended, expects_chest_report(config), folder)
                if not once:
                    say("\nmedimgd stays up for your own studies; Ctrl-C ends it.")
                    _wait_for_end(process)
            finally:
                database.close()


def _interrupt(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise KeyboardInterrupt


def expects_chest_report(config: Config) -> bool:
    """True when a chest film model is installed, as it is unless the site switched it off."""
    packages = serving(config).packages
    return any(package.identity.name == "cxr-pneumonia" for package in packages)


def free_port(first: int) -> int:
    """Return `first`, or the next port that nothing listens on."""
    for port in range(first, first + PORTS_TRIED):
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port
    raise DemonstrationFailed(f"no free port from {first} to {first + PORTS_TRIED - 1}")


@contextmanager
def _archive(folder: Path) -> Iterator[StorageServer]:
    with StorageServer(FolderSink(folder), ae_titles=(ARCHIVE_AE_TITLE,), port=0) as server:
        yield server


def _write_config(folder: Path, archive_port: int) -> Path:
    path = folder / "medimgd.toml"
    path.write_text(
        "# Written anew by every 'medimgd demo'; for an installation use 'medimgd config init'.\n"
        f"[site]\ndata_folder = {str((folder / 'data').resolve())!r}\n\n"
        f"[receiver]\nport = {free_port(FIRST_PORT)}\n\n"
        "[study]\nquiet_seconds = 2\n\n"
        "[results]\nfirst_retry_seconds = 2\n\n"
        f"[web]\nport = {free_port(FIRST_WEB_PORT)}\n\n"
        f'[[destinations]]\nname = "demo-archive"\nhost = "127.0.0.1"\nport = {archive_port}\n'
        f'ae_title = "{ARCHIVE_AE_TITLE}"\nconfirm = false\n',
        encoding="utf-8",
    )
    return path


@contextmanager
def _daemon(config_path: Path, log_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "daemon", "run", "--config", str(config_path)]
    with log_path.open("ab") as log:
        # Its own session: Ctrl-C reaches this process alone, which then stops it in order.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        try:
            yield process
        finally:
            process.terminate()
            process.wait()


def _wait_until_ready(config: Config, process: subprocess.Popen[bytes]) -> Database:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise DemonstrationFailed(f"medimgd ended with status {process.returncode} at start")
        if is_ready(config):
            return open_database(config.database_path, read_only=True)
        time.sleep(0.5)
    raise DemonstrationFailed(f"medimgd was not ready after {START_SECONDS:.0f} s")


def is_ready(config: Config) -> bool:
    """True when every process that the demonstration needs lives, and the worker has its models.

    What a run that was killed left in the database counts for nothing.
    """
    try:
        status = read_status(config, now_utc())
    except MedimgdError:
        return False
    living = {process.role: process for process in status.processes if process.alive}
    worker = living.get("worker")
    is_warm = worker is not None and worker.detail.get("models") is not None
    return is_warm and {"receiver", "preparer", "courier"} <= living.keys()


def _show(config: Config, database: Database, samples: Sequence[Sample], say: Say) -> list[Ended]:
    modality = Destination(
        "medimgd", "127.0.0.1", config.receiver.port, config.receiver.ae_title, MODALITY_AE_TITLE
    )
    for sample in samples:
        outcomes = list(send_paths(modality, [sample.folder]))
        stored = sum(outcome.outcome.is_delivered for outcome in outcomes)
        of_all = number_of(len(outcomes), "instance")
        say(f"sent      {sample.title}: {stored} of {of_all} acknowledged")
        if stored != len(outcomes):
            raise DemonstrationFailed(f"{sample.title}: {outcomes[-1].outcome}")
    return [_follow(database, sample, say) for sample in samples]


def _follow(database: Database, sample: Sample, say: Say) -> Ended:
    """Say each change of a study until it has ended."""
    said = ""
    deadline = time.monotonic() + ANALYSIS_SECONDS
    while time.monotonic() < deadline:
        ended = _ended(database, sample)
        if ended is not None:
            state = ended.dossier.study.state
            if state != said:
                said = state
                reason = f" ({ended.dossier.study.reason})" if ended.dossier.study.reason else ""
                say(f"{state:<9} {sample.title}{reason}")
            if _is_over(ended):
                return ended
        time.sleep(0.2)
    raise DemonstrationFailed(
        f"{sample.title}: no end after {ANALYSIS_SECONDS:.0f} s (state: {said or 'not indexed'})"
    )


def _ended(database: Database, sample: Sample) -> Ended | None:
    try:
        return Ended(sample, read_dossier(database, sample.study_instance_uid))
    except NotFound:
        return None


def _is_over(ended: Ended) -> bool:
    dossier = ended.dossier
    if dossier.study.state in _ENDED:
        return True
    return (
        dossier.study.state is StudyState.ROUTED
        and not any(job.state in _UNFINISHED for job in dossier.jobs)
        and not any(result.state is ResultState.AWAITING for result in dossier.results)
        and not any(each.state is DeliveryState.PENDING for each in dossier.deliveries)
    )


def _report(
    folder: Path, config: Config, database: Database, ended: Sequence[Ended], say: Say
) -> None:
    for one in ended:
        say(f"\n=== {one.sample.title}: {one.dossier.study.state.upper()} ===")
        if not one.dossier.results:
            say(f"no analysis: {one.dossier.study.reason}")
        for result in one.dossier.results:
            if result.kind is not ResultKind.FINDING:
                say(f"{result.model.at_version}: NOT ANALYSED: {result.refusal_message}")
            for finding in result.findings:
                say(
                    f"{result.model.at_version}: {finding.label} {finding.presence.upper()} "
                    f"(certainty {finding.certainty_percent:g} %, "
                    f"threshold {finding.threshold * 100:g} %) - not verified by a physician"
                )
        for document in one.dossier.documents:
            if document.role == DocumentRole.REPORT:
                say("\nThe Structured Report as text:")
                say(report_text(read_document(database, document.id)))
    say(f"Received files:  {config.spool_folder}")
    say(f"Results at the archive: {(folder / 'archive').resolve()}")
    say(f"Log:             {(folder / 'medimgd.log').resolve()}")
    medimgd = Path(sys.executable).parent / "medimgd"
    option = f"--config {folder / 'medimgd.toml'}"
    say("\nTry next, in another terminal:")
    say(f"  {medimgd} status {option}")
    say(f"  {medimgd} explain {ended[0].dossier.study.study_instance_uid} {option}")
    say(f"  {medimgd} send YOUR-FOLDER --to 127.0.0.1:{config.receiver.port}")
    say(
        f"  /usr/bin/storescu -aec {config.receiver.ae_title} 127.0.0.1 {config.receiver.port} FILE"
    )


def _check(ended: Sequence[Ended], expects_chest: bool, folder: Path) -> None:
    chest = ended[0]
    missing = [
        f"{one.sample.title} owes {number_of(one.findings_expected, 'report')}, "
        f"{one.reports_arrived} arrived ({one.dossier.study.state}: {one.dossier.study.reason})"
        for one in ended
        if one.dossier.study.state is StudyState.ROUTED
        and one.reports_arrived < one.findings_expected
    ]
    if expects_chest and chest.dossier.study.state is not StudyState.ROUTED:
        missing.append(f"the chest X-ray was not analysed: {chest.dossier.study.reason}")
    if missing:
        log = (folder / "medimgd.log").resolve()
        raise DemonstrationFailed(f"{'; '.join(missing)}. The log is {log}")


def _wait_for_end(process: subprocess.Popen[bytes]) -> None:
    with suppress(KeyboardInterrupt):
        process.wait()
