"""From the network's numbers to probabilities, and from probabilities to findings.

Owns the sigmoid, the softmax, the threshold and the undetermined band: pure functions over
arrays. Knows no runtime; runtimes call ``probabilities`` so that nobody else sees raw outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dicom_io.vocabulary import Finding, PresenceValues
from model.errors import UnusableOutput
from model.labels import Label, Output, OutputKindValues

FloatArray = npt.NDArray[np.float32]

PROBABILITY_TOLERANCE = 1e-4
"""How far rounding may carry a probability outside 0..1 before it counts as something else."""


def probabilities(outputs: npt.ArrayLike, output: Output, labels: Sequence[Label]) -> FloatArray:
    """Turn the network's outputs into one probability per label.

    Parameters
    ----------
    outputs : array-like
        (batch, outputs), as the network gives them.
    output : Output
        What the manifest says they are.
    labels : sequence of Label
        Each names the output that speaks for it.

    Returns
    -------
    ndarray
        (batch, labels), float32 in [0, 1].

    Raises
    ------
    UnusableOutput
        NaN, infinity, another shape, or numbers outside 0..1 where the manifest promises
        probabilities. Such a number never becomes a finding.
    """
    values = np.asarray(outputs, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] != output.size:
        raise UnusableOutput(
            f"output: must be of shape (batch, {output.size}), received {values.shape}"
        )
    broken = tuple(int(row) for row in np.flatnonzero(~np.isfinite(values).all(axis=1)))
    if broken:
        raise UnusableOutput(
            f"output: {len(broken)} of {len(values)} predictions hold NaN or infinity; the input "
            f"or the weights are damaged, no statement can be made",
            broken,
        )
    scaled = _scaled(values, output.kind)
    return scaled[:, [label.index for label in labels]].astype(np.float32)


def _scaled(values: npt.NDArray[np.float64], kind: OutputKindValues) -> npt.NDArray[np.float64]:
    match kind:
        case OutputKindValues.LOGIT:
            return _sigmoid(values)
        case OutputKindValues.SOFTMAX:
            return _softmax(values)
        case OutputKindValues.PROBABILITY:
            return _checked(values)


def _sigmoid(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    # Both branches of where() are computed: the exponent is never positive, so none overflows.
    small = np.exp(-np.abs(logits))
    result: npt.NDArray[np.float64] = np.where(logits >= 0, 1 / (1 + small), small / (1 + small))
    return result


def _softmax(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    result: npt.NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return result


def _checked(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    low, high = float(values.min(initial=0.0)), float(values.max(initial=1.0))
    if low < -PROBABILITY_TOLERANCE or high > 1 + PROBABILITY_TOLERANCE:
        raise UnusableOutput(
            f"output: the manifest says probability, so all must lie in 0..1; received "
            f"{low:g} to {high:g}. If the last layer has no sigmoid, the kind is logit"
        )
    return np.clip(values, 0.0, 1.0)


def judge(row: npt.ArrayLike, labels: Sequence[Label]) -> tuple[Finding, ...]:
    """Judge the probabilities of one input: one finding per label, none left out.

    Parameters
    ----------
    row : array-like
        (labels,), in [0, 1].
    labels : sequence of Label
        In the order of `row`.

    Returns
    -------
    tuple of Finding
        In the order of the labels. ``Absent`` means below the threshold, no more than that.

    Raises
    ------
    UnusableOutput
        Another number of values, or a value that is no probability.
    """
    values = np.asarray(row, dtype=np.float64)
    if values.shape != (len(labels),):
        raise UnusableOutput(f"probabilities: must be {len(labels)}, received {values.shape}")
    numbers: list[float] = values.tolist()
    if not all(0.0 <= each <= 1.0 for each in numbers):  # which NaN is not either
        raise UnusableOutput("probabilities: must be finite and lie in 0..1")
    return tuple(_judge_one(number, label) for number, label in zip(numbers, labels, strict=True))


def _judge_one(probability: float, label: Label) -> Finding:
    return Finding(
        label=label.name,
        code=label.code,
        site=label.site,
        presence=presence(probability, label),
        probability=probability,
        threshold=label.threshold,
        undetermined_low=label.undetermined_low,
        undetermined_high=label.undetermined_high,
    )


def presence(probability: float, label: Label) -> PresenceValues:
    """Return what is said about a score: the band first, then the threshold."""
    if label.undetermined_low <= probability < label.undetermined_high:
        return PresenceValues.UNDETERMINED
    if probability >= label.threshold:
        return PresenceValues.PRESENT
    return PresenceValues.ABSENT
