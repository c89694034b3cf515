"""The Keras runtime: weights on a GPU when there is one, on the CPU when there is none.

Owns TensorFlow and Keras, imported in ``load`` only, and translates their exceptions. On a GPU
batches run in sizes compiled once, on a CPU they are shared out among its cores; nobody outside
sees a raw output of a network.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from model.errors import CannotExplain, CannotLocate, RuntimeFault
from model.package import ModelPackage
from model.runtimes.batched import BatchedPredictor, checked_device
from model.runtimes.keras_attention import KerasAttention
from model.runtimes.keras_end import last_operation
from model.runtimes.keras_frozen import (
    BatchFunction,
    answers_alike,
    freeze,
    open_session,
    own_threads_for_each_session,
)
from model.runtimes.keras_map import compiled_map, map_faults
from model.runtimes.keras_tracing import Traced
from model.runtimes.port import Attention, FloatArray, PredictorDescription
from model.runtimes.sharing import Division, Shared, Undivided, usable_cores
from model.runtimes.signature import Shape, fits, probe_shape, squashing_faults
from model.runtimes.weights_file import read_weights_file

logger = logging.getLogger(__name__)

_LOAD_FAULTS = (
    ValueError, TypeError, KeyError, AttributeError, ImportError, OSError, RuntimeError,
    NotImplementedError, IndexError,
)  # fmt: skip
"""What Keras raises for files it cannot use; anything else is a fault of ours and passes."""


class KerasPredictor(BatchedPredictor):
    """A ``Predictor`` for Keras 3 models on TensorFlow.

    Parameters
    ----------
    package : ModelPackage
    device : str
        ``auto`` takes the first GPU TensorFlow finds, else the CPU; ``cpu`` leaves GPUs alone, for
        the whole process unless an earlier predictor computes on one; ``gpu`` is a fault where
        there is none.
    batch_sizes : sequence of int, optional
        The sizes to compile on a GPU, by default 1, 8, 32 for images and 1, 4 for volumes, and on a
        CPU where the network cannot be frozen; elsewhere the largest is the limit of one
        computation.
    threads : int, optional
        CPU cores to compute on; all when None. For explanations the first predictor of a process
        decides.
    """

    def __init__(
        self,
        package: ModelPackage,
        *,
        device: str = "auto",
        batch_sizes: Sequence[int] | None = None,
        threads: int | None = None,
    ) -> None:
        super().__init__(package, batch_sizes)
        self._wanted_device = checked_device(device)
        self._threads = threads
        self._tf_device = ""
        self._network: Any = None
        self._compiled: Any = None
        self._functions: Division[BatchFunction] | None = None
        self._shape: Shape | None = None
        """Of one input, with its open edges, where the network is right with these left open."""
        self._attention: KerasAttention | CannotExplain | None = None
        """What computes maps, or why nothing does; None before it was asked for."""
        self._compiled_map: Traced | None = None
        """What computes the map of ``[regions]``; None in packages without that table."""

    @property
    def network(self) -> Any:
        """The loaded Keras model, for what converts it; None before ``load``."""
        return self._network

    @property
    def trace_count(self) -> int:
        """How often the network was compiled for a size; it stands still after ``warm_up``."""
        return 0 if self._compiled is None else int(self._compiled.experimental_get_tracing_count())

    def load(self) -> None:
        """Load the weights on the device and check shapes and last layer against the manifest.

        Raises
        ------
        RuntimeFault
            With a sentence about the file, or all disagreements with the manifest.
        """
        weights = read_weights_file(self._package.weights_path)
        tf, keras = _import_libraries()
        # GPUs would round float32 to ten bits of mantissa, of their own accord.
        tf.config.experimental.enable_tensor_float_32_execution(False)
        device = self._choose_device(tf)
        self._out_of_memory = tf.errors.ResourceExhaustedError
        with tf.device(self._tf_device), warnings.catch_warnings():
            # Keras 3.15 converts its variables in a way NumPy 2 calls outdated; nothing to act on.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._network = self._load_network(keras, weights.keras_version)
        faults = disagreements(self._package, self._network)
        if faults:
            raise RuntimeFault(f"{self._package.at_version}: " + "; ".join(faults))
        shared = self._shared_out(tf) if self._tf_device == "/CPU:0" else None
        self._functions = shared or self._compiled_for_each_size(tf)
        self._shape = self._package.recipe.shape if self._leaves_edges_open(tf) else None
        if self._package.regions is not None:
            self._compiled_map = compiled_map(
                tf, self._network, self._package.regions.layer, self._tf_device, self._shape
            )
        self._description = PredictorDescription(
            model=self._package.at_version,
            runtime=f"keras {keras.__version__}, tensorflow {tf.__version__}",
            device=device,
            precision=", ".join(sorted(_precisions(self._network))),
            parameters=int(self._network.count_params()),
        )

    def warm_up(self) -> float:
        """Compute what has to be prepared once, so that no study waits; return the seconds."""
        seconds = super().warm_up()
        started = time.perf_counter()
        blank = np.zeros((1, *probe_shape(self._package.recipe)), np.float32)
        if self._package.explanation.method.needs_the_network:
            with contextlib.suppress(CannotExplain):  # said with every finding that misses it
                self.explain(blank, [self._package.labels[0].index])
        if self._compiled_map is not None:
            with contextlib.suppress(CannotLocate):  # said with every finding that misses it
                self.locate(blank)
        return seconds + time.perf_counter() - started

    def explain(self, batch: FloatArray, outputs: Sequence[int]) -> Attention:
        """Return where each input speaks for one output; see ``Explainer.explain``.

        The way there is compiled when it is first asked for, which ``warm_up`` does.
        """
        self._check(batch)
        if self._attention is None:
            self._attention = self._open_attention()
        if isinstance(self._attention, CannotExplain):
            raise CannotExplain(str(self._attention))
        return self._attention.maps(batch, outputs)

    def _open_attention(self) -> KerasAttention | CannotExplain:
        tf, _ = _import_libraries()
        plan, shape = self._package.explanation, probe_shape(self._package.recipe)
        try:
            return KerasAttention(tf, self._network, plan, self._tf_device, shape, self._shape)
        except CannotExplain as error:
            return error

    def _settle(self, one: FloatArray) -> Sequence[int]:
        assert self._functions is not None  # noqa: S101 - warmed up once loaded
        self._functions.settle(one, _call)
        return self._functions.sizes_to_warm(self._sizes)

    def _run(self, chunk: FloatArray) -> FloatArray:
        """Compute one batch; (size, outputs)."""
        assert self._functions is not None  # noqa: S101 - predict refuses before load
        return self._functions.compute(chunk, _call)

    def _run_map(self, chunk: FloatArray) -> FloatArray:
        """Compute the map of one batch; (size, [slices,] rows, columns, outputs)."""
        if self._compiled_map is None:
            return super()._run_map(chunk)
        try:
            values: FloatArray = self._compiled_map(chunk).numpy()
        except self._out_of_memory:
            raise
        except _LOAD_FAULTS as error:
            raise CannotLocate(f"this network gives no map ({type(error).__name__})") from error
        return values

    def _choose_device(self, tf: Any) -> str:
        """Settle where TensorFlow computes; return the device's name."""
        if self._wanted_device == "cpu":
            _hide_gpus(tf)
        gpus = tf.config.get_visible_devices("GPU") if self._wanted_device != "cpu" else []
        if self._wanted_device == "gpu" and not gpus:
            raise RuntimeFault(
                "device: gpu was asked for but TensorFlow finds none; check the driver "
                "(nvidia-smi) and the extra 'gpu', or set the device to auto"
            )
        if self._threads is not None:
            _limit_threads(tf, self._threads)
        if not gpus:
            self._tf_device = "/CPU:0"
            return "CPU"
        _grow_memory(tf, gpus)
        details = tf.config.experimental.get_device_details(gpus[0])
        self._tf_device = "/GPU:0"
        return str(details.get("device_name", "GPU"))

    def _load_network(self, keras: Any, keras_version: str) -> Any:
        path = self._package.weights_path
        try:
            # Safe mode: a file may hold layers and numbers, never code to run.
            return keras.models.load_model(path, compile=False, safe_mode=True)
        except _LOAD_FAULTS as error:
            first_line = str(error).strip().splitlines()[0] if str(error).strip() else ""
            raise RuntimeFault(
                f"{path.name}: Keras {keras.__version__} cannot load it (saved by Keras "
                f"{keras_version}): {_load_hint(str(error))}{type(error).__name__}: "
                f"{first_line[:200]}"
            ) from error

    def _shared_out(self, tf: Any) -> Shared[BatchFunction] | None:
        """Let each core compute inputs of its own where the frozen network answers alike."""
        recipe = self._package.recipe
        compute = self._function(tf)
        frozen = freeze(tf, compute, self._network, recipe.shape)
        if frozen is None:
            return None
        cores = usable_cores(self._threads)
        whole = open_session(tf, frozen, threads=cores, cores=cores)
        if not answers_alike(tf, whole, compute, probe_shape(recipe)):
            return None
        self._takes_any_size = True
        alone = open_session(tf, frozen, threads=1, cores=cores)
        return Shared(alone, whole, cores, self._largest_part)

    def _compiled_for_each_size(self, tf: Any) -> Undivided[BatchFunction]:
        if self._tf_device == "/CPU:0":
            logger.info(
                "%s cannot be frozen, and is compiled for each size of batch",
                self._package.at_version, extra={"action": "network_not_frozen"},
            )  # fmt: skip
        # One trace per batch size; the sizes are few and fixed, so tracing ends with warm-up.
        compiled = self._compiled = tf.function(self._function(tf), jit_compile=False)
        return Undivided(lambda batch: compiled(batch).numpy())

    def _leaves_edges_open(self, tf: Any) -> bool:
        """Return whether what is compiled for a series of any length is right."""
        recipe = self._package.recipe
        if None not in recipe.shape or isinstance(self._functions, Shared):
            return True
        compute = self._function(tf)
        traced = Traced(tf, compute, recipe.shape)
        return answers_alike(tf, lambda b: traced(b).numpy(), compute, probe_shape(recipe))

    def _function(self, tf: Any) -> Callable[[Any], Any]:
        network, device = self._network, self._tf_device

        def compute(values: Any) -> Any:
            with tf.device(device):
                return tf.cast(network(values, training=False), tf.float32)

        return compute


