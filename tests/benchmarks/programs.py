"""Programs the benchmarks run beside medimgd: DCMTK by full path, free ports, listening servers.

Owns starting and ending them; knows nothing of what is measured.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

START_SECONDS = 30.0


class ProgramMissing(Exception):
    """Something to compare with is not installed."""


def dcmtk(tool: str) -> str:
    """Return a DCMTK tool's full path."""
    # pynetdicom installs scripts of the same names beside this interpreter.
    ours = {Path(sys.executable).parent.resolve(), Path(sys.prefix, "bin").resolve()}
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    elsewhere = [folder for folder in folders if Path(folder).resolve() not in ours]
    found = shutil.which(tool, path=os.pathsep.join(elsewhere))
    if found is None:
        raise ProgramMissing(f"DCMTK's {tool} is not installed: install the package dcmtk")
    return found


def orthanc() -> str:
    """Return Orthanc's full path."""
    found = shutil.which("Orthanc", path=os.environ.get("PATH", os.defpath) + ":/usr/sbin")
    if found is None:
        raise ProgramMissing("Orthanc is not installed: install the package orthanc")
    return found


def peer_environment(*, nagle: bool = False) -> dict[str, str]:
    """Return the environment DCMTK runs in; without TCP_NODELAY it is as Debian ships it."""
    plain = {name: value for name, value in os.environ.items() if name != "TCP_NODELAY"}
    return plain if nagle else {**plain, "TCP_NODELAY": "1"}


@contextmanager
def serving(command: Sequence[str], port: int, *, nagle: bool = False) -> Iterator[int]:
    """Run a server from when it listens until the end of the block; give its process ID."""
    process = subprocess.Popen(
        command,
        env=peer_environment(nagle=nagle),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_until_listening(process, port, Path(command[0]).name)
        yield process.pid
    finally:
        process.terminate()
        process.wait(20)


def _wait_until_listening(process: subprocess.Popen[bytes], port: int, name: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"{name} ended at once with exit status {process.returncode}")
        if _is_listening(port):
            return
        time.sleep(0.02)
    raise RuntimeError(f"{name} did not listen on port {port} within {START_SECONDS:g} s")


def _is_listening(port: int) -> bool:
    # Looked up instead of connected to: storescp would count a probe as an association.
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            local, state = line.split()[1], line.split()[3]
            if local.endswith(f":{port:04X}") and state == "0A":
                return True
    return False
