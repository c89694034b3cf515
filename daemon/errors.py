"""Errors of the processes and the command line, below ``dicom_io.errors.MedimgdError``.

DaemonError
├── ConfigurationError      the TOML file or the environment breaks a rule
├── SlotTaken               another process runs this slot on this data folder
├── DataFolderUnusable      nothing can be written into the data folder
├── AdmissionRefused        a model version is not what this site asks for
├── UnknownStudy            no study is known by what was typed
├── CannotReplay            a result cannot be computed again from what is stored
│   └── PackageGone         the weights it was computed with are not installed
├── PortTaken               the worklist page cannot listen where it should
└── DemonstrationFailed     an expected report did not arrive
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dicom_io.errors import MedimgdError

if TYPE_CHECKING:
    from model.admission import Criterion


class DaemonError(MedimgdError):
    """The root of this package's errors."""

    retryable = False


class ConfigurationError(DaemonError):
    """The configuration breaks one or more rules; all of them are in the message."""

    retryable = False


class SlotTaken(DaemonError):
    """Another process runs this slot on this data folder."""

    retryable = False


class DataFolderUnusable(DaemonError):
    """Nothing can be written into the data folder.

    Parameters
    ----------
    folder : Path
        ``site.data_folder``.
    cause : OSError
        What the system said, and about which path.
    """

    retryable = False

    def __init__(self, folder: Path, cause: OSError) -> None:
        super().__init__(
            f"cannot write into the data folder {folder.absolute()} as user {os.geteuid()} "
            f"({cause.strerror}: {cause.filename or folder}): the account that medimgd runs as "
            "must own it, and its disk needs room; or name another folder in site.data_folder"
        )


class AdmissionRefused(DaemonError):
    """A model version is not what this site asks for; every criterion is in ``criteria``.

    Parameters
    ----------
    at_version : str
        ``name@version``.
    criteria : sequence of Criterion
        All that was looked at, met or not.
    """

    retryable = False

    def __init__(self, at_version: str, criteria: Sequence[Criterion]) -> None:
        self.at_version = at_version
        self.criteria = tuple(criteria)
        unmet = [each.sentence for each in self.criteria if not each.met]
        super().__init__(f"{at_version} is not admitted: " + "; ".join(unmet))


class UnknownStudy(DaemonError):
    """No study, or more than one, matches what was typed."""

    retryable = False


class DemonstrationFailed(DaemonError):
    """The demonstration ended without every report it expected."""

    retryable = False


class PortTaken(DaemonError):
    """The worklist page cannot listen on the configured address and port."""

    retryable = True


class CannotReplay(DaemonError):
    """A stored result cannot be computed again from what is stored now; the message says why."""

    retryable = False


class PackageGone(CannotReplay):
    """No installed package has the weights that a result was computed with."""

    retryable = False
