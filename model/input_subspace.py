"""Descriptions of inputs as a low-dimensional cloud, and how far a new one lies from it.

Owns the records and the arithmetic of distances: along a cloud's axes, across them, and towards
what the inputs must not be taken for. How they are fitted is ``model.input_distribution_fitting``;
knows nothing of images or files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

from model.input_descriptors import FloatArray


@dataclass(frozen=True, slots=True)
class Subspace:
    """A cloud of descriptions: centre, axes, spread."""

    mean: FloatArray
    """(numbers,)."""
    axes: FloatArray
    """(axes, numbers), orthonormal."""
    variances: FloatArray
    """(axes,), shrunk."""
    residual: FloatArray
    """(1,): the mean energy across the axes."""

    def parts(self, features: FloatArray) -> FloatArray:
        """Return (2, n) for descriptions (n, numbers): the distance along the axes and across."""
        centred = features - self.mean
        along = centred @ self.axes.T
        left = np.square(centred).sum(axis=1) - np.square(along).sum(axis=1)
        inside = (np.square(along) / self.variances).mean(axis=1)
        both: FloatArray = np.sqrt(np.stack([inside, left.clip(0) / self.residual]))
        return both.astype(np.float32)


@dataclass(frozen=True, slots=True)
class Contrasts:
    """Directions that lead from the inputs to what they become when something is wrong."""

    mean: FloatArray
    """(numbers,)."""
    directions: FloatArray
    """(contrasts, numbers); none where nothing can be told apart."""

    def parts(self, features: FloatArray) -> FloatArray:
        """Return (contrasts, n) for descriptions (n, numbers): how far each went that way."""
        towards: FloatArray = self.directions @ (features - self.mean).T
        return towards


def combined(parts: FloatArray) -> FloatArray:
    """Return one distance, (n,), of parts (parts, n): little more than the largest of them.

    Their eighth powers are summed, so that many parts which are all a little too far count too;
    what is negative is on the good side of a contrast and counts for nothing.
    """
    sums: FloatArray = (parts.clip(0) ** 8).sum(axis=0) ** (1 / 8)
    return sums.astype(np.float32)


def as_arrays(record: Subspace | Contrasts, prefix: str) -> dict[str, FloatArray]:
    """Return a record's fields under names that begin with `prefix`."""
    return {f"{prefix}_{name}": array for name, array in asdict(record).items()}


def subspace_from(arrays: Mapping[str, FloatArray], prefix: str) -> Subspace:
    """Read what ``as_arrays`` gave of a cloud.

    Raises
    ------
    KeyError, ValueError
        A field is absent, not finite, or does not fit the others.
    """
    read = Subspace(*(arrays[f"{prefix}_{name}"] for name in Subspace.__dataclass_fields__))
    count, numbers = read.axes.shape
    require_shape(read.mean, (numbers,), prefix)
    require_shape(read.axes, (count, numbers), prefix)
    require_shape(read.variances, (count,), prefix)
    require_shape(read.residual, (1,), prefix)
    if min(read.variances.min(), read.residual.min()) <= 0:
        raise ValueError(f"{prefix}: a variance must be above 0")
    return read


def contrasts_from(arrays: Mapping[str, FloatArray], prefix: str) -> Contrasts:
    """Read what ``as_arrays`` gave of contrasts; raises as ``subspace_from``."""
    read = Contrasts(*(arrays[f"{prefix}_{name}"] for name in Contrasts.__dataclass_fields__))
    count, numbers = read.directions.shape
    require_shape(read.mean, (numbers,), prefix)
    require_shape(read.directions, (count, numbers), prefix)
    return read


def require_shape(array: FloatArray, shape: tuple[int, ...], name: str) -> None:
    """Raise ``ValueError`` unless an array is finite float32 of a shape."""
    if array.shape != shape or array.dtype != np.float32 or not np.isfinite(array).all():
        raise ValueError(f"{name}: must be finite float32 of the shape {shape}")
