"""How far answers are from the truth, for each kind of head, and what they mean as probabilities.

Owns cross-entropy from logits with label smoothing and class weights. Keras is imported when a
loss is asked for: configurations are read without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special

from model.training.heads import HeadValues

__all__ = ["HeadValues", "Loss", "loss_of", "probabilities_of"]

Loss = Callable[[Any, Any], Any]
"""Takes targets and logits, both (batch, outputs), and returns a scalar."""


def loss_of(
    head: HeadValues,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] | npt.NDArray[np.floating[Any]] | None = None,
) -> Loss:
    """Return the loss of a head: the mean of weighted cross-entropies.

    Parameters
    ----------
    head : HeadValues
    label_smoothing : float
        Share s in [0, 1). Yes or no becomes ``t * (1 - s) + s / 2``, one of C classes
        ``t * (1 - s) + s / C``.
    class_weights : sequence of float, optional
        Multi-class: one for each class. Binary: of no and of yes. Multi-label: two rows, of no and
        of yes, with one for each label; a single row is that of yes, no weighs 1. A blended target
        weighs as its parts do. None weighs all alike.

    Returns
    -------
    callable
        ``(targets, logits) -> scalar``: targets (batch, outputs) float32 in [0, 1], logits
        (batch, outputs) float32; a tensor of the backend.

    Raises
    ------
    ValueError
        The weights have a shape this head cannot have, or the share is no share.
    """
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing: must be in [0, 1); received {label_smoothing}")
    is_class = head is HeadValues.MULTI_CLASS
    weights = _class_row(class_weights) if is_class else _label_rows(head, class_weights)
    import keras  # noqa: PLC0415  importing takes seconds

    made = _of_classes if is_class else _of_labels
    return made(keras.ops, label_smoothing, weights)


_Weights = npt.NDArray[np.float32]


def _class_row(weights: Any) -> _Weights | None:
    if weights is None:
        return None
    row = np.asarray(weights, np.float32)
    if row.ndim != 1:
        raise ValueError(f"class_weights: must be one for each class; received {row.shape}")
    return row


def _label_rows(head: HeadValues, weights: Any) -> _Weights | None:
    """Return (2, labels or 1): the weights of no and of yes."""
    if weights is None:
        return None
    rows = np.asarray(weights, np.float32)
    if head is HeadValues.BINARY and rows.shape in {(2,), (2, 1)}:
        return rows.reshape(2, 1)
    if head is HeadValues.MULTI_LABEL and rows.ndim == 1:
        return np.stack([np.ones_like(rows), rows])
    if head is HeadValues.MULTI_LABEL and rows.ndim == 2 and len(rows) == 2:
        return rows
    raise ValueError(f"class_weights: have a shape no {head} head can have: {rows.shape}")


def _of_classes(ops: Any, smoothing: float, weights: _Weights | None) -> Loss:
    def loss(targets: Any, logits: Any) -> Any:
        classes = targets.shape[-1]
        smooth = targets * (1 - smoothing) + smoothing / classes
        each = ops.categorical_crossentropy(smooth, logits, from_logits=True)
        if weights is not None:
            each = each * ops.sum(targets * weights, axis=-1)
        return ops.mean(each)

    return loss


def _of_labels(ops: Any, smoothing: float, weights: _Weights | None) -> Loss:
    def loss(targets: Any, logits: Any) -> Any:
        smooth = targets * (1 - smoothing) + smoothing / 2
        each = ops.binary_crossentropy(smooth, logits, from_logits=True)
        if weights is not None:
            each = each * (targets * weights[1] + (1 - targets) * weights[0])
        return ops.mean(each)

    return loss


def probabilities_of(head: HeadValues, logits: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Return (batch, outputs) float32 in [0, 1]; of classes they add up to 1.

    Parameters
    ----------
    head : HeadValues
    logits : array-like
        (batch, outputs).
    """
    wide = np.asarray(logits, np.float64)
    if head is HeadValues.MULTI_CLASS:
        return np.asarray(special.softmax(wide, axis=-1), np.float32)
    return np.asarray(special.expit(wide), np.float32)
