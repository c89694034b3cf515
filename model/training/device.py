"""What a training computes on: device, threads, precision, and the versions behind it.

Owns the process-wide settings of TensorFlow; called once, before anything is computed.
"""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version

import keras
import tensorflow as tf

from model.errors import TrainingRunFault
from model.training.plan_fit import PrecisionValues

CPU = "CPU"
FULL = "float32"
MIXED = "mixed_bfloat16"
OLDEST_FOR_BFLOAT16 = (8, 0)
"""Compute capability of the first GPUs that compute bfloat16 as fast as float16."""

_LIBRARIES = ("medimgd", "tensorflow", "keras", "numpy", "opencv-python-headless", "scikit-learn")


@dataclass(frozen=True, slots=True)
class Environment:
    """Where a run computes; written into its folder."""

    python: str
    system: str
    cores: int
    threads: int
    """Of TensorFlow's operations; 0 leaves the number to TensorFlow."""
    device: str
    dtype_policy: str
    libraries: dict[str, str]

    def as_mapping(self) -> dict[str, object]:
        """Return the record as plain data for JSON."""
        return asdict(self)

    def differences(self, before: Mapping[str, object]) -> list[str]:
        """Return what makes other numbers here than where `before` was written, in words.

        Parameters
        ----------
        before : mapping
            An earlier ``as_mapping``, as read back from JSON. Threads count on a CPU only: they
            decide there in which order numbers are added.
        """
        now, then = self._computing(self.as_mapping()), self._computing(before)
        return [
            f"{name} was {then.get(name) or 'not there'}, is {now.get(name) or 'not there'}"
            for name in {**then, **now}
            if now.get(name) != then.get(name)
        ]

    @staticmethod
    def _computing(record: Mapping[str, object]) -> dict[str, object]:
        libraries = record.get("libraries")
        threads = record.get("threads") or record.get("cores")
        return {
            "the device": record.get("device"),
            "the precision": record.get("dtype_policy"),
            **(
                {"the number of threads (--threads)": threads}
                if record.get("device") == CPU
                else {}
            ),
            **(libraries if isinstance(libraries, Mapping) else {}),
        }


def prepare(precision: PrecisionValues, threads: int) -> Environment:
    """Set threads, determinism and rounding for the whole process; say what it computes on.

    Raises
    ------
    TrainingRunFault
        TensorFlow was used in this process with another number of threads.
    """
    try:
        if threads:
            tf.config.threading.set_intra_op_parallelism_threads(threads)
            tf.config.threading.set_inter_op_parallelism_threads(threads)
        gpus = tf.config.list_physical_devices("GPU")
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, enable=True)
    except RuntimeError as error:
        raise TrainingRunFault(f"threads: cannot be set any more: {error}") from error
    tf.config.experimental.enable_op_determinism()
    # What is measured here is computed as it will be in service.
    tf.config.experimental.enable_tensor_float_32_execution(False)
    # Every network has functions of its own, which is no mistake.
    tf.get_logger().setLevel(logging.ERROR)
    name, capability = _described(gpus)
    return Environment(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        cores=len(os.sched_getaffinity(0)),
        threads=threads,
        device=name,
        dtype_policy=_policy(precision, capability),
        libraries={name: _version(name) for name in _LIBRARIES},
    )


def _described(gpus: list[object]) -> tuple[str, tuple[int, int] | None]:
    """Return the device's name and the compute capability of the first GPU."""
    if not gpus:
        return CPU, None
    details = tf.config.experimental.get_device_details(gpus[0])
    return str(details.get("device_name", "GPU")), details.get("compute_capability")


def _policy(precision: PrecisionValues, capability: tuple[int, int] | None) -> str:
    is_able = capability is not None and tuple(capability) >= OLDEST_FOR_BFLOAT16
    if precision is PrecisionValues.ON or (precision is PrecisionValues.AUTO and is_able):
        return MIXED
    return FULL


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


@contextmanager
def dtype_policy(name: str) -> Iterator[None]:
    """Let layers that are made inside compute in another type."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
