"""A worker process with a scripted network: what it computes depends on the brightness it is shown.

Run as ``python -m tests.worker_child CONFIG SLOT``.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from daemon.config import load_config
from daemon.logs import set_up_logs
from daemon.worker import run_worker
from model.package import ModelPackage
from model.runtimes.port import PredictorDescription
from storage.database import open_database

HANGS, DIES, GROWS = 5.0, 6.0, 7.0
"""A tensor of this brightness does that; every other is present with 0.9."""

BATCH_SECONDS = float(os.environ.get("BATCH_SECONDS", "0.02"))


class ScriptedPredictor:
    """Takes its time, and misbehaves as the tensors tell it."""

    device = "script"

    def __init__(self, package: ModelPackage) -> None:
        self._package = package
        self._grown: list[np.ndarray] = []

    def load(self) -> None:
        """Do nothing, or what the environment says."""
        how = os.environ.get("LOADING", "")
        if how == "hangs":
            time.sleep(60)
        if how == "dies":
            os.kill(os.getpid(), signal.SIGKILL)

    def warm_up(self) -> float:
        return 0.0

    def predict(self, batch: np.ndarray) -> np.ndarray:
        told = {float(each.max()) for each in batch}
        time.sleep(BATCH_SECONDS)
        if HANGS in told:
            time.sleep(60)
        if DIES in told:
            os.kill(os.getpid(), signal.SIGKILL)
        if GROWS in told:
            self._grown.append(np.ones(30 * 1024 * 1024, np.uint8))
        return np.full((len(batch), 1), 0.1, np.float32)

    @property
    def description(self) -> PredictorDescription:
        return PredictorDescription(self._package.at_version, "script", "script", "float32", 1)


def main() -> int:
    """Run one worker until it ends by itself or is stopped; return its exit status."""
    config = load_config(Path(sys.argv[1]))
    slot = sys.argv[2]
    set_up_logs(slot, "INFO", "text")
    database = open_database(config.database_path)
    try:
        return int(run_worker(config, database, slot, ScriptedPredictor))
    finally:
        database.close()


if __name__ == "__main__":
    sys.exit(main())
