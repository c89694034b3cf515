"""Real peers on this machine: DCMTK's tools, DCMTK's storescp and Orthanc as the PACS."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.ports import free_port

_START_SECONDS = 30.0
_RUN_SECONDS = 120.0

# Without it DCMTK leaves Nagle's algorithm on: every instance waits 40 ms for an acknowledgement.
_PEER_ENVIRONMENT = {"TCP_NODELAY": "1", "DCMDICTPATH": os.environ.get("DCMDICTPATH", "")}


@dataclass(frozen=True)
class StorescpPeer:
    """DCMTK's storescp, which writes what it receives into `folder` bit by bit."""

    port: int
    folder: Path

    def paths(self) -> list[Path]:
        return sorted(path for path in self.folder.iterdir() if path.is_file())


@dataclass(frozen=True)
class OrthancPeer:
    """An Orthanc with an empty store; DICOM on `port`, REST on `http_port`."""

    port: int
    http_port: int

    def get(self, path: str):
        """Return what the REST interface answers: parsed JSON, or bytes when it is none."""
        url = f"http://127.0.0.1:{self.http_port}{path}"
        with urllib.request.urlopen(url, timeout=20) as answer:
            body = answer.read()
        try:
            return json.loads(body)
        except ValueError:
            return body


def peer_environment() -> dict[str, str]:
    """Return the environment DCMTK and Orthanc run in."""
    extra = {name: value for name, value in _PEER_ENVIRONMENT.items() if value}
    return {**os.environ, **extra}


@pytest.fixture(name="free_port")
def _free_port() -> int:
    """A port nobody listens on."""
    return free_port()


@pytest.fixture(scope="session")
def free_ports() -> Callable[[], int]:
    """A function giving a port nobody listens on at each call."""
    return free_port


@pytest.fixture(scope="session")
def dcmtk() -> Callable[[str], str]:
    """A function giving a DCMTK tool's full path; the run fails where DCMTK is missing."""

    def find(tool: str) -> str:
        # pynetdicom installs scripts of the same names beside an interpreter: this one, or that of
        # another environment which is active.
        ours = {Path(sys.executable).parent.resolve(), Path(sys.prefix, "bin").resolve()}
        folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
        elsewhere = [
            folder
            for folder in folders
            if Path(folder).resolve() not in ours and not Path(folder, "..", "pyvenv.cfg").exists()
        ]
        found = shutil.which(tool, path=os.pathsep.join(elsewhere))
        if found is None:
            pytest.fail(f"DCMTK's {tool} is not installed: install the package dcmtk")
        return found

    return find


@pytest.fixture(scope="session")
def run_dcmtk(dcmtk) -> Callable[..., subprocess.CompletedProcess[str]]:
    """A function running a DCMTK tool to its end: ``run_dcmtk("echoscu", "127.0.0.1", port)``."""

    def run(tool: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [dcmtk(tool), *map(str, arguments)],
            env=peer_environment(),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_RUN_SECONDS,
            check=False,
        )

    return run


@pytest.fixture
def start_storescp(dcmtk, tmp_path_factory) -> Iterator[Callable[..., StorescpPeer]]:
    """A function starting a storescp with further options; all end with the test."""
    yield from _storescps(dcmtk, tmp_path_factory)


@pytest.fixture(scope="module")
def module_storescp(dcmtk, tmp_path_factory) -> Iterator[StorescpPeer]:
    """One storescp for all tests of a module."""
    starting = _storescps(dcmtk, tmp_path_factory)
    yield next(starting)("+xa")
    next(starting, None)


def _storescps(dcmtk, tmp_path_factory) -> Iterator[Callable[..., StorescpPeer]]:
    running: list[subprocess.Popen[bytes]] = []

    def start(*options: object, port: int | None = None) -> StorescpPeer:
        folder = tmp_path_factory.mktemp("storescp")
        port = port or free_port()
        command = [dcmtk("storescp"), "-q", "+B", "-od", str(folder), *map(str, options), str(port)]
        process = subprocess.Popen(command, env=peer_environment())
        running.append(process)
        _wait_for_port(process, port, "storescp")
        return StorescpPeer(port, folder)

    yield start
    for process in running:
        _end(process)


