"""Tiny Keras models whose answers a reader can compute, as complete model packages.

Each takes the mean of every channel of its input and gives ``weight * sum(means) + bias`` for
each label. ``TinyModel.expected`` computes the same with numpy.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dicom_io.tensors import TensorRecipe
from model.manifest_writing import write_manifest
from model.package_files import sha256_of

WEIGHTS_NAME = "weights.keras"


@dataclass(frozen=True, slots=True)
class TinyLabel:
    """One output: ``weight * mean + bias`` before sigmoid or softmax."""

    name: str
    weight: float
    bias: float
    code: tuple[str, str, str]
    threshold: float = 0.5
    undetermined: tuple[float, float] | None = None


BRIGHT = TinyLabel("Bright", 8.0, -4.0, ("TINY-1", "99MEDIMGD", "Bright image"))
"""Present when the mean of the tensor is above one half."""

DARK = TinyLabel("Dark", -8.0, 4.0, ("TINY-2", "99MEDIMGD", "Dark image"))
"""Present when the mean of the tensor is below one half."""


@dataclass(frozen=True, slots=True)
class TinyModel:
    """A written package and the numbers to recompute its answers."""

    folder: Path
    labels: tuple[TinyLabel, ...]
    output: str

    def expected(self, values: np.ndarray) -> np.ndarray:
        """Return the probabilities for one tensor, (labels,), computed without Keras."""
        mean = float(np.mean(values, dtype=np.float64)) * values.shape[-1]
        scores = np.array([label.weight * mean + label.bias for label in self.labels])
        if self.output == "softmax":
            weights = np.exp(scores - scores.max())
            return weights / weights.sum()
        return 1 / (1 + np.exp(-scores))


def write_package(
    folder: Path,
    *,
    name: str = "tiny",
    version: str = "1.0.0",
    kind: str = "image",
    rows: int = 16,
    columns: int = 16,
    slices: int | None = 8,
    channels: int = 1,
    intensity: Mapping[str, object] | None = None,
    output: str = "logit",
    labels: Sequence[TinyLabel] = (BRIGHT,),
    where: Mapping[str, object] | None = None,
    rank: Sequence[Mapping[str, object]] = (),
    contract: Sequence[Mapping[str, object]] = (),
    changes: Mapping[str, object] | None = None,
    weights: bytes | None = None,
    weights_name: str = WEIGHTS_NAME,
    busy_layers: int = 0,
    cell: int = 0,
) -> TinyModel:
    """Write a full, valid package folder; `output` is probability, logit or softmax.

    Parameters
    ----------
    folder : Path
        The package folder itself; made when absent.
    slices : int, optional
        Of a volume; None leaves the number to the series. Ignored for kind ``image``.
    where : mapping, optional
        The selection; without one everything with a Modality matches.
    weights : bytes, optional
        Written as the weights file instead of a network; Keras is not imported then.
    weights_name : str
        Of that file.
    busy_layers : int
        Convolutions of a volume that cost time and count for nothing in the answer.
    cell : int
        Above 0, the network has a layer ``map`` with a logit for each square of so many pixels, the
        answer is the highest of them, and the manifest has ``[regions]`` for the first label.
    changes : mapping, optional
        Fields of the manifest to replace at the end, to make it lie: a table replaces single
        fields of a table, None removes the field.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table: dict[str, object] = {"kind": kind, "rows": rows, "columns": columns}
    if kind == "volume" and slices is not None:
        table["slices"] = slices
    table |= {"channels": channels, "intensity": dict(intensity or {"kind": "percentile"})}
    recipe = TensorRecipe.from_mapping(table)
    if weights is None and cell:
        save_detecting_network(folder / weights_name, recipe.shape, labels, cell)
    elif weights is None:
        save_network(folder / weights_name, recipe.shape, output, labels, busy_layers)
    else:
        (folder / weights_name).write_bytes(weights)
    manifest: dict[str, object] = {
        "format": 1,
        "name": name,
        "version": version,
        "title": f"Tiny {kind} model",
        "intended_use": "Proves the path in tests. Makes no clinical claim.",
        "limits": ["Looks at the mean brightness only."],
        "demonstration": True,
        "preprocessing_digest": recipe.digest,
        "weights": {"file": weights_name, "sha256": sha256_of(folder / weights_name)},
        "output": {"kind": output, "size": len(labels)},
        "input": table,
        "selection": {
            "where": dict(where or {"attribute": "Modality", "exists": True}),
            "rank": [dict(key) for key in rank],
        },
        "contract": [dict(clause) for clause in contract],
        "labels": [_label_table(label) for label in labels],
    }
    if cell:
        manifest["regions"] = {"label": labels[0].name, "threshold": 0.5, "name": "Spot"}
    write_manifest(folder, _changed(manifest, changes or {}))
    return TinyModel(folder, tuple(labels), output)


