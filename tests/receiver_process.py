"""The product's own receiver as a process of its own, watched from outside through /proc."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import ImplicitVRLittleEndian, generate_uid

from tests.ports import free_port
from tests.upper_layer import CT_IMAGE_STORAGE
from tests.waiting import wait_until

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_START_SECONDS = 60.0


@dataclass(frozen=True)
class Instance:
    """A small CT image that the receiver takes."""

    uid: str
    data_set: bytes

    @classmethod
    def make(cls, pixel_bytes: int = 2048, study_instance_uid: str | None = None) -> Instance:
        """Return a new one, encoded as Implicit VR Little Endian."""
        ds = Dataset()
        ds.SOPClassUID = CT_IMAGE_STORAGE
        ds.SOPInstanceUID = generate_uid()
        ds.StudyDate = "20260101"
        ds.Modality = "CT"
        ds.PatientID = "HONEST"
        ds.StudyInstanceUID = study_instance_uid or "2.25.4711"
        ds.SeriesInstanceUID = f"{ds.StudyInstanceUID}.1"
        ds.BitsAllocated = 16
        ds.PixelData = bytes(pixel_bytes)
        encoded = BytesIO()
        dcmwrite(encoded, ds, implicit_vr=True, little_endian=True)
        return cls(str(ds.SOPInstanceUID), encoded.getvalue())

    transfer_syntax_uid = str(ImplicitVRLittleEndian)


class ReceiverProcess:
    """`medimgd run receiver` on a free port, with room for many peers.

    It starts with 1024 descriptors, as services do.

    Parameters
    ----------
    folder : Path
        For configuration, data and log.
    network_timeout_seconds : float
        How long an association may be silent.
    request_timeout_seconds : float
        How long a connection may take to ask for an association.
    maximum_associations : int
        As many from one address.
    more_settings : str
        Tables to add to the configuration.
    """

    def __init__(
        self,
        folder: Path,
        *,
        network_timeout_seconds: float = 3.0,
        request_timeout_seconds: float = 6.0,
        maximum_associations: int = 400,
        more_settings: str = "",
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.log_path = folder / "receiver.log"
        self.port = free_port()
        config_path = folder / "medimgd.toml"
        config_path.write_text(
            f"[site]\ndata_folder = {str(folder / 'data')!r}\nnode_id = 'test-node'\n"
            f"[receiver]\nport = {self.port}\nprocesses = 1\nminimum_free_mib = 1\n"
            f"network_timeout_seconds = {network_timeout_seconds}\n"
            f"request_timeout_seconds = {request_timeout_seconds}\n"
            f"maximum_associations = {maximum_associations}\n"
            f"maximum_associations_per_address = {maximum_associations}\n"
            "peers = [{ ae_title = '*', network = '127.0.0.0/8' }]\n"
            f"[models]\nbundled = false\n{more_settings}"
        )
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                ["sh", "-c", 'ulimit -Sn 1024; exec "$@"', "sh", sys.executable, "-m", "daemon",
                 "run", "receiver", "-c", str(config_path)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        assert wait_until(self._listens, _START_SECONDS), f"not started:\n{self.log()}"

    def stop(self) -> int:
        """Stop it in order and return its exit status."""
        self._process.terminate()
        try:
            return self._process.wait(60)
        finally:
            self._process.kill()

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    # What it holds

    @property
    def rss_bytes(self) -> int:
        return int(self._status("VmRSS")) * 1024

    @property
    def thread_count(self) -> int:
        return int(self._status("Threads"))

    def descriptors(self) -> list[str]:
        """Return what its open files are, without their numbers."""
        names = []
        for link in Path(f"/proc/{self._process.pid}/fd").iterdir():
            try:
                names.append(str(link.readlink()))
            except FileNotFoundError:
                continue
        return names

    def leavings(self) -> list[str]:
        """Return the descriptors that only peers cause: connections, events and instances."""
        kinds = ("socket:", "pipe:", "anon_inode:")
        return [d for d in self.descriptors() if d.startswith(kinds) or "/spool/" in d]

    @property
    def connection_count(self) -> int:
        return sum(name.startswith("socket:") for name in self.descriptors())

    @property
    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND

    def incoming_files(self) -> list[Path]:
        """Return the temporary files of the spool."""
        return [path for path in self._spool.rglob("*.part*") if path.is_file()]

    def holds(self, instance: Instance) -> bool:
        """Tell whether the spool has the instance, its data set byte for byte."""
        found = [path for path in self._spool.rglob(f"*{instance.uid}*") if path.is_file()]
        return len(found) == 1 and found[0].read_bytes().endswith(instance.data_set)

    @property
    def _spool(self) -> Path:
        return self.folder / "data"

    def _status(self, name: str) -> str:
        for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return line.split()[1]
        raise AssertionError(f"no {name} in /proc: the receiver ended:\n{self.log()[-4000:]}")

    def _listens(self) -> bool:
        assert self.is_alive, f"the receiver ended:\n{self.log()}"
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True
