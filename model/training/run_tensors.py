"""Decoded images in one memory-mapped file: decoded once, larger than memory if need be.

Owns the file, its key and its being taken up again after a kill. The pixels are those of
``model.training.reading``, the daemon's own steps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dicom_io.errors import OutsideContract, Refusal, UnreadableInstance
from dicom_io.tensors import TensorRecipe
from dicom_io.wording import number_of
from model.durable import make_folders, publish
from model.errors import TrainingDataFault
from model.training.inspection import InspectedImage
from model.training.reading import read_image
from model.training.run_folder import write_text

FloatArray = npt.NDArray[np.float32]

FLUSH_EVERY = 256
"""Images decoded between two notes of how far it came."""

MOST_FAULTS_SHOWN = 20
KEY_DIGITS = 24


def tensors_of(
    inspected: Sequence[InspectedImage],
    recipe: TensorRecipe,
    folder: Path,
    on_image: Callable[[int], None] | None = None,
) -> FloatArray:
    """Return the tensors of images, from the cache or decoded into it.

    Parameters
    ----------
    inspected : sequence of InspectedImage
        In the order of the rows.
    recipe : TensorRecipe
        Where its slices are open, all series must have as many as the first.
    folder : Path
        Of the cache.
    on_image : callable, optional
        Called with the number of images done.

    Returns
    -------
    ndarray
        (image, [slices,] rows, columns, channels), float32 in [0, 1], read-only and mapped:
        pages are read as they are used.

    Raises
    ------
    TrainingDataFault
        Images that the recipe cannot read, all named.
    InstanceUnavailable
        A file cannot be read now.
    """
    make_folders(folder)
    path = folder / f"{_key(inspected, recipe)}.npy"
    if not path.exists():
        _decode(inspected, recipe, path, on_image)
    if on_image is not None:
        on_image(len(inspected))
    mapped: FloatArray = np.load(path, mmap_mode="r")
    return mapped


def _key(inspected: Sequence[InspectedImage], recipe: TensorRecipe) -> str:
    """Return a name that only the same contents in the same order through the same steps have."""
    lines = [recipe.digest, *(one.content_digest for one in inspected)]
    return hashlib.sha256("\n".join(lines).encode("ascii")).hexdigest()[:KEY_DIGITS]


@dataclass(slots=True)
class _Progress:
    """How many rows are known to be on disk."""

    path: Path

    def read(self) -> int:
        try:
            return int(self.path.read_text(encoding="ascii"))
        except (OSError, ValueError):
            return 0

    def write(self, rows: int) -> None:
        write_text(self.path, str(rows))


def _decode(
    inspected: Sequence[InspectedImage],
    recipe: TensorRecipe,
    path: Path,
    on_image: Callable[[int], None] | None,
) -> None:
    part, progress = path.with_suffix(".part"), _Progress(path.with_suffix(".rows"))
    shape = (len(inspected), *_one_shape(inspected, recipe))
    start = progress.read() if part.exists() else 0
    mapped = np.lib.format.open_memmap(
        part, mode="r+" if start else "w+", dtype=np.float32, shape=None if start else shape
    )
    faults: list[str] = []
    for row in range(start, len(inspected)):
        image = inspected[row].image
        try:
            mapped[row] = _of_shape(read_image(image, recipe), mapped.shape[1:])
        except (Refusal, UnreadableInstance) as error:
            faults.append(f"{image.name}: {_without_folder(str(error), image.files)}")
        if on_image is not None:
            on_image(row + 1)
        if (row + 1) % FLUSH_EVERY == 0 and not faults:
            mapped.flush()
            progress.write(row + 1)
    if faults:
        raise TrainingDataFault(_listed(faults))
    mapped.flush()
    del mapped
    publish(part, path)
    progress.path.unlink(missing_ok=True)


def _one_shape(inspected: Sequence[InspectedImage], recipe: TensorRecipe) -> tuple[int, ...]:
    """Return the shape of all tensors; where slices are open, that of the first series."""
    stated = tuple(edge for edge in recipe.shape if edge is not None)
    if len(stated) == len(recipe.shape) or not inspected:
        return stated
    image = inspected[0].image
    try:
        return read_image(image, recipe).shape
    except (Refusal, UnreadableInstance) as error:
        fault = f"{image.name}: {_without_folder(str(error), image.files)}"
        raise TrainingDataFault(_listed([fault])) from error


def _of_shape(tensor: FloatArray, shape: tuple[int, ...]) -> FloatArray:
    if tensor.shape != shape:
        raise OutsideContract(
            f"has {tensor.shape[0]} slices and the first series {shape[0]}: what is learned from "
            f"has one shape; state input.slices, or take series of one length"
        )
    return tensor


def _without_folder(sentence: str, files: Sequence[Path]) -> str:
    for file in files:
        sentence = sentence.replace(str(file), file.name)
    return sentence


def _listed(faults: Sequence[str]) -> str:
    shown = "; ".join(faults[:MOST_FAULTS_SHOWN])
    more = f"; and {len(faults) - MOST_FAULTS_SHOWN} more" * (len(faults) > MOST_FAULTS_SHOWN)
    said = number_of(len(faults), "image")
    return f"{said} cannot be read as [input] says: {shown}{more}. Remove what is named"
