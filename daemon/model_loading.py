"""Loading one model: on the device that is wanted, or on the CPU in its stead; warm, and measured.

Owns when the CPU stands in for a GPU. Knows nothing of which models serve.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from daemon.config import Config
from daemon.logs import ACTION, MODEL, REASON, SECONDS
from daemon.recycling import resident_bytes, return_memory
from daemon.runtimes import PredictorMaker
from model.errors import DeviceOutOfMemory, ModelError, RuntimeFault
from model.package import ModelPackage
from model.runtime_plan import RuntimeValues
from model.runtimes.opening import device_bytes, load_warm
from model.runtimes.port import Predictor

_logger = logging.getLogger(__name__)

_CPU = "CPU"
_GPU_DEVICES = ("nvidia[0-9]*", "kfd", "dxg")


def gpu_is_present(folder: Path = Path("/dev")) -> bool:
    """Return whether the system knows a GPU, whether or not anything can compute on it."""
    return any(next(folder.glob(pattern), None) is not None for pattern in _GPU_DEVICES)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that is loaded and warm."""

    package: ModelPackage
    predictor: Predictor
    occupied_bytes: int
    """What memory grew by, of process and device together; measured."""
    stands_in: str = ""
    """Why the CPU computes it in a GPU's stead; empty where it does not."""


class ModelLoader:
    """Loads models as the site's settings want it.

    Parameters
    ----------
    config : Config
        Which device is wanted.
    make_predictor : callable
        Makes what computes a package, as configured.
    make_on_cpu : callable, optional
        The same on the CPU, for where the device cannot be used; nothing stands in without it.
    is_gpu_present : callable
        Whether this machine has one.
    """

    def __init__(
        self,
        config: Config,
        make_predictor: PredictorMaker,
        make_on_cpu: PredictorMaker | None = None,
        is_gpu_present: Callable[[], bool] = gpu_is_present,
    ) -> None:
        wanted = config.worker.device
        self._expects_gpu = wanted == "gpu" or (wanted == "auto" and is_gpu_present())
        self._make_predictor = make_predictor
        self._make_on_cpu = make_on_cpu
        self._has_loaded = False

    def load(self, package: ModelPackage) -> Loaded:
        """Load a package and warm it up.

        Raises
        ------
        ModelError
            It cannot be computed, on the CPU neither.
        """
        started = time.monotonic()
        try:
            loaded = self._try(package, self._make_predictor)
        except (DeviceOutOfMemory, RuntimeFault) as error:
            if not self._expects_gpu or self._make_on_cpu is None:
                raise
            loaded = self._on_cpu(package, self._make_on_cpu, error)
        else:
            if self._is_without_its_gpu(loaded):
                loaded = replace(
                    loaded, stands_in=f"{loaded.predictor.description.runtime} finds no GPU"
                )
        _say_ready(loaded, time.monotonic() - started)
        return loaded

    def _on_cpu(self, package: ModelPackage, make: PredictorMaker, error: ModelError) -> Loaded:
        try:
            return replace(self._try(package, make), stands_in=str(error))
        except DeviceOutOfMemory as second:
            raise second from error

    def _is_without_its_gpu(self, loaded: Loaded) -> bool:
        kind = loaded.package.runtime.kind
        # OpenVINO is for processors, and a server decides for itself.
        has_choice = kind in (RuntimeValues.KERAS, RuntimeValues.ONNX)
        return self._expects_gpu and has_choice and loaded.predictor.device == _CPU

    def _try(self, package: ModelPackage, make: PredictorMaker) -> Loaded:
        predictor = make(package)
        before = self._all_bytes()
        load_warm(package, predictor)
        self._has_loaded = True
        return_memory()  # loading takes more than what is loaded
        occupied = self._all_bytes() - before
        return Loaded(package, predictor, max(0, occupied))

    def _all_bytes(self) -> int:
        # Asking TensorFlow about a device fixes how it is used: the first model decides that.
        return resident_bytes() + (device_bytes() if self._has_loaded else 0)


def _say_ready(loaded: Loaded, seconds: float) -> None:
    name = loaded.package.at_version
    _logger.info(
        "%s is warm on %s", name, loaded.predictor.device,
        extra={ACTION: "model_ready", MODEL: name, SECONDS: round(seconds, 3)},
    )  # fmt: skip
    if loaded.stands_in:
        _logger.error(
            "%s is computed on the CPU in the GPU's stead, and slower: %s", name, loaded.stands_in,
            extra={ACTION: "cpu_stands_in", MODEL: name, REASON: loaded.stands_in},
        )  # fmt: skip