def _call(function: BatchFunction, part: FloatArray) -> FloatArray:
    return function(part)


def disagreements(package: ModelPackage, network: Any) -> list[str]:
    """Return where a loaded network is not what the manifest says; empty when it keeps its word."""
    faults = []
    inputs, outputs = network.inputs or [], network.outputs or []
    if len(inputs) != 1 or len(outputs) != 1:
        count = f"{len(inputs)} and {len(outputs)}"
        return [f"the network must have one input and one output, it has {count}"]
    found, wanted = tuple(inputs[0].shape[1:]), package.recipe.shape
    if not fits(found, wanted):
        faults.append(f"[input] makes tensors of {wanted}, the network takes {found}")
    size = tuple(outputs[0].shape[1:])
    if size != (package.output.size,):
        names = ", ".join(label.name for label in package.labels)
        faults.append(
            f"[output] size is {package.output.size} for the labels {names}; "
            f"the network gives {size}"
        )
    faults += map_faults(package, network)
    return faults + squashing_faults(package, last_operation(network))


def _precisions(network: Any) -> set[str]:
    """Return the types in which a network's layers compute; the file decides, layer by layer."""
    inner = [*getattr(network, "layers", ()), *filter(None, [getattr(network, "layer", None)])]
    return {str(network.compute_dtype)}.union(*map(_precisions, inner))


