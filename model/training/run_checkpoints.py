"""The state of one network's training on disk: whole, or not there.

Owns the file's form. A checkpoint holds everything the next epoch depends on: weights, the states
of the random generators inside the network, the optimiser's, and what happened so far. Batches
need no state: they follow from the seed and the epoch.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from model.errors import TrainingRunFault
from model.training.run_folder import replacing

LAST_NAME = "last.npz"
HISTORY_NAME = "history.json"

Arrays = list[npt.NDArray[Any]]


@dataclass(slots=True)
class Course:
    """What happened in a training so far."""

    next_epoch: int = 0
    best_epoch: int = -1
    best_value: float = float("-inf")
    """Larger is better, whatever the measure."""
    is_finished: bool = False
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    """A record per epoch."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A course and the numbers that go with it."""

    course: Course
    network: Arrays
    optimiser: Arrays
    """Of the phase that the next epoch belongs to; none where a new phase begins."""


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint in the place of the one before."""
    course = json.dumps(asdict(checkpoint.course)).encode("utf-8")
    named: dict[str, Any] = {"course": np.frombuffer(course, dtype=np.uint8)}
    named |= {f"network_{n:05d}": each for n, each in enumerate(checkpoint.network)}
    named |= {f"optimiser_{n:05d}": each for n, each in enumerate(checkpoint.optimiser)}
    with replacing(path) as file:
        np.savez(file, **named)


def read_checkpoint(path: Path) -> Checkpoint | None:
    """Return the checkpoint; None where there is none yet.

    Raises
    ------
    TrainingRunFault
        The file is damaged.
    """
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            course = Course(**json.loads(arrays["course"].tobytes().decode("utf-8")))
            names = sorted(arrays.files)
            network = [arrays[name] for name in names if name.startswith("network_")]
            optimiser = [arrays[name] for name in names if name.startswith("optimiser_")]
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise TrainingRunFault(
            f"{path}: is no checkpoint, or is damaged ({error}); remove the folder "
            f"{path.parent.name} to train this network again"
        ) from error
    return Checkpoint(course, network, optimiser)


def best_path(folder: Path, epoch: int) -> Path:
    """Return where the weights of an epoch lie that was the best when it ended."""
    return folder / f"best-{epoch:05d}.npz"


def write_best(folder: Path, epoch: int, weights: Arrays) -> None:
    """Write the weights of the best epoch; those before it stay until ``forget_others``."""
    named: dict[str, Any] = {f"weight_{n:05d}": each for n, each in enumerate(weights)}
    with replacing(best_path(folder, epoch)) as file:
        np.savez(file, **named)


def read_best(folder: Path, epoch: int) -> Arrays:
    """Return the weights of the best epoch.

    Raises
    ------
    TrainingRunFault
        They are not there, or damaged.
    """
    path = best_path(folder, epoch)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return [arrays[name] for name in sorted(arrays.files)]
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise TrainingRunFault(
            f"{path}: cannot be read ({error}); remove the folder {folder.name} to train this "
            f"network again"
        ) from error


def forget_others(folder: Path, epoch: int) -> None:
    """Remove the weights of epochs that are no longer the best."""
    for path in folder.glob("best-*.npz"):
        if path != best_path(folder, epoch):
            path.unlink(missing_ok=True)


def same_shapes(arrays: Sequence[npt.NDArray[Any]], variables: Sequence[Any]) -> bool:
    """Return True when arrays can be put into variables, one by one."""
    shapes = [tuple(array.shape) for array in arrays]
    return shapes == [tuple(variable.shape) for variable in variables]
