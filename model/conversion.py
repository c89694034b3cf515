"""``medimgd models optimise``: a package for a faster runtime, proven to answer as before.

Owns the proof and its record. The converted package keeps every word of its source but the
weights, the runtime and the version; both digests stand in it.
"""

from __future__ import annotations

import shutil
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.special import expit

from model.durable import publish
from model.errors import CannotLocate, ConversionFault
from model.findings import judge
from model.manifest import MANIFEST_NAME
from model.manifest_writing import write_manifest
from model.package import ModelPackage, load_package
from model.package_files import sha256_of
from model.probes import read_probes
from model.runtime_plan import RuntimeValues
from model.runtimes.opening import RuntimeOptions, open_predictor
from model.runtimes.port import Detector, FloatArray, Predictor
from model.runtimes.signature import probe_shape

DEFAULT_TOLERANCE = 1e-4
"""In probability. Float32 additions in another order differ by some 1e-6; bfloat16 by 1e-2."""

SEEDED_PROBES = 32
SEED = 20_240_611
WEIGHTS_NAME = "weights.onnx"
TARGETS = (RuntimeValues.ONNX, RuntimeValues.OPENVINO)

_LARGEST_BLUR = 0.15
"""Of the shortest edge: from noise to shapes as large as an organ."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was made, and how close it stays to its source."""

    source: str
    """``name@version``."""
    converted: str
    folder: Path
    earlier_sha256: tuple[str, ...]
    """The weights that the source itself was converted from, oldest first."""
    source_sha256: str
    converted_sha256: str
    source_runtime: str
    runtime: str
    tool: str
    probes: int
    """Inputs that both answered; those that came with the package are among them."""
    bundled_probes: int
    largest_difference: float
    tolerance: float
    lowest_probability: float
    highest_probability: float

    @property
    def is_telling(self) -> bool:
        """False when all probes score alike: then equal answers prove little."""
        return self.highest_probability - self.lowest_probability > 10 * self.tolerance

    def as_manifest(self) -> dict[str, object]:
        """Return the manifest's ``[conversion]``."""
        return {
            "source": self.source,
            "source_weights_sha256": self.source_sha256,
            "earlier_weights_sha256": list(self.earlier_sha256),
            "source_runtime": self.source_runtime,
            "converted_weights_sha256": self.converted_sha256,
            "converted_runtime": self.runtime,
            "tool": self.tool,
            "precision": "float32",
            "probes": self.probes,
            "bundled_probes": self.bundled_probes,
            "largest_difference": self.largest_difference,
            "tolerance": self.tolerance,
            "probability_range": [self.lowest_probability, self.highest_probability],
            "findings": "identical",
        }


def optimise(
    folder: Path,
    out: Path,
    *,
    runtime: RuntimeValues = RuntimeValues.ONNX,
    version: str = "",
    tolerance: float = DEFAULT_TOLERANCE,
) -> Conversion:
    """Convert a package, prove that it answers as before, and write it under a new version.

    Parameters
    ----------
    folder : Path
        A package for Keras (or for ONNX, to be served by OpenVINO).
    out : Path
        The new package's folder; must not be there yet. It appears complete or not at all.
    runtime : RuntimeValues
        ``onnx`` or ``openvino``.
    version : str
        Of the new package; by default that of the source with ``+onnx`` or ``+openvino``.
    tolerance : float
        The largest difference of a probability that is put up with.

    Raises
    ------
    PackageFault
        The source is no valid package, or the version is no version.
    RuntimeFault
        A library is missing, or a runtime cannot load the network.
    ConversionFault
        It cannot be converted, or answers otherwise than its source.
    """
    if out.exists():
        raise ConversionFault(f"{out}: is there already; name another place, or remove it")
    source = load_package(folder)
    _require_convertible(source, runtime)
    predictor = open_predictor(source, RuntimeOptions(device="cpu"))
    predictor.load()
    content, tool = _converted(source, predictor)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".optimising-", dir=out.parent) as temporary:
        draft = Path(temporary) / "package"
        manifest = _write_draft(source, content, draft, runtime, version)
        proof = _proven(source, predictor, draft, tool, tolerance, out)
        write_manifest(draft, {**manifest, "conversion": proof.as_manifest()})
        load_package(draft)
        publish(draft, out)
    return proof


def default_version(version: str, runtime: RuntimeValues) -> str:
    """Return the version of a converted package; it orders after its source."""
    mark = "." if "-" in version or "+" in version else "+"
    return f"{version}{mark}{runtime}"


def _require_convertible(source: ModelPackage, runtime: RuntimeValues) -> None:
    if runtime not in TARGETS:
        raise ConversionFault(f"runtime: must be one of {', '.join(TARGETS)}; received {runtime}")
    kind = source.runtime.kind
    possible = kind is RuntimeValues.KERAS or (
        kind is RuntimeValues.ONNX and runtime is RuntimeValues.OPENVINO
    )
    if not possible:
        raise ConversionFault(
            f"{source.at_version}: is a package for {kind}; what can be converted is Keras to "
            "onnx or openvino, and onnx to openvino"
        )


def _converted(source: ModelPackage, predictor: Predictor) -> tuple[bytes, str]:
    """Return the ONNX file and what made it."""
    from model.runtimes.keras_runtime import KerasPredictor  # noqa: PLC0415  imports no TensorFlow

    if not isinstance(predictor, KerasPredictor):
        return source.weights_path.read_bytes(), "none: the same file"
    from model.runtimes import keras_export  # noqa: PLC0415

    return keras_export.exported_onnx(source, predictor), keras_export.converter_versions()


