"""From a package to the predictor that computes it, by the runtime its manifest names.

Owns the choice. Imports a runtime's module when a package asks for it, and no library at all.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import MappingProxyType

from model.errors import DeviceOutOfMemory, RuntimeFault
from model.package import ModelPackage
from model.runtime_plan import RuntimeValues
from model.runtimes.port import Predictor
from model.runtimes.remote.access import RemoteAccess

_NO_REMOTES: Mapping[str, RemoteAccess] = MappingProxyType({})

_LIBRARIES = {
    RuntimeValues.KERAS: ("keras", "tensorflow"),
    RuntimeValues.ONNX: ("onnxruntime",),
    RuntimeValues.OPENVINO: ("openvino",),
}


@dataclass(frozen=True, slots=True)
class RuntimeOptions:
    """What a site decides about how packages are computed."""

    device: str = "auto"
    """``auto``, ``cpu`` or ``gpu``; a remote server decides for itself."""
    threads: int | None = None
    """CPU cores to compute on; all when None."""
    remotes: Mapping[str, RemoteAccess] = field(default_factory=lambda: _NO_REMOTES)
    """How servers are reached, by ``name@version`` or by name."""


def open_predictor(package: ModelPackage, options: RuntimeOptions | None = None) -> Predictor:
    """Return the predictor of a package, not loaded yet.

    Raises
    ------
    RuntimeFault
        The options contradict the package.
    """
    options = options or RuntimeOptions()
    device, threads = options.device, options.threads
    # Each import is made where it is needed: a worker without Keras packages loads no TensorFlow.
    match package.runtime.kind:
        case RuntimeValues.ONNX:
            from model.runtimes.onnx_runtime import ONNXPredictor  # noqa: PLC0415

            return ONNXPredictor(package, device=device, threads=threads)
        case RuntimeValues.OPENVINO:
            from model.runtimes.openvino_runtime import OpenVINOPredictor  # noqa: PLC0415

            return OpenVINOPredictor(package, device=device, threads=threads)
        case RuntimeValues.REMOTE:
            from model.runtimes.remote_runtime import RemotePredictor  # noqa: PLC0415

            return RemotePredictor(package, _access(package, options.remotes))
        case RuntimeValues.KERAS:
            from model.runtimes.keras_runtime import KerasPredictor  # noqa: PLC0415

            return KerasPredictor(package, device=device, threads=threads)
    raise RuntimeFault(f"{package.at_version}: no runtime is named {package.runtime.kind}")


def _access(package: ModelPackage, remotes: Mapping[str, RemoteAccess]) -> RemoteAccess | None:
    return remotes.get(package.at_version) or remotes.get(package.identity.name)


def installed_runtimes() -> Mapping[RuntimeValues, str]:
    """Return the libraries and versions behind each runtime; empty where they are not installed.

    Nothing is imported.
    """
    found = {kind: _versions(names) for kind, names in _LIBRARIES.items()}
    grpc = _versions(("grpcio",))
    found[RuntimeValues.REMOTE] = "HTTP" + (f", gRPC ({grpc})" if grpc else "")
    return found


def _versions(names: tuple[str, ...]) -> str:
    try:
        return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    except importlib.metadata.PackageNotFoundError:
        return ""


def import_runtime(kind: RuntimeValues) -> None:
    """Import the library behind a runtime; where it is missing, ``load`` says so.

    Worth doing apart only to measure what a model itself occupies.
    """
    if kind is RuntimeValues.KERAS:
        from model.runtimes.keras_runtime import _import_libraries  # noqa: PLC0415

        with suppress(RuntimeFault):
            _import_libraries()
    for name in _LIBRARIES.get(kind, ()) if kind is not RuntimeValues.KERAS else ():
        with suppress(ImportError):
            importlib.import_module(name)


def load_warm(package: ModelPackage, predictor: Predictor) -> float:
    """Load a predictor and warm it up; return the seconds of computing.

    Raises
    ------
    RuntimeFault
        The weights do not load, or do not do what the manifest says.
    DeviceOutOfMemory
        The device cannot hold the weights, or not even the smallest batch.
    """
    try:
        predictor.load()
        return predictor.warm_up()
    except _out_of_memory_of_tensorflow() as error:
        raise DeviceOutOfMemory(
            f"{package.at_version}: the device has no memory for its weights; free the device or "
            "run the worker on the CPU"
        ) from error


def _out_of_memory_of_tensorflow() -> tuple[type[Exception], ...]:
    tensorflow = sys.modules.get("tensorflow")
    return () if tensorflow is None else (tensorflow.errors.ResourceExhaustedError,)


def device_bytes() -> int:
    """Return what this process occupies on its first GPU; 0 without one, or where nobody counts.

    Nothing is imported: a library that is not in use occupies nothing.
    """
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is None or not tensorflow.config.list_logical_devices("GPU"):
        return 0
    return int(tensorflow.config.experimental.get_memory_info("GPU:0")["current"])
