"""Forks receivers on request, so that a life of one costs milliseconds and not an import.

Run as ``python -m tests.receiver_zygote``: one JSON object a line comes in, one answer a line goes
out. ``{"config": ..., "slot": ..., "log": ...}`` forks a receiver that runs exactly what ``medimgd
run receiver`` runs and answers its process id; ``steps`` and ``sabotage`` in it change that life on
purpose. ``{"reap": pid}`` waits for an end and answers how it came. Ends with its input, and its
receivers with it.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import daemon.receiver  # noqa: F401 - what takes long at the start of a receiver
from daemon.config import load_config
from daemon.running import run_one
from storage.database import migrate
from tests.receiver_sabotage import sabotage
from tests.receiver_steps import watch_steps

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serve requests until there are no more."""
    with tempfile.TemporaryDirectory() as folder:
        # Loads what a migration loads: every life begins with one.
        migrate(Path(folder) / "medimgd.db")
    gc.collect()
    gc.freeze()
    _answer("ready")
    for line in sys.stdin:
        request = json.loads(line)
        if "reap" in request:
            _, status = os.waitpid(request["reap"], 0)
            _answer(os.waitstatus_to_exitcode(status))
        else:
            _answer(_forked(request))


def _answer(what: object) -> None:
    sys.stdout.write(f"{json.dumps(what)}\n")
    sys.stdout.flush()


def _forked(request: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        _redirect(request["log"])
        watch_steps(request.get("steps"))
        sabotage(request.get("sabotage"))
        code = int(run_one(load_config(Path(request["config"])), "receiver", request["slot"]))
    except BaseException:  # noqa: BLE001 - a forked child must never return into its parent's loop
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code)


def _redirect(log: str) -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), 2)


if __name__ == "__main__":
    main()