def _write_draft(
    source: ModelPackage, content: bytes, draft: Path, runtime: RuntimeValues, version: str
) -> dict[str, Any]:
    """Write the new package without the proof; return its manifest."""
    shutil.copytree(source.folder, draft)
    (draft / source.weights_path.name).unlink()
    weights = draft / WEIGHTS_NAME
    weights.write_bytes(content)
    manifest = tomllib.loads((source.folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    kept: Mapping[str, Any] = manifest["weights"]
    manifest["version"] = version or default_version(source.identity.version, runtime)
    manifest["weights"] = {
        **kept,
        "file": WEIGHTS_NAME,
        "sha256": sha256_of(weights),
        "runtime": str(runtime),
    }
    write_manifest(draft, manifest)
    return manifest


def _proven(
    source: ModelPackage,
    predictor: Predictor,
    draft: Path,
    tool: str,
    tolerance: float,
    out: Path,
) -> Conversion:
    """Let both answer the same inputs, alone and together, and compare."""
    package = load_package(draft)
    candidate = open_predictor(package, RuntimeOptions(device="cpu"))
    candidate.load()
    groups = [seeded_probes(source), *_bundled(source)]
    before = np.concatenate([predictor.predict(group) for group in groups])
    difference = max(
        _compared(source, before, np.concatenate(answers), tolerance)
        for answers in (
            [candidate.predict(group) for group in groups],
            [candidate.predict(group[n : n + 1]) for group in groups for n in range(len(group))],
        )
    )
    _require_same_map(source, predictor, candidate, groups, tolerance)
    return Conversion(
        source=source.at_version,
        converted=package.at_version,
        folder=out,
        earlier_sha256=source.converted_from,
        source_sha256=source.identity.weights_sha256,
        converted_sha256=package.identity.weights_sha256,
        source_runtime=predictor.description.runtime,
        runtime=candidate.description.runtime,
        tool=tool,
        probes=len(before),
        bundled_probes=len(before) - SEEDED_PROBES,
        largest_difference=difference,
        tolerance=tolerance,
        lowest_probability=float(before.min()),
        highest_probability=float(before.max()),
    )


def _require_same_map(
    source: ModelPackage,
    predictor: Predictor,
    candidate: Predictor,
    groups: Sequence[FloatArray],
    tolerance: float,
) -> None:
    """Hold the map of a detecting package to the same tolerance, as probabilities."""
    if source.regions is None or not isinstance(predictor, Detector):
        return
    before = [predictor.locate(group) for group in groups]
    try:
        if not isinstance(candidate, Detector):
            raise CannotLocate("the other runtime gives no map")
        after = [candidate.locate(group) for group in groups]
    except CannotLocate as error:
        raise ConversionFault(
            f"{source.at_version}: its regions would be lost ({error}); nothing was written. Serve "
            "it with its own runtime, or remove [regions] from the manifest"
        ) from error
    if [each.shape for each in before] != [each.shape for each in after]:
        raise ConversionFault(
            f"{source.at_version}: the converted map has cells of {after[0].shape[1:]}, that of "
            f"its own runtime of {before[0].shape[1:]}; nothing was written. Serve it with its own "
            "runtime"
        )
    pairs = zip(before, after, strict=True)
    difference = float(np.max([np.abs(expit(one) - expit(two)).max() for one, two in pairs]))
    if not difference <= tolerance:  # a map that is no number is none that agrees
        raise ConversionFault(
            f"{source.at_version}: a position of the converted map differs by {difference:.3g}, "
            f"the tolerance is {tolerance:g}; nothing was written. Serve it with its own runtime"
        )


def _compared(
    source: ModelPackage, before: FloatArray, after: FloatArray, tolerance: float
) -> float:
    difference = float(np.abs(before - after).max())
    if difference > tolerance:
        raise ConversionFault(
            f"{source.at_version}: a converted probability differs by {difference:.3g}, the "
            f"tolerance is {tolerance:g}; nothing was written. Serve it with its own runtime, or "
            "find out which layer is computed otherwise"
        )
    other = sum(
        [each.presence for each in judge(one, source.labels)]
        != [each.presence for each in judge(two, source.labels)]
        for one, two in zip(before, after, strict=True)
    )
    if other:
        raise ConversionFault(
            f"{source.at_version}: {other} of {len(before)} probes get another finding although no "
            f"probability differs by more than {difference:.3g}; nothing was written"
        )
    return difference


def seeded_probes(package: ModelPackage, count: int = SEEDED_PROBES) -> FloatArray:
    """Return inputs that are the same everywhere: plain, noise, and shapes of all sizes.

    Returns
    -------
    ndarray
        (count, rows, columns, channels) or (count, slices, rows, columns, channels), float32 in
        [0, 1].
    """
    random = np.random.default_rng(SEED)
    shape = probe_shape(package.recipe)
    edge = min(shape[:-1])
    probes = [np.full(shape, value, np.float32) for value in (0.0, 0.5, 1.0)]
    while len(probes) < count:
        blur = random.uniform(0, _LARGEST_BLUR) * edge
        values = gaussian_filter(random.random(shape), [*[blur] * (len(shape) - 1), 0])
        probes.append(_stretched(values, *random.uniform((0.0, 0.6), (0.4, 1.0))))
    return np.stack(probes[:count])


def _stretched(values: FloatArray, low: float, high: float) -> FloatArray:
    least, span = values.min(), max(float(np.ptp(values)), 1e-6)
    stretched: FloatArray = (low + (high - low) * (values - least) / span).astype(np.float32)
    return stretched


def _bundled(package: ModelPackage) -> Sequence[FloatArray]:
    """Return the package's own probes, of one shape each."""
    if package.probes is None:
        return ()
    return [each[np.newaxis] for each in read_probes(package.probes.path, package.recipe.shape)]
