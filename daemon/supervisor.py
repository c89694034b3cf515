"""The parent of ``medimgd run``: starts one process per role, watches them, stops them in order.

Owns child processes and their restart policy. Knows nothing of what the roles do.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from daemon.config import CONFIG_VARIABLE, SUPERVISOR_VARIABLE
from daemon.exit_codes import ExitCode
from daemon.logs import ACTION, REASON, SECONDS, SLOT

_logger = logging.getLogger(__name__)

FIRST_BACKOFF_SECONDS = 0.5
LONGEST_BACKOFF_SECONDS = 30.0
_MOST_DOUBLINGS = 32
"""Beyond the longest pause; a child may die without end, and its pause must stay a number."""
STEADY_SECONDS = 60.0
"""A child that lived this long is healthy: its next death starts the backoff anew."""
DEATHS_BEFORE_GIVING_UP = 6
STOP_SECONDS = 60.0
"""How long children may take to finish what they hold before they are killed."""

STOP_ORDER = ("receiver", "web", "preparer", "worker", "courier")
"""Reception stops first, so that nothing new arrives while the rest drains."""


@dataclass
class Child:
    """One role's process and its history."""

    role: str
    slot: str
    may_keep_dying: bool = False
    """True for the GPU worker: its death must never stop reception."""
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    deaths: int = 0
    start_again_at: float = field(default=0.0)

    @property
    def is_running(self) -> bool:
        """True while the process lives."""
        return self.process is not None and self.process.poll() is None

    @property
    def is_beyond_hope(self) -> bool:
        """True when it is needed, lies dead and has died too often to be started again."""
        is_dead = self.process is None and not self.may_keep_dying
        return is_dead and self.deaths >= DEATHS_BEFORE_GIVING_UP


def backoff_seconds(deaths: int) -> float:
    """Return the pause before a child starts again after its `deaths`-th death in a row."""
    doubled = FIRST_BACKOFF_SECONDS * 2.0 ** min(max(deaths - 1, 0), _MOST_DOUBLINGS)
    return min(doubled, LONGEST_BACKOFF_SECONDS)


def command_of(role: str, slot: str) -> list[str]:
    """Return the argument vector that runs `role` on its own."""
    return [sys.executable, "-m", "daemon", "run", role, "--slot", slot]


class Supervisor:
    """Keeps the children of one ``medimgd run`` alive until told to stop.

    Parameters
    ----------
    children : sequence of Child
        What to keep running.
    config_path : Path or None
        The configuration file. It is read now, and the children are handed what it holds: one that
        starts again after an edit must not run on other settings than its siblings.
    command : callable, optional
        Role and slot to argument vector; tests put small programs here.
    """

    def __init__(
        self,
        children: Sequence[Child],
        config_path: Path | None,
        command: Callable[[str, str], list[str]] = command_of,
    ) -> None:
        self._children = list(children)
        self._configuration = _kept(b"" if config_path is None else config_path.read_bytes())
        self._command = command
        self._stop = threading.Event()

    def request_stop(self) -> None:
        """Ask for an orderly stop; safe in a signal handler."""
        self._stop.set()

    def run(self) -> ExitCode:
        """Start the children and watch them until a stop is asked for or one keeps dying."""
        given_up: Child | None = None
        for child in self._children:
            self._start(child)
        while given_up is None and not self._stop.wait(0.2):
            given_up = self._tend(time.monotonic())
        dying = [child.slot for child in self._children if child.deaths and not child.is_running]
        self._stop_all()
        os.close(self._configuration)
        if given_up is not None or dying:
            return ExitCode.CHILD_KEEPS_DYING
        return ExitCode.OK

    def _tend(self, now: float) -> Child | None:
        """Restart what died and is due; return a child that is beyond hope."""
        for child in self._children:
            if child.process is not None and child.process.poll() == ExitCode.RENEWED:
                self._note_renewal(child)
            elif child.process is not None and not child.is_running:
                self._note_death(child, _how_it_ended(child.process.returncode), now)
            if child.is_beyond_hope:
                _logger.error(
                    "%s died %d times in a row: medimgd stops", child.slot, child.deaths,
                    extra={ACTION: "child_given_up", SLOT: child.slot},
                )  # fmt: skip
                return child
            if child.process is None and now >= child.start_again_at:
                self._start(child)
            if child.is_running and child.deaths and now - child.started > STEADY_SECONDS:
                child.deaths = 0
        return None

    def _note_death(self, child: Child, how: str, now: float) -> None:
        child.deaths += 1
        pause = backoff_seconds(child.deaths)
        child.start_again_at = now + pause
        _logger.warning(
            "%s ended (%s); it starts again in %.1f s",
            child.slot, how, pause,
            extra={ACTION: "child_died", SLOT: child.slot, SECONDS: pause,
                   REASON: how},
        )  # fmt: skip
        child.process = None

    def _note_renewal(self, child: Child) -> None:
        """Take note of an orderly change: no death is counted, and no pause is made."""
        _logger.info(
            "%s changes its process in order", child.slot,
            extra={ACTION: "child_renewed", SLOT: child.slot},
        )  # fmt: skip
        child.process = None
        child.start_again_at = 0.0

    def _start(self, child: Child) -> None:
        environment = os.environ | {
            SUPERVISOR_VARIABLE: str(os.getpid()),
            CONFIG_VARIABLE: f"/proc/self/fd/{self._configuration}",
        }
        try:
            child.process = subprocess.Popen(
                self._command(child.role, child.slot),
                env=environment,
                pass_fds=[self._configuration],
                stdin=subprocess.DEVNULL,
                # A terminal's Ctrl-C reaches the parent alone, which then stops them in order.
                start_new_session=True,
            )
        except OSError as error:
            # Out of memory or processes, or a program that is being replaced: the others go on.
            self._note_death(child, f"not started, {error.strerror or error}", time.monotonic())
            return
        child.started = time.monotonic()
        _logger.info("%s started", child.slot, extra={ACTION: "child_started", SLOT: child.slot})

    def _stop_all(self) -> None:
        deadline = time.monotonic() + STOP_SECONDS
        for role in STOP_ORDER:
            children = [child for child in self._children if child.role == role]
            for child in children:
                _signal(child, signal.SIGTERM)
            for child in children:
                self._await_end(child, deadline)

    def _await_end(self, child: Child, deadline: float) -> None:
        if child.process is None:
            return
        try:
            child.process.wait(timeout=max(deadline - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            _logger.error("%s did not stop in time and was killed", child.slot)
            child.process.kill()
            child.process.wait()

    def stop_at_once(self) -> None:
        """Kill every child; what they held returns when its leases are reclaimed."""
        for child in self._children:
            _signal(child, signal.SIGKILL)


def _kept(text: bytes) -> int:
    """Return the descriptor of a file in memory: nobody else reads or changes it."""
    descriptor = os.memfd_create("medimgd.toml")
    with os.fdopen(descriptor, "wb", closefd=False) as file:
        file.write(text)
    return descriptor


def _signal(child: Child, number: signal.Signals) -> None:
    if child.is_running and child.process is not None:
        child.process.send_signal(number)


def _how_it_ended(returncode: int) -> str:
    if returncode >= 0:
        return f"exit status {returncode}"
    try:
        return f"signal {signal.Signals(-returncode).name}"
    except ValueError:  # Most real-time signals have no name.
        return f"signal {-returncode}"
