"""Lives of a receiver on one installation, begun and ended as a test likes.

Owns the conversation with ``tests.receiver_zygote``. Knows nothing of what is sent.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from daemon.config import Config, load_config

_ROOT = Path(__file__).resolve().parent.parent
_WAIT_SECONDS = 60.0


class Zygote:
    """A process that has imported the receiver and forks it."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.receiver_zygote"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=_ROOT,
            # A pool of threads does not survive a fork.
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert self._answer() == "ready"
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(_WAIT_SECONDS)
        self._process.stdout.close()

    def ask(self, **request: Any) -> Any:
        """Send one request and return its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{json.dumps(request)}\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the zygote ended; its last words are above"
        return json.loads(line)


@dataclass
class Site:
    """One installation: a data folder, a port and the receivers that live on them."""

    zygote: Zygote
    folder: Path
    port: int
    settings: str = ""
    pids: dict[str, int] = field(default_factory=dict)
    _log_at: dict[str, int] = field(default_factory=dict)
    _indexed_before: str = ""

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.config_path = self.folder / "medimgd.toml"
        self.log_path = self.folder / "receiver.log"
        self.config_path.write_text(
            f"[site]\ndata_folder = {str(self.folder / 'data')!r}\nnode_id = 'test-node'\n"
            f"[receiver]\nport = {self.port}\nminimum_free_mib = 1\n"
            + (self.settings or "processes = 1\n")
        )

    @property
    def config(self) -> Config:
        return load_config(self.config_path)

    @property
    def spool(self) -> Path:
        return self.config.spool_folder

    def begin(self, slot: str = "receiver-1", **changes: Any) -> int:
        """Begin a life and return its process id; it does not listen yet."""
        self._log_at[slot] = len(self.log())
        self._indexed_before = self._last_indexed()
        self.pids[slot] = self.zygote.ask(
            config=str(self.config_path), slot=slot, log=str(self.log_path), **changes
        )
        return self.pids[slot]

    def kill(self, slot: str = "receiver-1") -> int:
        """End a life as the kernel does when memory runs out; return how it ended."""
        return self.end(slot, signal.SIGKILL)

    def end(self, slot: str = "receiver-1", number: int = 0) -> int:
        """Send a signal, or none, and return how the life ended: an exit status or -signal."""
        pid = self.pids.pop(slot)
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        return int(self.zygote.ask(reap=pid))

    def await_death(self, slot: str = "receiver-1") -> int:
        """Wait until a life has ended by itself and return how; fail if it goes on."""
        state = Path(f"/proc/{self.pids[slot]}/stat")
        self.await_that(
            lambda: state.read_text().rpartition(")")[2].split()[0] == "Z", f"{slot} to die"
        )
        return self.end(slot)

    def stop(self, slot: str = "receiver-1") -> int:
        """Ask for an orderly end and return how it came."""
        # Signals are heeded from then on; a receiver listens a moment earlier.
        self.await_that(
            lambda: f"{slot} is ready" in self.log()[self._log_at[slot] :], f"{slot} to be ready"
        )
        return self.end(slot, signal.SIGTERM)

    def kill_all(self) -> None:
        """End every life that there is."""
        for slot in list(self.pids):
            self.kill(slot)

    def await_listening(self) -> None:
        """Return as soon as somebody accepts connections."""
        self.await_that(self._is_listening, "somebody to listen")

    def _is_listening(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 5):
            return True
        return False

    def await_indexed(self) -> None:
        """Return as soon as the life begun last has looked through the spool."""
        self.await_that(
            lambda: self._last_indexed() not in ("", self._indexed_before), "the spool's indexing"
        )

    def _last_indexed(self) -> str:
        """Return when the last walk over the spool began, as the receivers note it; "" for none."""
        marker = self.config.site.data_folder / "locks" / "indexing.lock"
        return marker.read_text(encoding="ascii") if marker.exists() else ""

    def await_that(self, condition: Callable[[], bool], what: str) -> None:
        """Poll until a condition holds; fail with the log otherwise."""
        deadline = time.monotonic() + _WAIT_SECONDS
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain for {what}:\n{self.log()[-4000:]}"
            time.sleep(0.002)

    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""
