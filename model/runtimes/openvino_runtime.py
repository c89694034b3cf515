"""OpenVINO on the CPU: an ONNX file compiled for this very processor, in float32.

Owns openvino, imported in ``load`` only, and translates its exceptions. The precision is stated and
checked: by itself OpenVINO computes in bfloat16 where the processor can, and scores drift.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from model.errors import DeviceOutOfMemory, RuntimeFault
from model.package import ModelPackage
from model.runtimes.batched import BatchedPredictor, checked_device
from model.runtimes.onnx_file import ONNXFile, read_onnx_file
from model.runtimes.port import FloatArray, PredictorDescription
from model.runtimes.signature import (
    Shape,
    Signature,
    TensorSpec,
    agreed_signature,
    channels_last,
    laid_out,
    laid_out_shape,
    squashing_faults,
)

_PRECISION = "INFERENCE_PRECISION_HINT"
_WANTED_PRECISION = "f32"
_TELEMETRY = "openvino_telemetry"
_NOT_TELLING = ("Exception from", "Check '", "To facilitate", "FrontEnd API failed", "Summary:")
_OPEN = -1


class OpenVINOPredictor(BatchedPredictor):
    """A ``Predictor`` for one ONNX file on the CPU.

    Parameters
    ----------
    package : ModelPackage
    device : str
        ``auto`` or ``cpu``; ``gpu`` is a fault.
    batch_sizes : sequence of int, optional
        Each is compiled by itself: a fixed size is computed faster than an open one.
    threads : int, optional
        CPU threads; OpenVINO's choice, one for each core, when None.
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
        self._compiled: dict[int, Any] = {}
        self._signature: Signature | None = None

    def load(self) -> None:
        """Load the file, check it against the manifest and compile it once for each batch size.

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
        if signature.fixed_batch is not None:
            self._sizes = (signature.fixed_batch,)
        self._compiled = {size: self._compile(core, file, signature, size) for size in self._sizes}
        self._signature = signature
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

    def _compile(self, core: Any, file: ONNXFile, signature: Signature, size: int) -> Any:
        network = self._read(core, file)
        plan = self._package.runtime
        shape = (size, *laid_out_shape(self._package.recipe.shape, plan.layout))
        settings: dict[str, Any] = {
            _PRECISION: _WANTED_PRECISION,
            "EXECUTION_MODE_HINT": "ACCURACY",
            "PERFORMANCE_HINT": "LATENCY",
            # Receiver, preparer and other workers run on the same cores.
            "ENABLE_CPU_PINNING": False,
        }
        if self._threads is not None:
            settings["INFERENCE_NUM_THREADS"] = self._threads
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

    def _run(self, chunk: FloatArray) -> FloatArray:
        assert self._signature is not None  # noqa: S101 - predict refuses before load
        return self._computed(chunk, self._signature.output)

    def _run_map(self, chunk: FloatArray) -> FloatArray:
        assert self._signature is not None  # noqa: S101 - locate refuses before load
        if self._signature.map is None:
            return super()._run_map(chunk)
        values = self._computed(chunk, self._signature.map)
        return channels_last(values, self._package.runtime.layout)

    def _computed(self, chunk: FloatArray, output: TensorSpec) -> FloatArray:
        assert self._signature is not None  # noqa: S101
        values = laid_out(chunk, self._package.runtime.layout)
        try:
            given = self._compiled[len(chunk)]({self._signature.input.name: values})
        except MemoryError as error:
            raise DeviceOutOfMemory(
                f"{self._package.at_version}: no memory for a batch of {len(chunk)}; free the "
                "machine or lower worker.maximum_batch"
            ) from error
        except RuntimeError as error:
            raise RuntimeFault(
                f"{self._package.at_version}: OpenVINO cannot compute it: {_telling_line(error)}"
            ) from error
        outputs: FloatArray = given[output.name]
        return outputs


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
