"""Volumes read slice by slice: all slices of a batch as one batch of images, and back.

Owns these two steps. Both are Keras's own operations, for any number of slices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

SLICES_LAYER = "slices"


def read_by_slice(volume: Any, features_of: Callable[[Any], Any]) -> Any:
    """Return the features of every slice, made from that slice alone.

    They come out of one network of their own, the layer ``slices``: whoever explains an answer
    finds a layer there that keeps slices, rows and columns.

    Parameters
    ----------
    volume : KerasTensor
        (batch, slices, rows, columns, channels); slices may be open.
    features_of : callable
        From (batch, rows, columns, channels) to (batch, rows', columns', features).

    Returns
    -------
    KerasTensor
        (batch, slices, rows', columns', features).
    """
    inner = keras.Input(volume.shape[1:], name="volume")
    images = ops.reshape(inner, (-1, *inner.shape[2:]))
    return keras.Model(inner, _gathered(features_of(images), inner), name=SLICES_LAYER)(volume)


def _gathered(values: Any, volume: Any) -> Any:
    """Return (batch, slices, ...) of (batch * slices, ...), as many slices as `volume` has."""
    # A reshape keeps one open axis, here are two: the rows are fetched by their number instead.
    ones = ops.ones_like(volume[:, :, 0, 0, 0], dtype="float32")
    slices = ops.sum(ones, axis=1, keepdims=True)
    inputs_before = ops.subtract(ops.cumsum(ones, axis=0), ones)
    slices_before = ops.subtract(ops.cumsum(ones, axis=1), ones)
    numbers = ops.cast(ops.add(ops.multiply(inputs_before, slices), slices_before), "int32")
    return ops.take(values, numbers, axis=0)
