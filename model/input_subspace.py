"""One description of inputs as a low-dimensional cloud, and how far a new one lies from it.

Owns the record and the distance: along the cloud's axes, and across them. How it is fitted is
``model.input_distribution_fitting``; knows nothing of images or files.
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
    reference: FloatArray
    """(2,): the units of distance along and across the axes."""

    def distances(self, features: FloatArray) -> FloatArray:
        """Return how far descriptions (n, numbers) lie, (n,): the worse of along and across."""
        parts = cloud_parts(features - self.mean, self.axes, self.variances, self.residual)
        furthest: FloatArray = (parts / self.reference[:, None]).max(axis=0)
        return furthest

    def as_arrays(self, prefix: str) -> dict[str, FloatArray]:
        """Return the fields under names that begin with `prefix`."""
        return {f"{prefix}_{name}": array for name, array in asdict(self).items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, FloatArray], prefix: str) -> Subspace:
        """Read what ``as_arrays`` gave.

        Raises
        ------
        KeyError, ValueError
            A field is absent, not finite or of another shape than the others.
        """
        read = cls(*(arrays[f"{prefix}_{name}"] for name in cls.__dataclass_fields__))
        count, numbers = read.axes.shape
        shapes = ((numbers,), (count, numbers), (count,), (1,), (2,))
        for name, shape in zip(cls.__dataclass_fields__, shapes, strict=True):
            array = getattr(read, name)
            if array.shape != shape or array.dtype != np.float32 or not np.isfinite(array).all():
                raise ValueError(f"{prefix}_{name} must be finite float32 of the shape {shape}")
        if min(read.variances.min(), read.residual.min(), read.reference.min()) <= 0:
            raise ValueError(f"{prefix}: variances and units must be above 0")
        return read


def cloud_parts(
    centred: FloatArray, axes: FloatArray, variances: FloatArray, residual: FloatArray
) -> FloatArray:
    """Return (2, n): the mean distance along the axes, in deviations, and that across them.

    `centred` holds the descriptions' differences from the mean, (n, numbers).
    """
    along = centred @ axes.T
    left = np.square(centred).sum(axis=1) - np.square(along).sum(axis=1)
    inside = (np.square(along) / variances).mean(axis=1)
    parts: FloatArray = np.sqrt(np.stack([inside, left.clip(0) / residual])).astype(np.float32)
    return parts
