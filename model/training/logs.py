"""TensorBoard event files of one network's training.

Owns the tags. The files always follow the history that the checkpoints hold: they are written
anew when a training is taken up again, so that no epoch is in them twice.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

EPOCH = "epoch"
_NO_CURVES = frozenset({EPOCH, "chosen"})


class EventLog:
    """Writes scalars, one step for each epoch; the step is the epoch counted from 1.

    Parameters
    ----------
    folder : Path
        Emptied first.
    history : iterable of mapping
        Epochs that are done already.
    """

    def __init__(self, folder: Path, history: Iterable[Mapping[str, float]] = ()) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        self._writer = tf.summary.create_file_writer(str(folder))
        for entry in history:
            self.write(entry)

    def write(self, entry: Mapping[str, float]) -> None:
        """Write the figures of an epoch; they are on disk when this returns."""
        with self._writer.as_default(step=int(entry[EPOCH])):
            for name, value in entry.items():
                if name not in _NO_CURVES and math.isfinite(value):
                    tf.summary.write(name, float(value), metadata=_scalar(name))
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


def _scalar(name: str) -> Any:
    """Return what lets TensorBoard draw a curve; ``tf.summary.scalar`` asks for TensorBoard."""
    kind = tf.compat.v1.SummaryMetadata
    return kind(
        display_name=name,
        data_class=1,  # DATA_CLASS_SCALAR
        plugin_data=kind.PluginData(plugin_name="scalars"),
    )
