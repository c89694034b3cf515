"""Every error medimgd raises on purpose, and what the caller may do about it.

Owns the root of the tree; each package's ``errors.py`` hangs its own branches below it:

    MedimgdError
    ├── InvalidUID
    ├── UnreadableInstance
    ├── InstanceUnavailable         the machine failed, not the file: disk, mount, memory
    ├── InvalidRecipe               a model's input description cannot be followed
    ├── Refusal                     the input is outside what can be analysed; never a negative
    │   ├── CannotDecode
    │   ├── UnsuitableSeries        gaps, tilt, duplicates, mixed matrices
    │   ├── OutsideContract
    │   └── UnlikeTraining          it does not resemble what the model was trained on
    ├── CannotCompose               a report could not be built from this reference header
    ├── AssociationFailed           peer unreachable, rejected us or aborted
    ├── ReceiverNotStarted          the listening port could not be taken
    ├── UnusableCertificate         a TLS file is missing, damaged, expired or does not fit
    ├── IdentityUnchecked           too many user identities wait for their check
    ├── StorageError                ``storage.errors``
    ├── ModelError                  ``model.errors``
    └── DaemonError                 ``daemon.errors``

A class says whether doing the same thing again later can help (``retryable``); callers decide by
that alone. Messages name the attribute, the rule, what was received and what to do. They never
hold a patient's name, birth date or pixels.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar


class MedimgdError(Exception):
    """The root of the tree."""

    retryable: ClassVar[bool] = False


class InvalidUID(MedimgdError):
    """A UID breaks PS3.5 section 9.1 and must not become a path or a key."""

    retryable = False


class UnreadableInstance(MedimgdError):
    """A data set cannot be parsed, or lacks the UIDs that say where it belongs."""

    retryable = False


class InstanceUnavailable(MedimgdError):
    """A stored file could not be read for a fault of this machine: disk, mount, handles, memory.

    Says nothing about the file: it may be sound, so nothing may be refused for good because of it.
    """

    retryable = True


class InvalidRecipe(MedimgdError, ValueError):
    """A model's input description names a shape, range or field that cannot be followed."""

    retryable = False


class RefusalReason(StrEnum):
    """Why no statement about any finding is made, as stored, shown and reported."""

    CANNOT_DECODE = "cannot decode"
    GEOMETRY = "unsuitable geometry"
    INCOMPLETE_SERIES = "series incomplete"
    OUTSIDE_CONTRACT = "outside the model's input contract"
    QUALITY = "insufficient quality"
    SOFTWARE_FAILURE = "software failure"
    UNLIKE_TRAINING = "unlike the images of training"
    WITHDRAWN = "model withdrawn"


class Refusal(MedimgdError):
    """The input is outside what can be analysed. A refusal is a result, never a negative.

    Parameters
    ----------
    message : str
        One sentence for people: attribute, rule, value received.
    reason : RefusalReason, optional
        The coded reason; each subclass has its own default.
    """

    retryable = False
    reason: RefusalReason = RefusalReason.OUTSIDE_CONTRACT

    def __init__(self, message: str, reason: RefusalReason | None = None) -> None:
        super().__init__(message)
        if reason is not None:
            self.reason = reason


class CannotDecode(Refusal):
    """The pixel data cannot be turned into the numbers the header promises."""

    retryable = False
    reason = RefusalReason.CANNOT_DECODE


class UnsuitableSeries(Refusal):
    """The slices of a series do not make one evenly spaced stack."""

    retryable = False
    reason = RefusalReason.GEOMETRY


class OutsideContract(Refusal):
    """A model may not see this input: its manifest says so."""

    retryable = False
    reason = RefusalReason.OUTSIDE_CONTRACT


class UnlikeTraining(Refusal):
    """An input does not resemble those that a model was trained on, whatever its header says.

    Parameters
    ----------
    distance, limit : float
        How far it lies from them, and how far it may.
    """

    retryable = False
    reason = RefusalReason.UNLIKE_TRAINING

    def __init__(self, distance: float, limit: float) -> None:
        digits = _digits_apart(distance, limit)
        super().__init__(
            f"This image does not look like the images the model was trained on "
            f"(distance {distance:.{digits}f}, limit {limit:.{digits}f})."
        )
        self.distance = distance
        self.limit = limit


_FEWEST_DIGITS, _MOST_DIGITS = 2, 7
"""Behind the point; a distance is computed in float32."""


def _digits_apart(distance: float, limit: float) -> int:
    """Return how many digits show that a distance is beyond a limit: two where they do."""
    counts = range(_FEWEST_DIGITS, _MOST_DIGITS)
    return next((n for n in counts if round(distance, n) != round(limit, n)), _MOST_DIGITS)


class CannotCompose(MedimgdError):
    """A result object could not be built from the reference header and the findings."""

    retryable = False


class AssociationFailed(MedimgdError):
    """The peer could not be reached, rejected the association, or aborted it."""

    retryable = True


class ReceiverNotStarted(MedimgdError):
    """The listening port is taken or may not be opened."""

    retryable = True


class UnusableCertificate(MedimgdError):
    """A certificate, key or list of authorities cannot be used for TLS as it lies there."""

    retryable = False


class IdentityUnchecked(MedimgdError):
    """Whether a user is who it says it is cannot be told now; the same request may be later."""

    retryable = True
