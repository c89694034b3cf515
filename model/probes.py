"""Probe tensors: a few real inputs, kept with a package to prove that it still computes the same.

Owns their file: one array of bytes per probe. A probe *is* its bytes divided by 255, so that
nothing is lost by storing it: the recorded scores are those of what is read back, bit for bit.
What that differs from the tensor it was made of, 1/510 of the range at most, plays no part.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from model.errors import PackageFault
from model.package_files import MOST_PROBES, UNREADABLE_ARRAYS

FloatArray = npt.NDArray[np.float32]

PROBES_NAME = "probes.npz"
STEPS = 255
LARGEST_PROBES_BYTES = 64 << 20
"""Unpacked; a file that says it holds more is refused before it is unpacked."""


def write_probes(path: Path, tensors: Sequence[FloatArray]) -> tuple[FloatArray, ...]:
    """Write tensors as bytes, compressed; return the probes as they will be read back."""
    stored = [np.rint(np.clip(each, 0, 1) * STEPS).astype(np.uint8) for each in tensors]
    named = {f"probe_{number:02d}": each for number, each in enumerate(stored)}
    np.savez_compressed(path, **named)  # type: ignore[arg-type]
    return tuple(_probe(each) for each in stored)


def read_probes(path: Path, shape: Sequence[int | None]) -> tuple[FloatArray, ...]:
    """Read probes and check that each is an input of the model.

    Parameters
    ----------
    path : Path
        The file.
    shape : sequence of int or None
        Of one input, as ``TensorRecipe.shape``; None where the series decides.

    Returns
    -------
    tuple of ndarray
        float32 in [0, 1].

    Raises
    ------
    PackageFault
        The file is damaged, too large, or holds something else.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
            count = len(archive.infolist())
        if size > LARGEST_PROBES_BYTES or not 0 < count <= MOST_PROBES:
            fault = (
                f"must hold 1 to {MOST_PROBES} probes of at most {LARGEST_PROBES_BYTES} bytes "
                f"together; it holds {count} of {size}"
            )
            raise PackageFault(path.name, [fault])
        with np.load(path, allow_pickle=False) as arrays:
            stored = [arrays[name] for name in sorted(arrays.files)]
    except UNREADABLE_ARRAYS as error:
        fault = f"is no file of probes, or is damaged: {error}; pack the model again"
        raise PackageFault(path.name, [fault]) from error
    faults = [
        f"probe {number}: must be bytes of the shape {tuple(shape)}; received "
        f"{each.dtype} of {each.shape}"
        for number, each in enumerate(stored)
        if each.dtype != np.uint8 or not _fits(each.shape, shape)
    ]
    if faults:
        raise PackageFault(path.name, faults)
    return tuple(_probe(each) for each in stored)


def _probe(stored: npt.NDArray[np.uint8]) -> FloatArray:
    return stored.astype(np.float32) / np.float32(STEPS)


def _fits(found: tuple[int, ...], wanted: Sequence[int | None]) -> bool:
    pairs = zip(found, wanted, strict=False)
    return len(found) == len(wanted) and all(w is None or f == w for f, w in pairs)
