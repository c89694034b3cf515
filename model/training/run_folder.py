"""The folder of one training: what lies where in it, written so that a kill leaves no half file.

Owns names and the way of writing. Knows no network and no images.
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from model.durable import make_folders, publish
from model.errors import TrainingRunFault

CONFIG_NAME = "config.toml"
RUN_NAME = "run.json"
ENVIRONMENT_NAME = "environment.json"
GATE_NAME = "gate.json"
SPLITS_NAME = "splits.csv"
LOG_NAME = "train.log"
LOCK_NAME = ".lock"
FOLDS_NAME = "folds.json"


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths of a run."""

    root: Path

    @property
    def is_in_use(self) -> bool:
        """True when it holds anything but a record that was never finished."""
        names = {path.name for path in self.root.iterdir()} if self.root.exists() else set()
        return bool(names - {part_of(self.path(RUN_NAME)).name})

    @property
    def tensors(self) -> Path:
        """Decoded images; may be removed once the run is finished."""
        return self.root / "tensors"

    @property
    def tensorboard(self) -> Path:
        """Event files, a folder for each network."""
        return self.root / "tensorboard"

    @property
    def evaluation(self) -> Path:
        """Reports, a folder for each split."""
        return self.root / "evaluation"

    @property
    def package(self) -> Path:
        """Holds the finished package."""
        return self.root / "package"

    def network(self, name: str) -> Path:
        """Return the folder of one network: checkpoints and history."""
        return self.root / "networks" / name

    def path(self, name: str) -> Path:
        """Return a file directly in the folder."""
        return self.root / name

    def write_json(self, name: str, mapping: Mapping[str, object]) -> Path:
        """Write a document, whole or not at all."""
        return write_json(self.root / name, mapping)


def write_json(path: Path, mapping: Mapping[str, object]) -> Path:
    """Write a document, whole or not at all."""
    return write_text(path, json.dumps(_finite(mapping), indent=2, default=str) + "\n")


def _finite(value: Any) -> Any:
    """Return plain data with null for numbers that are none: JSON has no word for them."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def read_json(path: Path) -> dict[str, Any]:
    """Return a document of a run.

    Raises
    ------
    TrainingRunFault
        It is absent, damaged or something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingRunFault(
            f"{path}: cannot be read ({error}); name another folder, or remove this one"
        ) from error
    if not isinstance(found, dict):
        raise TrainingRunFault(f"{path}: must hold an object; name another folder")
    return found


def write_text(path: Path, text: str) -> Path:
    """Write a file under a temporary name, sync it, and give it its name."""
    with replacing(path) as file:
        file.write(text.encode("utf-8"))
    return path


def part_of(path: Path) -> Path:
    """Return where a file is written before it gets its name."""
    return path.with_name(f".{path.name}.part")


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Yield a file that takes the place of `path` when, and only when, it was written whole."""
    make_folders(path.parent)
    part = part_of(path)
    with part.open("wb") as file:
        yield file
    publish(part, path)


@contextmanager
def held(folder: RunFolder) -> Iterator[None]:
    """Let no second process train in the same folder; the kernel lets go, however this one ends.

    Raises
    ------
    TrainingRunFault
        Another process trains there.
    """
    with folder.path(LOCK_NAME).open("w", encoding="ascii") as file:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TrainingRunFault(
                f"{folder.root}: another process trains there; wait for it, or stop it first"
            ) from error
        yield


@contextmanager
def logged_to(path: Path) -> Iterator[None]:
    """Append what this package logs, with the time, to a file of the run."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    parent = logging.getLogger("model.training")
    level = parent.level
    parent.addHandler(handler)
    parent.setLevel(logging.INFO)
    try:
        yield
    finally:
        parent.setLevel(level)
        parent.removeHandler(handler)
        handler.close()
