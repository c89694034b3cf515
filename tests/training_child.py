"""A process that trains one tiny network, to be killed: ``python -m tests.training_child``.

Arguments: epochs, seconds to wait after each epoch, folders of networks. Prints for each a digest
of the chosen weights and of the history without its seconds.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from model.training.device import prepare
from model.training.ensemble import untrained
from model.training.fit import FitJob, Fitted, fit_network
from model.training.loop_batches import Part
from model.training.plan import TrainingPlan, read_plan
from model.training.plan_fit import PrecisionValues
from model.training.watching import Watch
from tests.tiny_training import changed, write_config

NOISE = {"noise": 0.05, "mixup_alpha": 0.2, "blur_probability": 0.0}


def tiny_plan(folder: Path, epochs: int, **tables: Any) -> TrainingPlan:
    """Return the plan of a network with dropout and augmentation, which both draw at random."""
    fit = {"epochs": epochs, "judged_share": 1.0, **tables.pop("fit", {})}
    network = {"dropout": 0.5, **tables.pop("network", {})}
    values = changed(fit=fit, augmentation=NOISE, network=network, **tables)
    return read_plan(write_config(folder, values))


def noisy_part(seed: int, count: int = 24, edge: int = 32) -> Part:
    """Return noise that is a little brighter where the answer is yes."""
    rng = np.random.default_rng(seed)
    targets = np.repeat([0.0, 1.0], count // 2).astype(np.float32)[:, None]
    values = rng.random((count, edge, edge, 1), dtype=np.float32)
    values += 0.1 * targets[:, :, None, None]
    return Part(np.clip(values, 0, 1), np.arange(count), targets)


def job_of(folder: Path, plan: TrainingPlan) -> FitJob:
    """Return a job that learns from 24 inputs and is judged by 16 others."""
    return FitJob("seed-0", plan, noisy_part(1), noisy_part(2, 16), folder, folder / "events")


def digest_of(fitted: Fitted) -> str:
    """Return one digest of weights and history, whatever time it took."""
    found = hashlib.sha256(b"".join(each.tobytes() for each in fitted.weights))
    for entry in fitted.course.history:
        kept = {name: value for name, value in entry.items() if name != "seconds"}
        found.update(json.dumps(kept, sort_keys=True).encode())
    return found.hexdigest()


def main() -> None:
    """Train one network after the other, slowly."""
    epochs, seconds = int(sys.argv[1]), float(sys.argv[2])
    prepare(PrecisionValues.OFF, threads=1)
    watch = Watch(note=lambda _sentence: time.sleep(seconds))
    for folder in map(Path, sys.argv[3:]):
        plan = tiny_plan(folder, epochs)
        print(digest_of(fit_network(job_of(folder, plan), lambda p=plan: untrained(p), watch)))


if __name__ == "__main__":
    main()
