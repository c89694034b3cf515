"""The distribution of a model's inputs, fitted on training tensors and limited on validation.

Owns how the clouds are fitted and where the limit lies. Tensors are changed as other rooms would
change them, so that what a model was trained to tolerate is not refused.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from model.errors import TrainingDataFault
from model.input_contrasts import fit_contrasts
from model.input_descriptors import FloatArray, descriptors, joined, thumbnails
from model.input_distribution import InputDistribution
from model.input_jitter import jittered
from model.input_subspace import Subspace, combined

FEWEST_INPUTS = 20
"""Fewer say nothing about what the next one may look like."""
MOST_FITTED = 5000
MOST_VOLUMES = 1000
"""Of more training images or volumes so many are drawn; a cloud of forty axes needs no more, and
a volume's thumbnail takes fifteen times the memory."""
HELD_OUT = 5
"""Every so manyth training input chooses the limit where there is no validation split."""
LIMITED_VARIANTS = 2
"""Changed copies of each input that chooses the limit; one of each that is fitted."""

MOST_AXES = 40
SHRINKAGE = 0.1
"""Share of the mean variance in every variance along an axis: few inputs measure them badly."""
UNIT_SHARE = 0.995
"""Each part of the distance is in units of what this share of validation stays within."""
SMALLEST_UNIT = 1e-3

VALIDATION_SHARE = 0.995
CHANGED_SHARE = 0.99
"""Shares of the validation inputs, as they are and changed, that have to lie within the limit."""
MARGIN = 1.02
"""The limit is so many times what these shares need."""

_CHUNK = 64


def fit_distribution(
    values: FloatArray,
    validation: FloatArray | None = None,
    *,
    preprocessing_digest: str = "",
    seed: int = 0,
) -> InputDistribution:
    """Fit the distribution of inputs.

    Parameters
    ----------
    values : ndarray
        (n, rows, columns, channels) or (n, slices, rows, columns, channels), float32 in [0, 1]:
        the training tensors as the daemon's steps make them, unchanged; may be mapped from disk.
    validation : ndarray, optional
        The same of validation, which choose the limit. Without them every fifth training input
        does, and takes no part in the fit.
    preprocessing_digest : str
        ``TensorRecipe.digest`` of what made them; ``load_package`` asks for it.
    seed : int
        Decides which inputs are drawn and how they are changed. The same gives the same file, where
        NumPy computes with as many threads.

    Raises
    ------
    TrainingDataFault
        There are too few inputs.
    """
    rng = np.random.default_rng(seed)
    fitted, limiting = _thumbnails_of(values, validation, rng)
    if min(len(fitted), len(limiting)) < FEWEST_INPUTS:
        raise TrainingDataFault(
            f"input_distribution: needs {FEWEST_INPUTS} inputs to fit and as many to choose the "
            f"limit; received {len(fitted)} and {len(limiting)}"
        )
    changed = np.concatenate([jittered(limiting, rng) for _ in range(LIMITED_VARIANTS)])
    variants = jittered(fitted, rng)
    described = descriptors(np.concatenate([fitted, variants]))
    distribution = InputDistribution(
        clouds={name: _fit_cloud(features) for name, features in described.items()},
        contrasts=fit_contrasts(joined(described), variants, rng),
        units=np.ones(0, np.float32),
        limit=np.inf,
        preprocessing_digest=preprocessing_digest,
        dimensions=values.ndim - 1,
        fitted=len(fitted),
        limited=len(limiting),
    )
    return _limited(distribution, limiting, changed)


def _thumbnails_of(
    values: FloatArray, validation: FloatArray | None, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray]:
    """Return the thumbnails to fit and those that choose the limit."""
    places = np.arange(len(values))
    chosen = places[:0]
    if validation is None:
        chosen, places = places[::HELD_OUT], np.delete(places, np.s_[::HELD_OUT])
    most = MOST_FITTED if values.ndim == 4 else MOST_VOLUMES
    if len(places) > most:
        places = np.sort(rng.choice(places, most, replace=False))
    fitted = _shrunk(values, places)
    if validation is None:
        return fitted, _shrunk(values, chosen)
    return fitted, _shrunk(validation, np.arange(len(validation)))


def _shrunk(values: FloatArray, places: np.ndarray) -> FloatArray:
    """Return thumbnails of some inputs, read a few at a time: they may not fit into memory."""
    parts = [
        thumbnails(values[places[start : start + _CHUNK]])
        for start in range(0, len(places), _CHUNK)
    ]
    return np.concatenate(parts) if parts else np.zeros((0, 1, 1), np.float32)


def _limited(
    distribution: InputDistribution, limiting: FloatArray, changed: FloatArray
) -> InputDistribution:
    """Choose the units and the least limit that keeps the stated shares, times the margin."""
    both = np.concatenate([limiting, changed])
    count = 2 * len(distribution.clouds) + len(distribution.contrasts.directions)
    unscaled = replace(distribution, units=np.ones(count, np.float32)).parts(both)
    units = np.maximum(np.quantile(unscaled, UNIT_SHARE, axis=1), SMALLEST_UNIT).astype(np.float32)
    furthest = combined(unscaled / units[:, None])
    needed = (
        np.quantile(furthest[: len(limiting)], VALIDATION_SHARE),
        np.quantile(furthest[len(limiting) :], CHANGED_SHARE),
    )
    return replace(distribution, units=units, limit=round(MARGIN * float(max(needed)), 4))


def _fit_cloud(features: FloatArray) -> Subspace:
    """Fit principal axes and a shrunk covariance to descriptions (n, numbers)."""
    mean = features.mean(axis=0)
    centred = features - mean
    found, vectors = np.linalg.eigh(np.cov(centred, rowvar=False, bias=True))
    found, vectors = found[::-1].clip(0), vectors[:, ::-1]
    count = min(MOST_AXES, max(1, len(features) // 4), len(found) - 1)
    smallest = max(float(found.sum()), 1e-6) * 1e-6
    kept = (1 - SHRINKAGE) * found[:count] + SHRINKAGE * found[:count].mean()
    axes = np.ascontiguousarray(vectors[:, :count].T, dtype=np.float32)
    variances = np.maximum(kept, smallest).astype(np.float32)
    residual = np.maximum(found[count:].sum(keepdims=True), smallest).astype(np.float32)
    return Subspace(mean, axes, variances, residual)