def _load_hint(message: str) -> str:
    if "safe_mode" in message or "Lambda" in message or "lambda" in message:
        return "it holds code (a Lambda layer), which is never run from a package; "
    if "Unknown layer" in message or "Could not locate class" in message:
        return "it uses a layer this installation does not know; "
    return ""


def _import_libraries() -> tuple[Any, Any]:
    """Import TensorFlow and Keras quietly: what matters is logged by this module."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    own_threads_for_each_session()
    for name in ("tensorflow", "absl", "h5py"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with _without_stderr():
            import keras  # noqa: PLC0415  importing takes seconds; only workers pay for it
            import tensorflow as tf  # noqa: PLC0415
    except ImportError as error:
        raise RuntimeFault(
            f"the Keras runtime cannot start: {error}; install tensorflow and keras 3"
        ) from error
    return tf, keras


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    """Send the process's standard error nowhere for the while.

    TensorFlow's native parts write to it on import, before any of their own settings is read.
    """
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _limit_threads(tf: Any, threads: int) -> None:
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    except RuntimeError:
        # TensorFlow is running already: an earlier predictor of this process has decided.
        logger.debug("threads are set already", extra={"action": "threads_kept"})


def _hide_gpus(tf: Any) -> None:
    """Keep TensorFlow from opening and filling GPUs, unless this process computes on them."""
    gpus = tf.config.list_physical_devices("GPU")
    if any(tf.config.experimental.get_memory_growth(gpu) for gpu in gpus):
        return
    try:
        tf.config.set_visible_devices([], "GPU")
    except RuntimeError:
        logger.debug("devices are open already", extra={"action": "devices_kept"})


def _grow_memory(tf: Any, gpus: Sequence[Any]) -> None:
    """Take GPU memory as it is needed, so that several workers can share a device."""
    for gpu in gpus:
        try:
            tf.config.experimental.set_memory_growth(gpu, True)
        except RuntimeError:
            logger.debug("memory growth is set already", extra={"action": "memory_growth_kept"})
