"""Programs of our own that all begin at one signal, when the start of Python lies behind them.

Owns the few lines exchanged between the benchmark and those programs. Must not know what they do.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_READY = "ready"


@dataclass(frozen=True)
class Together:
    """What several programs did at once."""

    seconds: float
    """From the signal to the last report."""
    reports: list[Mapping[str, float]]

    def total(self, figure: str) -> float:
        """Return the sum of one figure."""
        return sum(report[figure] for report in self.reports)


def run_together(module: str, arguments: Sequence[Sequence[str]]) -> Together:
    """Run a module once for each list of arguments, all at once."""
    programs = [
        subprocess.Popen(
            [sys.executable, "-m", module, *each],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for each in arguments
    ]  # fmt: skip
    try:
        for program in programs:
            _line(program)
        started = time.perf_counter()
        for program in programs:
            assert program.stdin is not None
            program.stdin.write("go\n")
            program.stdin.flush()
        reports = [json.loads(_line(program)) for program in programs]
        return Together(time.perf_counter() - started, reports)
    finally:
        for program in programs:
            program.kill()
            program.communicate()


def wait_for_signal() -> None:
    """In such a program: say that everything is prepared, and wait."""
    print(_READY, flush=True)
    if not sys.stdin.readline():
        sys.exit("nobody gave the signal")
    global _USED  # noqa: PLW0603 - a program has one beginning
    _USED = _processor_seconds()


def report(**figures: float) -> None:
    """In such a program: say what was done; processor time since the signal is added."""
    used = _processor_seconds() - _USED
    print(json.dumps({**figures, "processor_seconds": used}), flush=True)
    # The pipes of interpreter shutdown cost nobody anything once the report is out.
    os._exit(0)


_USED = 0.0


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _line(program: subprocess.Popen[str]) -> str:
    assert program.stdout is not None
    line = program.stdout.readline()
    if not line:
        raise RuntimeError(f"{program.args!r} ended with status {program.wait()}")
    return line
