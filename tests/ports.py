"""Ports for servers of tests, which nothing else on this machine takes meanwhile.

They lie below those that Linux gives to outgoing connections (from 32768 on). Among these, any
connection of a test that runs beside could have the port for its own end before the server binds
it, and a client that keeps trying could even connect to itself. Workers of pytest-xdist have ranges
of their own.
"""

from __future__ import annotations

import itertools
import os
import random
import socket
from collections.abc import Iterator

_LOWEST, _EACH, _WORKERS = 12_000, 2_500, 8


def free_port() -> int:
    """Return a port that nobody listens on, a new one at each call."""
    for port in _candidates:
        with socket.socket() as probe:
            try:
                # Orthanc listens on every interface.
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise AssertionError("the candidates have no end")


def _candidates_of(worker: str) -> Iterator[int]:
    first = _LOWEST + int(worker.removeprefix("gw")) % _WORKERS * _EACH
    # Another run of the tests on this machine begins elsewhere.
    start = random.SystemRandom().randrange(_EACH)
    return itertools.cycle([first + (start + number) % _EACH for number in range(_EACH)])


_candidates = _candidates_of(os.environ.get("PYTEST_XDIST_WORKER", "gw0"))
