"""Scale and offset of logits with the smallest log loss: what a calibration is.

Owns the fit. The loss is convex in scale and offset themselves (not in the logarithm of the
scale): there is one best answer, and nothing on the way to it to be caught in.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy import optimize, special

Array = npt.NDArray[np.float64]
Bounds = tuple[float, float]
"""The lowest and the highest scale; the highest may be infinite."""


def fitted_to_label(
    truth: npt.NDArray[np.generic],
    logits: npt.NDArray[np.floating],
    scales: Bounds,
    weights: Array | None = None,
    *,
    has_offset: bool = True,
) -> tuple[float, float]:
    """Return the scale and offset of one label's logits.

    Parameters
    ----------
    truth : ndarray
        (image,), 0 or 1, both among them.
    logits : ndarray
        (image,); the probability is the sigmoid of ``logits * scale + offset``.
    scales : tuple of float
    weights : ndarray, optional
        (image,), how much each counts; all alike when None.
    has_offset : bool
        Without, the offset is 0.
    """
    wanted, wide = truth.astype(np.float64), logits.astype(np.float64)
    counts = np.ones(len(wide)) if weights is None else weights
    middle = float(wide.mean()) if has_offset else 0.0
    centred = wide - middle

    def log_loss(parameters: Array) -> tuple[float, Array]:
        scaled = centred * parameters[0] + (parameters[1] if has_offset else 0.0)
        wrong = counts * (special.expit(scaled) - wanted)
        slope = np.array([np.mean(wrong * centred), np.mean(wrong)])
        each = counts * (np.logaddexp(0.0, scaled) - wanted * scaled)
        return float(np.mean(each)), slope[: len(parameters)]

    start = min(1.0, scales[1])
    if not has_offset:
        return float(_minimum(log_loss, np.array([start]), scales)[0]), 0.0
    scale, offset = _minimum(log_loss, np.array([start, middle * start]), scales)
    return float(scale), float(offset - middle * scale)


def fitted_to_classes(
    targets: npt.NDArray[np.generic],
    logits: npt.NDArray[np.floating],
    scales: Bounds,
    weights: Array | None = None,
) -> tuple[float, Array]:
    """Return the scale of a softmax's logits and the offset of each class, (class,).

    Parameters
    ----------
    targets : ndarray
        (image, class), one of them 1, the others 0.
    logits : ndarray
        (image, class).
    scales : tuple of float
    weights : ndarray, optional
        (image,), how much each counts; all alike when None.

    Returns
    -------
    tuple
        The offsets sum to zero: what is added to all of them changes nothing.
    """
    wanted, wide = targets.astype(np.float64), logits.astype(np.float64)
    counts = np.ones((len(wide), 1)) if weights is None else weights[:, np.newaxis]
    middle = wide.mean(axis=0)
    centred = wide - middle

    def log_loss(parameters: Array) -> tuple[float, Array]:
        scaled = centred * parameters[0] + parameters[1:]
        wrong = counts * (special.softmax(scaled, axis=1) - wanted)
        slope = np.array([np.sum(wrong * centred), *wrong.sum(axis=0)]) / len(wide)
        each = counts * wanted * special.log_softmax(scaled, axis=1)
        return float(-each.sum() / len(wide)), slope

    start = min(1.0, scales[1])
    found = _minimum(log_loss, np.array([start, *middle * start]), scales)
    offsets = found[1:] - middle * found[0]
    return float(found[0]), offsets - offsets.mean()


def _minimum(
    function: Callable[[Array], tuple[float, Array]], start: Array, scales: Bounds
) -> Array:
    """Go down from no scaling at all; the first parameter is the scale."""
    bounds = [scales, *[(None, None)] * (len(start) - 1)]
    options = {"ftol": 1e-14, "gtol": 1e-9, "maxiter": 10_000}
    found = optimize.minimize(
        function, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options
    )
    return np.asarray(found.x, dtype=np.float64)
