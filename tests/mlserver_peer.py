"""A real MLServer on this machine, which serves the tiny network over HTTP and gRPC."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.ports import free_port

_ROOT = Path(__file__).resolve().parent.parent
_START_SECONDS = 60.0


@dataclass(frozen=True)
class MLServerPeer:
    """Where it listens; it has the model ``tiny``, version 1."""

    http_port: int
    grpc_port: int


def mlserver_program() -> Path:
    """Return the program that ``make peers`` installs; the run fails where it is missing."""
    if sys.version_info >= (3, 13):
        pytest.skip("MLServer has no release for Python 3.13")
    default = Path(sys.prefix).with_name(f"{Path(sys.prefix).name}-mlserver") / "bin" / "mlserver"
    program = Path(os.environ.get("MEDIMGD_MLSERVER", default))
    if not program.exists():
        pytest.fail(f"there is no MLServer at {program}: run 'make peers'")
    return program


@contextmanager
def running_mlserver(
    folder: Path, shape: Sequence[int], weights: Sequence[float], biases: Sequence[float]
) -> Iterator[MLServerPeer]:
    """Run one for the block.

    Parameters
    ----------
    folder : Path
        For its configuration and log.
    shape : sequence of int
        Of one input: rows, columns, channels.
    weights, biases : sequence of float
        One for each label.
    """
    program = mlserver_program()
    peer = MLServerPeer(free_port(), free_port())
    model = folder / "tiny"
    model.mkdir(parents=True)
    server = {
        "host": "127.0.0.1", "http_port": peer.http_port, "grpc_port": peer.grpc_port,
        "metrics_port": free_port(), "parallel_workers": 0,
    }  # fmt: skip
    (folder / "settings.json").write_text(json.dumps(server))
    served = {
        "name": "tiny",
        "implementation": "mlserver_network.TinyNetwork",
        "parameters": {"version": "1", "extra": {"weights": weights, "biases": biases}},
        "inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, *shape]}],
        "outputs": [{"name": "scores", "datatype": "FP32", "shape": [-1, len(weights)]}],
    }
    (model / "model-settings.json").write_text(json.dumps(served))
    log = folder / "mlserver.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, "start", str(folder)],
            stdout=output, stderr=output, cwd=folder,
            env={**os.environ, "PYTHONPATH": str(_ROOT / "tests")},
        )  # fmt: skip
    try:
        _await_ready(process, peer, log)
        yield peer
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await_ready(process: subprocess.Popen[bytes], peer: MLServerPeer, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    ready = f"http://127.0.0.1:{peer.http_port}/v2/models/tiny/ready"
    while True:
        try:
            with urllib.request.urlopen(ready, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError):
            is_over = process.poll() is not None or time.monotonic() > deadline
            if is_over:
                pytest.fail(f"MLServer does not serve:\n{log.read_text()[-3000:]}")
            time.sleep(0.1)
