"""ONNX Runtime: networks from PyTorch, converted Keras, or anything else that exports ONNX.

Owns onnxruntime, imported in ``load`` only, and translates its exceptions. Computes in float32 on
the CPU, or on a CUDA device where the installed onnxruntime has that provider.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from model.errors import DeviceOutOfMemory, RuntimeFault
from model.package import ModelPackage
from model.runtimes.batched import BatchedPredictor, checked_device
from model.runtimes.onnx_file import ONNXFile, read_onnx_file
from model.runtimes.port import FloatArray, PredictorDescription
from model.runtimes.sharing import Division, Shared, Undivided, usable_cores
from model.runtimes.signature import (
    Signature,
    TensorSpec,
    agreed_signature,
    channels_last,
    laid_out,
    squashing_faults,
)

_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_FATAL_ONLY = 4
_DATATYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64"}
_NO_MEMORY = ("failed to allocate memory", "out of memory", "bad_alloc", "bad allocation")


class ONNXPredictor(BatchedPredictor):
    """A ``Predictor`` for one ONNX file.

    Parameters
    ----------
    package : ModelPackage
    device : str
        ``auto`` takes a CUDA device when this onnxruntime has one, else the CPU; ``cpu`` leaves
        it alone; ``gpu`` is a fault where there is none.
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
        super().__init__(package, batch_sizes)
        self._wanted_device = device
        self._threads = threads
        self._sessions: Division[Any] | None = None
        self._signature: Signature | None = None
        self._faults: tuple[type[Exception], ...] = ()

    def load(self) -> None:
        """Load the file and check names, shapes and last operation against the manifest.

        Raises
        ------
        RuntimeFault
            With a sentence about the file, or all disagreements with the manifest.
        """
        file = read_onnx_file(self._package.weights_path)
        ort = _import_onnxruntime()
        self._faults = _faults_of(ort)
        session = self._open(ort, file, self._threads)
        signature = self._checked_signature(session, file)
        on_cpu = session.get_providers()[0] != _CUDA
        if signature.fixed_batch is not None:
            self._sizes = (signature.fixed_batch,)
        self._takes_any_size = signature.fixed_batch is None
        self._sessions = Undivided(session)
        if self._takes_any_size and on_cpu:
            alone, cores = self._open(ort, file, threads=1), usable_cores(self._threads)
            self._sessions = Shared(alone, session, cores, self._largest_part)
        self._signature = signature
        self._description = PredictorDescription(
            model=self._package.at_version,
            runtime=f"onnxruntime {ort.__version__}",
            device="CPU" if on_cpu else "CUDA",
            precision="float32",
            parameters=file.parameters,
        )

    def _open(self, ort: Any, file: ONNXFile, threads: int | None) -> Any:
        name = self._package.weights_path.name
        try:
            session = ort.InferenceSession(
                file.content, sess_options=_options(ort, threads), providers=self._providers(ort)
            )
        except self._faults as error:
            raise RuntimeFault(
                f"{name}: onnxruntime {ort.__version__} cannot load it (operator set "
                f"{file.opset}, by {file.producer or 'an unnamed program'}): {_first_line(error)}"
            ) from error
        # onnxruntime falls back to the CPU in silence when CUDA does not start.
        if self._wanted_device == "gpu" and session.get_providers()[0] != _CUDA:
            raise RuntimeFault(
                "device: gpu was asked for but onnxruntime could not start CUDA; check the driver "
                "(nvidia-smi) and the CUDA libraries, or set the device to auto"
            )
        return session

    def _providers(self, ort: Any) -> list[Any]:
        available = ort.get_available_providers()
        if self._wanted_device == "gpu" and _CUDA not in available:
            raise RuntimeFault(
                "device: gpu was asked for but this onnxruntime has no CUDA provider; install "
                "onnxruntime-gpu in place of onnxruntime, or set the device to auto"
            )
        if self._wanted_device == "cpu" or _CUDA not in available:
            return [_CPU]
        # TensorFloat-32 keeps ten bits of the mantissa: scores would differ from the CPU's.
        return [(_CUDA, {"use_tf32": "0"}), _CPU]

    def _checked_signature(self, session: Any, file: ONNXFile) -> Signature:
        signature = agreed_signature(
            self._package,
            [_spec(each) for each in session.get_inputs()],
            [_spec(each) for each in session.get_outputs()],
        )
        last = file.last_operations.get(signature.output.name, "")
        faults = squashing_faults(self._package, last)
        if faults:
            raise RuntimeFault(f"{self._package.at_version}: " + "; ".join(faults))
        return signature

    def _settle(self, one: FloatArray) -> Sequence[int]:
        assert self._sessions is not None  # noqa: S101 - warmed up once loaded
        self._sessions.settle(one, self._computed)
        return self._sessions.sizes_to_warm(self._sizes)

    def _run(self, chunk: FloatArray) -> FloatArray:
        assert self._sessions is not None  # noqa: S101 - predict refuses before load
        return self._sessions.compute(chunk, self._computed)

    def _run_map(self, chunk: FloatArray) -> FloatArray:
        assert self._signature is not None  # noqa: S101 - locate refuses before load
        assert self._sessions is not None  # noqa: S101
        if self._signature.map is None:
            return super()._run_map(chunk)
        computed = partial(self._computed, output=self._signature.map)
        values = self._sessions.compute(chunk, computed)
        return channels_last(values, self._package.runtime.layout)

    def _computed(
        self, session: Any, chunk: FloatArray, output: TensorSpec | None = None
    ) -> FloatArray:
        """Return one output of a session for a batch, that of the labels when none is named."""
        assert self._signature is not None  # noqa: S101 - predict refuses before load
        output = output or self._signature.output
        values = laid_out(chunk, self._package.runtime.layout)
        try:
            outputs: FloatArray = session.run([output.name], {self._signature.input.name: values})[
                0
            ]
        except self._faults as error:
            message = str(error).casefold()
            if isinstance(error, MemoryError) or any(words in message for words in _NO_MEMORY):
                raise DeviceOutOfMemory(
                    f"{self._package.at_version}: {self.device} has no memory for a batch of "
                    f"{len(chunk)}; free the device or lower worker.maximum_batch"
                ) from error
            raise RuntimeFault(
                f"{self._package.at_version}: onnxruntime cannot compute it: {_first_line(error)}"
            ) from error
        return outputs


def _options(ort: Any, threads: int | None) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = _FATAL_ONLY
    options.inter_op_num_threads = 1
    options.intra_op_num_threads = threads or 0
    # Receiver and preparer share the cores: threads that spin gain a third on an idle machine and
    # lose half on a busy one.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _spec(argument: Any) -> TensorSpec:
    shape = tuple(edge if isinstance(edge, int) else None for edge in argument.shape)
    return TensorSpec(argument.name, _DATATYPES.get(argument.type, argument.type), shape)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _import_onnxruntime() -> Any:
    try:
        import onnxruntime  # noqa: PLC0415  an extra; only workers that need it pay for it
    except ImportError as error:
        raise RuntimeFault(
            f"the ONNX runtime cannot start: {error}; install the extra: pip install "
            "'medimgd[onnx]'"
        ) from error
    return onnxruntime


def _faults_of(ort: Any) -> tuple[type[Exception], ...]:
    """Return what onnxruntime raises: its classes have no common root."""
    state = ort.capi.onnxruntime_pybind11_state
    found = [value for value in vars(state).values() if isinstance(value, type)]
    own = [each for each in found if issubclass(each, Exception)]
    return (*own, RuntimeError, ValueError, MemoryError)
