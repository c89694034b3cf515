"""The port between the worker and whatever computes.

Owns the protocol and how a batch is cut into sizes a runtime has compiled. Imports no runtime.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

DEVICE_CHOICES = ("auto", "cpu", "gpu")


@dataclass(frozen=True, slots=True)
class PredictorDescription:
    """What computes, for ``status``, the logs and the report's provenance."""

    model: str
    """``name@version``."""
    runtime: str
    """Library and version, for example ``keras 3.15.1, tensorflow 2.21.0``."""
    device: str
    """``CPU``, or the device's name as its maker gives it."""
    precision: str
    """The type the network computes in, for example ``float32``."""
    parameters: int

    def as_mapping(self) -> dict[str, object]:
        """Return the record as plain data for JSON."""
        return asdict(self)


class Predictor(Protocol):
    """Turns batches of tensors into probabilities.

    A predictor is made by one process and stays there. Calls come one at a time.
    """

    def load(self) -> None:
        """Load the weights and check them against the manifest.

        Raises
        ------
        RuntimeFault
            The weights do not load, or do not do what the manifest says.
        """

    def warm_up(self) -> float:
        """Compute what has to be prepared once, so that no study waits; return the seconds."""

    def predict(self, batch: FloatArray) -> FloatArray:
        """Return one probability per label.

        Parameters
        ----------
        batch : ndarray
            (batch, rows, columns, channels) or (batch, slices, rows, columns, channels),
            float32 in [0, 1]; any number of inputs, also none.

        Returns
        -------
        ndarray
            (batch, labels), float32 in [0, 1], in the order of the manifest's labels.

        Raises
        ------
        UnusableOutput
            A prediction holds NaN or infinity.
        DeviceOutOfMemory
            Not even the smallest batch fits the device.
        """

    @property
    def device(self) -> str:
        """The device in use; empty before ``load``."""

    @property
    def description(self) -> PredictorDescription:
        """What computes; only after ``load``."""


@dataclass(frozen=True, slots=True)
class Attention:
    """Where a network saw what speaks for one of its outputs, for every input of a batch."""

    values: FloatArray
    """(batch, rows, columns) or (batch, slices, rows, columns), float32, 0 or more: cells that
    divide the input evenly, in units of the score. NaN in the map of an input that has none."""
    method: str
    """``Grad-CAM`` or ``HiResCAM``."""
    layers: tuple[str, ...]
    """The layers it was taken from."""


@runtime_checkable
class Explainer(Protocol):
    """What a predictor may also be able to do; one without this method explains nothing."""

    def explain(self, batch: FloatArray, outputs: Sequence[int]) -> Attention | None:
        """Return what speaks for one output of each input.

        Parameters
        ----------
        batch : ndarray
            As for ``Predictor.predict``.
        outputs : sequence of int
            For each input the number of the network's output that is to be explained.

        Returns
        -------
        Attention or None
            None when this runtime cannot look into the network.

        Raises
        ------
        CannotExplain
            With the reason; predictions are not touched by it.
        """


@runtime_checkable
class Detector(Protocol):
    """What a predictor may also be able to do; one without this method says nothing of places."""

    def locate(self, batch: FloatArray) -> FloatArray:
        """Return the map of logits that the package's ``[regions]`` name.

        Parameters
        ----------
        batch : ndarray
            As for ``Predictor.predict``.

        Returns
        -------
        ndarray
            (batch, [slices,] rows, columns, outputs) float32, on cells that divide the input
            evenly.

        Raises
        ------
        CannotLocate
            This network or runtime gives no such map; predictions are not touched by it.
        """


def planned_batches(count: int, sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Cut `count` inputs into batches of the given sizes.

    Returns
    -------
    list of (size, used)
        Each batch's compiled size and how many inputs it holds; the rest is padding. A batch is
        padded only when at least half of it is used.

    Examples
    --------
    >>> planned_batches(41, (1, 8, 32))
    [(32, 32), (8, 8), (1, 1)]
    >>> planned_batches(5, (1, 8, 32))
    [(8, 5)]
    """
    ordered = sorted(sizes)
    plan: list[tuple[int, int]] = []
    while count > 0:
        size = _next_size(count, ordered)
        plan.append((size, min(size, count)))
        count -= size
    return plan


def _next_size(count: int, ordered: Sequence[int]) -> int:
    fitting = [size for size in ordered if size >= count]
    if fitting and (2 * count >= fitting[0] or fitting[0] == ordered[0]):
        return fitting[0]
    return max((size for size in ordered if size <= count), default=ordered[0])
