"""OpenVINO on the CPU: an ONNX file compiled for this very processor, in float32.

Owns openvino, imported in ``load`` only, and translates its exceptions. The precision is stated and
checked: by itself OpenVINO computes in bfloat16 where the processor can, and scores drift.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from queue import SimpleQueue
from typing import Any

import numpy as np

from model.errors import DeviceOutOfMemory, RuntimeFault
from model.package import ModelPackage
from model.runtimes.batched import BatchedPredictor, checked_device, padded
from model.runtimes.onnx_file import ONNXFile, read_onnx_file
from model.runtimes.port import FloatArray, PredictorDescription, planned_batches
from model.runtimes.sharing import Division, Shared, Undivided, usable_cores
from model.runtimes.signature import (
    Shape,
    Signature,
    TensorSpec,
    agreed_signature,
    channels_last,
    laid_out,
    laid_out_shape,
    probe_shape,
    squashing_faults,
)

_PRECISION = "INFERENCE_PRECISION_HINT"
_WANTED_PRECISION = "f32"
_TELEMETRY = "openvino_telemetry"
_NOT_TELLING = ("Exception from", "Check '", "To facilitate", "FrontEnd API failed", "Summary:")
_OPEN = -1
_LARGEST_PART = 2
"""Inputs that one core takes at once: a fixed size is computed faster than an open one, and each is
compiled by itself."""


class _Compiled:
    """A network compiled for a few sizes of batches; safe to ask from several threads at once.

    Parameters
    ----------
    by_size : mapping of int to CompiledModel
    at_once : int
        How many batches of a size may be computed at once.
    """

    def __init__(self, by_size: Mapping[int, Any], at_once: int) -> None:
        self._sizes = tuple(by_size)
        self._idle: dict[int, SimpleQueue[Any]] = {size: SimpleQueue() for size in by_size}
        for size, compiled in by_size.items():
            for _ in range(at_once):
                self._idle[size].put(compiled.create_infer_request())

    def __call__(self, chunk: FloatArray, given: str, wanted: str) -> FloatArray:
        """Return one output for a batch of any length, cut into the sizes that are compiled."""
        parts: list[FloatArray] = []
        done = 0
        for size, used in planned_batches(len(chunk), self._sizes):
            part = padded(chunk[done : done + used], size)
            parts.append(self._ask(part, given, wanted)[:used])
            done += used
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _ask(self, part: FloatArray, given: str, wanted: str) -> FloatArray:
        idle = self._idle[len(part)]
        request = idle.get()
        try:
            outputs: FloatArray = request.infer({given: part}, share_inputs=True)[wanted]
        finally:
            idle.put(request)
        return outputs


class OpenVINOPredictor(BatchedPredictor):
    """A ``Predictor`` for one ONNX file on the CPU.

    Parameters
    ----------
    package : ModelPackage
    device : str
        ``auto`` or ``cpu``; ``gpu`` is a fault.
    batch_sizes : sequence of int, optional
        The largest is the limit of one computation where the network's batch is open.
    threads : int, optional
        CPU cores to compute on; all when None.
    """

    def __init__(
        self,
        package: ModelPackage,
        *,
        device: str = "auto",
        batch_sizes: Sequence[int] | None = None,
        threads: int | None = None,
    ) -> None:
        checked_device(device)
        if device == "gpu":
            raise RuntimeFault(
                f"{package.at_version}: device: gpu was asked for, but the OpenVINO runtime "
                "computes on the CPU only; set the device to auto, or serve the Keras package"
            )
        super().__init__(package, batch_sizes)
        self._threads = threads
        self._networks: Division[_Compiled] | None = None
        self._signature: Signature | None = None

    def load(self) -> None:
        """Load the file, check it against the manifest and compile it.

        Raises
        ------
        RuntimeFault
            With a sentence about the file, all disagreements with the manifest, or the precision
            that OpenVINO took in place of float32.
        """
        file = read_onnx_file(self._package.weights_path)
        ov = _import_openvino()
        core = ov.Core()
        signature = self._checked_signature(self._read(core, file), file)
        compile_for = partial(self._compile, core, file, signature)
        if signature.fixed_batch is not None:
            self._sizes = (signature.fixed_batch,)
            self._networks = Undivided(compile_for(self._sizes))
        else:
            self._takes_any_size = True
            self._networks = self._shared_out(compile_for)
        self._signature = signature
        # One thread hands over the first array of a process: where two do at once, OpenVINO's
        # binding (2026.4) waits in one for the interpreter and in the other for itself, forever.
        self._run(np.zeros((1, *probe_shape(self._package.recipe)), np.float32))
        self._description = PredictorDescription(
            model=self._package.at_version,
            runtime=f"openvino {ov.__version__.partition('-')[0]}",
            device="CPU",
            precision="float32",
            parameters=file.parameters,
        )

    def _read(self, core: Any, file: ONNXFile) -> Any:
        try:
            return core.read_model(file.content)
        except RuntimeError as error:
            origin = f"operator set {file.opset}, by {file.producer or 'an unnamed program'}"
            raise RuntimeFault(
                f"{self._package.weights_path.name}: OpenVINO cannot load it ({origin}): "
                f'{_telling_line(error)}; try runtime = "onnx" in [weights]'
            ) from error

    def _checked_signature(self, network: Any, file: ONNXFile) -> Signature:
        signature = agreed_signature(
            self._package,
            [_spec(each) for each in network.inputs],
            [_spec(each) for each in network.outputs],
        )
        last = file.last_operations.get(signature.output.name, "")
        faults = squashing_faults(self._package, last)
        if faults:
            raise RuntimeFault(f"{self._package.at_version}: " + "; ".join(faults))
        return signature

    def _shared_out(self, compile_for: Callable[..., _Compiled]) -> Shared[_Compiled]:
        # Each takes memory for all that it computes: no more of them than a batch has parts.
        most = self._sizes[-1]
        at_once = min(usable_cores(self._threads), most)
        largest = min(self._largest_part, _LARGEST_PART, math.ceil(most / at_once))
        alone = compile_for(range(1, largest + 1), at_once=at_once)
        return Shared(alone, compile_for([1]), at_once, largest)

    def _compile(
        self,
        core: Any,
        file: ONNXFile,
        signature: Signature,
        sizes: Iterable[int],
        at_once: int = 1,
    ) -> _Compiled:
        """Compile the network for batches of these sizes; all cores share in what is computed."""
        settings: dict[str, Any] = {
            _PRECISION: _WANTED_PRECISION,
            "EXECUTION_MODE_HINT": "ACCURACY",
            "NUM_STREAMS": at_once,
            # Receiver, preparer and other workers run on the same cores.
            "ENABLE_CPU_PINNING": False,
            "INFERENCE_NUM_THREADS": usable_cores(self._threads),
        }
        by_size = {size: self._compile_one(core, file, signature, size, settings) for size in sizes}
        return _Compiled(by_size, at_once)

    def _compile_one(
        self,
        core: Any,
        file: ONNXFile,
        signature: Signature,
        size: int,
        settings: Mapping[str, Any],
    ) -> Any:
        network = self._read(core, file)
        plan = self._package.runtime
        shape = (size, *laid_out_shape(self._package.recipe.shape, plan.layout))
        try:
            network.reshape({signature.input.name: _openvino_shape(shape)})
            compiled = core.compile_model(network, "CPU", settings)
        except RuntimeError as error:
            raise RuntimeFault(
                f"{self._package.at_version}: OpenVINO cannot compile it for batches of {size}: "
                f"{_telling_line(error)}"
            ) from error
        self._check_precision(compiled)
        return compiled

    def _check_precision(self, compiled: Any) -> None:
        taken = compiled.get_property(_PRECISION).to_string()
        if taken != "f32":
            raise RuntimeFault(
                f"{self._package.at_version}: float32 was asked for, but OpenVINO computes in "
                f"{taken} here; scores would differ from those the model was admitted with"
            )

    def _settle(self, one: FloatArray) -> Sequence[int]:
        assert self._networks is not None  # noqa: S101 - warmed up once loaded
        self._networks.settle(one, self._computed)
        return self._networks.sizes_to_warm(self._sizes)

    def _run(self, chunk: FloatArray) -> FloatArray:
        assert self._networks is not None  # noqa: S101 - predict refuses before load
        return self._networks.compute(chunk, self._computed)

    def _run_map(self, chunk: FloatArray) -> FloatArray:
        assert self._signature is not None  # noqa: S101 - locate refuses before load
        assert self._networks is not None  # noqa: S101
        if self._signature.map is None:
            return super()._run_map(chunk)
        computed = partial(self._computed, output=self._signature.map)
        values = self._networks.compute(chunk, computed)
        return channels_last(values, self._package.runtime.layout)

    def _computed(
        self, compiled: _Compiled, chunk: FloatArray, output: TensorSpec | None = None
    ) -> FloatArray:
        """Return one output for a batch, that of the labels when none is named."""
        assert self._signature is not None  # noqa: S101 - predict refuses before load
        output = output or self._signature.output
        values = laid_out(chunk, self._package.runtime.layout)
        try:
            return compiled(values, self._signature.input.name, output.name)
        except MemoryError as error:
            raise DeviceOutOfMemory(
                f"{self._package.at_version}: no memory for a batch of {len(chunk)}; free the "
                "machine or lower worker.maximum_batch"
            ) from error
        except RuntimeError as error:
            raise RuntimeFault(
                f"{self._package.at_version}: OpenVINO cannot compute it: {_telling_line(error)}"
            ) from error


def _spec(port: Any) -> TensorSpec:
    shape: Shape = tuple(
        None if edge.is_dynamic else int(edge.get_length()) for edge in port.partial_shape
    )
    kind = port.element_type.to_string()
    return TensorSpec(port.any_name, {"f32": "float32"}.get(kind, kind), shape)


def _openvino_shape(shape: Shape) -> list[int]:
    return [_OPEN if edge is None else edge for edge in shape]


def _telling_line(error: Exception) -> str:
    """Return the line that says what is wrong; others name places in OpenVINO's source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not any(word in line for word in _NOT_TELLING)]
    named = [line for line in telling if "No conversion rule" in line]
    chosen = (named or telling or lines or [type(error).__name__])[-1]
    return chosen.lstrip("- ")[:200]


def _import_openvino() -> Any:
    try:
        with _without_telemetry():
            import openvino  # noqa: PLC0415  an extra; only workers that need it pay for it
    except ImportError as error:
        raise RuntimeFault(
            f"the OpenVINO runtime cannot start: {error}; install the extra: pip install "
            "'medimgd[openvino]'"
        ) from error
    return openvino


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """Keep OpenVINO from telling its maker that it was imported: nothing leaves a hospital.

    Its own code works without that module, and says so with a stub.
    """
    kept = sys.modules.get(_TELEMETRY)
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # what makes an import fail
    try:
        yield
    finally:
        del sys.modules[_TELEMETRY]
        if kept is not None:
            sys.modules[_TELEMETRY] = kept