@pytest.fixture
def storescp_peer(start_storescp) -> StorescpPeer:
    """A storescp that takes every transfer syntax DCMTK knows."""
    return start_storescp("+xa")


@pytest.fixture
def dcmqrscp_peer(dcmtk, tmp_path: Path) -> Iterator[StorescpPeer]:
    """DCMTK's small archive under the AE title PACS: stores, and answers queries."""
    folder = tmp_path / "dcmqrscp"
    folder.mkdir()
    port = free_port()
    configuration = tmp_path / "dcmqrscp.cfg"
    configuration.write_text(
        f"NetworkTCPPort = {port}\nMaxPDUSize = 16384\nMaxAssociations = 16\n"
        "HostTable BEGIN\nHostTable END\nVendorTable BEGIN\nVendorTable END\n"
        f"AETable BEGIN\nPACS {folder} RW (200, 1024mb) ANY\nAETable END\n"
    )
    command = [dcmtk("dcmqrscp"), "-q", "-c", str(configuration), "-dhl"]
    process = subprocess.Popen(command, env=peer_environment())
    try:
        _wait_for_port(process, port, "dcmqrscp")
        yield StorescpPeer(port, folder)
    finally:
        _end(process)


@pytest.fixture
def orthanc_peer(tmp_path: Path) -> Iterator[OrthancPeer]:
    """An Orthanc with an empty store, ready to answer."""
    yield from _orthanc(tmp_path)


@pytest.fixture(scope="module")
def module_orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OrthancPeer]:
    """The same, for all tests of a module."""
    yield from _orthanc(tmp_path_factory.mktemp("orthanc"))


def _orthanc(tmp_path: Path) -> Iterator[OrthancPeer]:
    program = shutil.which("Orthanc", path=os.environ.get("PATH", "") + ":/usr/sbin")
    if program is None:
        pytest.fail("Orthanc is not installed: install the package orthanc")
    peer = OrthancPeer(free_port(), free_port())
    configuration = tmp_path / "orthanc.json"
    configuration.write_text(json.dumps(_orthanc_configuration(peer, tmp_path / "orthanc")))
    log = tmp_path / "orthanc.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, str(configuration)], env=peer_environment(), stdout=output, stderr=output
        )
    try:
        _wait_for_port(process, peer.port, f"Orthanc (log: {log})")
        _wait_for_rest(peer)
        yield peer
    finally:
        _end(process)


def _orthanc_configuration(peer: OrthancPeer, storage: Path) -> dict[str, object]:
    return {
        "Name": "test",
        "StorageDirectory": str(storage),
        "IndexDirectory": str(storage),
        "Plugins": [],
        "DicomAet": "ORTHANC",
        "DicomPort": peer.port,
        "DicomCheckCalledAet": False,
        "DicomAlwaysAllowStore": True,
        "DicomAlwaysAllowEcho": True,
        "DicomAlwaysAllowFind": True,
        "DicomCheckModalityHost": False,
        "UnknownSopClassAccepted": True,
        "HttpPort": peer.http_port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "HttpThreadsCount": 4,
        "DicomModalities": {},
    }


def _wait_for_port(process: subprocess.Popen[bytes], port: int, name: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            pytest.fail(f"{name} ended at once with exit status {process.returncode}")
        if _is_listening(port):
            return
        time.sleep(0.02)
    pytest.fail(f"{name} did not listen on port {port} within {_START_SECONDS:g} s")


def _is_listening(port: int) -> bool:
    # Looked up instead of connected to: storescp would count a probe as an association.
    wanted = f":{port:04X}"
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            local, state = line.split()[1], line.split()[3]
            if local.endswith(wanted) and state == "0A":
                return True
    return False


def _wait_for_rest(peer: OrthancPeer) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            peer.get("/system")
        except urllib.error.URLError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
