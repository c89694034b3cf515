"""The errors of model packages, weights and devices.

Owns the branch below ``ModelError``:

    ModelError
    ├── PackageFault                a package folder is not what its manifest promises
    ├── ConditionFault              a condition in a manifest cannot be understood
    ├── CatalogueFault              a package cannot be installed, found or removed
    ├── RuntimeFault                weights do not load, or do not do what the manifest says
    ├── UnusableOutput              a prediction holds NaN or infinity; never a finding
    ├── DeviceOutOfMemory           the device cannot hold even the smallest batch
    ├── RemoteUnavailable           the server that computes does not answer, or not yet
    ├── ConversionFault             a package cannot be converted, or answers otherwise afterwards
    ├── CannotExplain               no attention map can be had; findings are true without one
    ├── CannotLocate                no map of regions can be had; findings are true without one
    ├── NetworkFault                a network for training cannot be built or joined as asked
    ├── TrainingDataFault           films for training are absent, unreadable or leak
    ├── DataGateFault               labelled data fail checks that nobody passed over
    ├── TrainingPlanFault           the configuration of a training cannot be carried out
    ├── TrainingRunFault            a run folder or the weights in it are of no use
    ├── TrainingStopped             somebody asked a training to stop; it can go on from there
    └── EvaluationFault             package, data and question do not fit each other

Every class says whether doing the same again later can help.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from dicom_io.errors import MedimgdError


class ModelError(MedimgdError):
    """The root of the model side."""

    retryable: ClassVar[bool] = False


class _ListedFaults(ModelError):
    """An error that names all faults at once.

    Parameters
    ----------
    subject : str
        What is at fault: a package, a manifest, a condition.
    faults : iterable of str
        One sentence per fault.
    """

    retryable = False

    def __init__(self, subject: str, faults: Iterable[str]) -> None:
        self.subject = subject
        self.faults = tuple(faults)
        count = "1 fault" if len(self.faults) == 1 else f"{len(self.faults)} faults"
        super().__init__(f"{subject}: {count}: " + "; ".join(self.faults))


class PackageFault(_ListedFaults):
    """A package folder is not what its manifest promises; all faults are in ``faults``."""

    retryable = False


class ConditionFault(_ListedFaults):
    """A condition cannot be understood; all faults are in ``faults``."""

    retryable = False


class CatalogueFault(_ListedFaults):
    """A package cannot be installed, or no such package is installed."""

    retryable = False


class RuntimeFault(ModelError):
    """The weights do not load, or do not do what the manifest says."""

    retryable = False


class UnusableOutput(ModelError):
    """A prediction holds NaN, infinity or numbers that are no probabilities.

    Parameters
    ----------
    message : str
        One sentence for people.
    rows : tuple of int
        The inputs of the batch at fault, so that the others can be computed without them; empty
        when all are.
    """

    retryable = False

    def __init__(self, message: str, rows: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.rows = rows


class DeviceOutOfMemory(ModelError):
    """The device has no memory left for even the smallest batch; it may have later."""

    retryable = True


class RemoteUnavailable(ModelError):
    """The server that computes a model does not answer, is not ready or does not let us in.

    Nothing is wrong with the input: it may be sent again, as often as it takes.
    """

    retryable = True


class ConversionFault(ModelError):
    """A package cannot be converted, or its converted form does not answer as it does itself."""

    retryable = False


class CannotExplain(ModelError):
    """No attention map can be had of this network or on this device; the message says why."""

    retryable = False


class CannotLocate(ModelError):
    """No map of regions can be had of this network or this runtime; the message says why."""

    retryable = False


class NetworkFault(ModelError):
    """A network for training cannot be built as asked: shape, backbone or weights do not fit."""

    retryable = False


class TrainingDataFault(ModelError):
    """Films for training are absent, unreadable, or the same patient is in two splits."""

    retryable = False


class DataGateFault(_ListedFaults):
    """Labelled data fail checks of the gate that nobody passed over by name."""

    retryable = False


class TrainingPlanFault(_ListedFaults):
    """The configuration of a training cannot be carried out; all faults are in ``faults``."""

    retryable = False


class TrainingRunFault(ModelError):
    """A run folder belongs to another training, is damaged, or its weights came to nothing."""

    retryable = False


class TrainingStopped(ModelError):
    """Somebody asked a training to stop; what was done is kept, and it can go on from there."""

    retryable = False


class EvaluationFault(ModelError):
    """An evaluation cannot be done as asked: package, data and question do not fit."""

    retryable = False
