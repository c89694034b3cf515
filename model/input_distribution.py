"""What a model's inputs look like: asked in service before a job is made.

Owns the file ``input_distribution.npz``, the limit and the refusal. Fitted by
``model.input_distribution_fitting.fit_distribution``. Uses NumPy only: the preparer asks it, and
every process that reads packages loads it.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dicom_io.errors import UnlikeTraining
from dicom_io.tensors import TensorRecipe
from model.errors import PackageFault
from model.input_descriptors import (
    DESCRIPTOR_VERSION,
    FloatArray,
    described_numbers,
    descriptors,
    joined,
    thumbnails,
)
from model.input_subspace import (
    Contrasts,
    Subspace,
    as_arrays,
    combined,
    contrasts_from,
    require_shape,
    subspace_from,
)
from model.manifest import ManifestTable
from model.package_files import UNREADABLE_ARRAYS, read_file

DISTRIBUTION_NAME = "input_distribution.npz"
LARGEST_BYTES = 400_000
_CHUNK = 64
_CONTRASTS = "contrasts"


@dataclass(frozen=True, slots=True)
class InputDistribution:
    """What a model's inputs look like, and where that ends."""

    clouds: Mapping[str, Subspace]
    """One for each description of ``model.input_descriptors``."""
    contrasts: Contrasts
    """Away from the inputs turned, inverted or cut, over all descriptions together."""
    units: FloatArray
    """(parts,): what nearly all validation inputs stay within, for each part of the distance."""
    limit: float
    """The largest distance of an input that resembles those of training."""
    preprocessing_digest: str
    """Of the steps that made the tensors it was fitted on; empty when not stated."""
    dimensions: int
    """Axes of a tensor: 3 for images, 4 for volumes."""
    fitted: int
    """How many training inputs it stands for."""
    limited: int
    """How many inputs chose units and limit."""

    def distances(self, values: FloatArray) -> FloatArray:
        """Return how far inputs (n, [slices,] rows, columns, channels) lie, (n,), from 0 up."""
        chunks = [
            combined(self.parts(thumbnails(values[start : start + _CHUNK])))
            for start in range(0, len(values), _CHUNK)
        ]
        return np.concatenate(chunks) if chunks else np.zeros(0, np.float32)

    def distance(self, tensor: FloatArray) -> float:
        """Return how far one input ([slices,] rows, columns, channels) lies; 1 is the outskirts."""
        return float(self.distances(tensor[None])[0])

    def check(self, tensor: FloatArray) -> None:
        """Refuse an input that does not look like those of training.

        Raises
        ------
        UnlikeTraining
            Its distance is beyond the limit.
        """
        distance = self.distance(tensor)
        if not distance <= self.limit:
            raise UnlikeTraining(distance, self.limit)

    def parts(self, thumbs: FloatArray) -> FloatArray:
        """Return all parts of the distance, (parts, n), for what ``thumbnails`` made of inputs."""
        described = descriptors(thumbs)
        raw = [cloud.parts(described[name]) for name, cloud in sorted(self.clouds.items())]
        raw.append(self.contrasts.parts(joined(described)))
        parts: FloatArray = np.concatenate(raw) / self.units[:, None]
        return parts

    def write(self, path: Path) -> None:
        """Write the file; the same distribution gives the same bytes."""
        about = {
            "version": DESCRIPTOR_VERSION,
            "limit": self.limit,
            "preprocessing_digest": self.preprocessing_digest,
            "dimensions": self.dimensions,
            "fitted": self.fitted,
            "limited": self.limited,
        }
        encoded = np.frombuffer(json.dumps(about).encode("ascii"), dtype=np.uint8)
        arrays = {"units": self.units, **as_arrays(self.contrasts, _CONTRASTS)}
        for name, cloud in sorted(self.clouds.items()):
            arrays |= as_arrays(cloud, name)
        np.savez_compressed(path, about=encoded, **arrays)  # type: ignore[arg-type]


def read_distribution(path: Path) -> InputDistribution:
    """Read a file that ``InputDistribution.write`` wrote.

    Raises
    ------
    PackageFault
        It is damaged, too large, or of descriptors that this installation does not compute.
    """
    try:
        _check_size(path)
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        return _from_arrays(arrays)
    except (*UNREADABLE_ARRAYS, KeyError, TypeError, OverflowError) as error:
        fault = f"is no distribution of inputs, or is damaged: {error}; pack the model again"
        raise PackageFault(path.name, [fault]) from error


def _check_size(path: Path) -> None:
    """Refuse a file that would unpack to more than any distribution holds."""
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(member.file_size for member in archive.infolist())
    if max(unpacked, path.stat().st_size) > LARGEST_BYTES:
        raise ValueError(f"it holds {unpacked} bytes, more than {LARGEST_BYTES}")


def _from_arrays(arrays: Mapping[str, np.ndarray]) -> InputDistribution:
    about = json.loads(arrays["about"].tobytes())
    if about["version"] != DESCRIPTOR_VERSION:
        raise ValueError(
            f"its descriptors are of version {about['version']}, this installation computes "
            f"version {DESCRIPTOR_VERSION}"
        )
    limit, dimensions = float(about["limit"]), int(about["dimensions"])
    numbers = described_numbers(dimensions)
    clouds = {name: subspace_from(arrays, name) for name in numbers}
    contrasts = contrasts_from(arrays, _CONTRASTS)
    units = arrays["units"]
    require_shape(units, (2 * len(clouds) + len(contrasts.directions),), "units")
    found = {name: len(cloud.mean) for name, cloud in clouds.items()}
    whole = found == numbers and len(contrasts.mean) == sum(numbers.values())
    if not whole or units.min() <= 0 or not 0 < limit < math.inf:
        raise ValueError("its parts do not fit each other")
    return InputDistribution(
        clouds, contrasts, units, limit, str(about["preprocessing_digest"]), dimensions,
        int(about["fitted"]), int(about["limited"]),
    )  # fmt: skip


def read_distribution_file(
    folder: Path, manifest: ManifestTable, recipe: TensorRecipe | None
) -> InputDistribution | None:
    """Read table ``[input_distribution]``; None when there is none, as in older packages.

    Checked are the file's digest, its parts, and that it was fitted on tensors of this recipe.
    """
    if not manifest.has("input_distribution"):
        return None
    table = manifest.table("input_distribution")
    before = len(manifest.faults)
    path, _ = read_file(folder, table, "file", "sha256")
    table.refuse_unknown()
    if len(manifest.faults) > before:
        return None
    try:
        distribution = read_distribution(path)
    except PackageFault as fault:
        table.add_fault("file", "; ".join(fault.faults))
        return None
    if recipe is not None:
        _check_recipe(table, distribution, recipe)
    return distribution


def _check_recipe(
    table: ManifestTable, distribution: InputDistribution, recipe: TensorRecipe
) -> None:
    if distribution.preprocessing_digest != recipe.digest:
        table.add_fault(
            "file",
            f"was fitted on tensors of the preprocessing digest "
            f"{distribution.preprocessing_digest or 'not stated'}, those of [input] have "
            f"{recipe.digest}; fit it again",
        )
    if distribution.dimensions != len(recipe.shape):
        table.add_fault(
            "file",
            f"was fitted on tensors of {distribution.dimensions} axes, not of a {recipe.kind}",
        )
