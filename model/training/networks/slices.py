"""Volumes read slice by slice: all slices of a batch as one batch of images, and back.

Owns these two steps. Both are Keras's own operations, for any number of slices.
"""

from __future__ import annotations

from typing import Any

from keras import ops


def each_slice(volume: Any) -> Any:
    """Return (batch * slices, rows, columns, channels) of (batch, slices, rows, columns, ...)."""
    return ops.reshape(volume, (-1, *volume.shape[2:]))


def gathered(values: Any, volume: Any) -> Any:
    """Return (batch, slices, ...) of (batch * slices, ...), as many slices as `volume` has."""
    if volume.shape[1] is not None:
        return ops.reshape(values, (-1, volume.shape[1], *values.shape[1:]))
    # A reshape keeps one open axis, here are two: the rows are fetched by their number instead.
    ones = ops.ones_like(volume[:, :, 0, 0, 0], dtype="float32")
    slices = ops.sum(ones, axis=1, keepdims=True)
    inputs_before = ops.subtract(ops.cumsum(ones, axis=0), ones)
    slices_before = ops.subtract(ops.cumsum(ones, axis=1), ones)
    numbers = ops.cast(ops.add(ops.multiply(inputs_before, slices), slices_before), "int32")
    return ops.take(values, numbers, axis=0)