def _label_table(label: TinyLabel) -> dict[str, object]:
    table: dict[str, object] = {
        "name": label.name,
        "code": list(label.code),
        "threshold": label.threshold,
    }
    if label.undetermined is not None:
        table["undetermined"] = list(label.undetermined)
    return table


def _changed(manifest: Mapping[str, object], changes: Mapping[str, object]) -> dict[str, object]:
    result = dict(manifest)
    for key, value in changes.items():
        old = result.get(key)
        if value is None:
            result.pop(key, None)
        elif isinstance(old, Mapping) and isinstance(value, Mapping):
            result[key] = _changed(old, value)
        else:
            result[key] = value
    return result


def save_network(
    path: Path,
    shape: Sequence[int | None],
    output: str,
    labels: Sequence[TinyLabel],
    busy_layers: int = 0,
) -> None:
    """Save the network of a package as a .keras file."""
    import keras  # noqa: PLC0415  packages without a network must not pay for it

    pooling = keras.layers.GlobalAveragePooling2D
    if len(shape) == 4:
        pooling = keras.layers.GlobalAveragePooling3D
    image = keras.Input(tuple(shape))
    activation = "sigmoid" if output == "probability" else "linear"
    dense = keras.layers.Dense(len(labels), activation=activation, name="scores")
    features = pooling()(image)
    if busy_layers:
        layer = image
        for _ in range(busy_layers):
            layer = keras.layers.Conv3D(24, 5, padding="same", activation="relu")(layer)
        idle = keras.layers.Dense(int(shape[-1]), kernel_initializer="zeros")(pooling()(layer))
        features = keras.layers.Add()([features, idle])
    network = keras.Model(image, dense(features))
    kernel = np.array([[label.weight for label in labels]] * int(shape[-1]), dtype=np.float32)
    dense.set_weights([kernel, np.array([label.bias for label in labels], dtype=np.float32)])
    _save(network, path)


def save_detecting_network(
    path: Path, shape: Sequence[int | None], labels: Sequence[TinyLabel], cell: int
) -> None:
    """Save a network that answers the highest of the logits in its layer ``map``."""
    import keras  # noqa: PLC0415

    image = keras.Input(tuple(shape))
    if len(shape) == 4:
        cells = keras.layers.AveragePooling3D((1, cell, cell))(image)
        highest = keras.layers.GlobalMaxPooling3D(name="logits")
    else:
        cells = keras.layers.AveragePooling2D(cell)(image)
        highest = keras.layers.GlobalMaxPooling2D(name="logits")
    dense = keras.layers.Dense(len(labels), name="map")
    network = keras.Model(image, highest(dense(cells)))
    kernel = np.array([[label.weight for label in labels]] * int(shape[-1]), dtype=np.float32)
    dense.set_weights([kernel, np.array([label.bias for label in labels], dtype=np.float32)])
    _save(network, path)


def _save(network: Any, path: Path) -> None:
    with warnings.catch_warnings():
        # Keras 3.15 converts its variables in a way NumPy 2 calls outdated.
        warnings.simplefilter("ignore", DeprecationWarning)
        network.save(path)
