"""The settings of the networks: which packages may serve, how, and on what.

Owns the tables ``[models]``, ``[models.admission]``, ``[[models.remote]]`` and ``[worker]`` with
defaults and reasons. Reads no package.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from daemon.settings import FileName, LeaseSeconds, Seconds, Section, Share
from model.runtime_plan import url_fault


class AdmissionSection(Section):
    """What a model version must show before this site lets it serve."""

    required: bool = False
    """Whether nothing serves without ``medimgd models admit``, the shipped packages included. When
    false, the highest version serves by itself until a person has admitted or retired one."""
    evaluation_required: bool = True
    """Whether a package without an evaluation report is refused. One is needed for the limits
    below in any case."""
    minimum_auc: Share = 0.0
    """Smallest area under the ROC curve, of each label; 0 sets no limit, as for the next two."""
    minimum_sensitivity: Share = 0.0
    """Smallest sensitivity at the packaged threshold, of each label."""
    minimum_specificity: Share = 0.0
    """Smallest specificity at the packaged threshold, of each label."""
    maximum_subgroup_gap: Share = 1.0
    """Largest distance of AUC, sensitivity or specificity between two subgroups of a column; 1 sets
    no limit."""
    lower_bounds_count: bool = False
    """Whether the lower ends of the confidence intervals must reach the minima, not the values."""


class RemoteSection(Section):
    """How the server of one model is reached (``runtime = "remote"`` in its manifest)."""

    model: str = Field(min_length=1, max_length=128)
    """``name`` or ``name@version`` of the package."""
    url: str = ""
    """``scheme://host:port`` with http, https, grpc or grpcs; the manifest's when empty."""
    token_file: FileName = None
    """Text: the bearer token in one line; read again for each request."""
    ca_file: FileName = None
    """PEM: the authorities that vouch for the server; the system's when absent."""
    timeout_seconds: Seconds = 30.0
    """For each request, from connecting to the last byte."""

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        fault = url_fault(value) if value else ""
        if fault:
            raise ValueError(fault)
        return value


class ModelsSection(Section):
    """Which model packages may serve."""

    folders: tuple[Path, ...] = ()
    """Searched besides ``<data_folder>/models`` and the packages medimgd ships."""
    bundled: bool = True
    """Whether the packages shipped with medimgd take part."""
    disabled: tuple[str, ...] = ()
    """``name`` or ``name@version`` of packages that must not run."""
    demonstrations: tuple[str, ...] = ()
    """``name`` or ``name@version`` of shipped demonstrations that serve. They prove a path and make
    no clinical claim; none serves unless it is named here or admitted by a person."""
    remote: tuple[RemoteSection, ...] = ()
    """How servers that compute models are reached, one block for each: ``model`` and, where they
    differ from the package's manifest or the defaults, ``url``, ``token_file``, ``ca_file`` and
    ``timeout_seconds``."""
    admission: AdmissionSection = AdmissionSection()


class WorkerSection(Section):
    """The process that runs the networks."""

    maximum_batch: int = Field(default=8, ge=1, le=256)
    lease_seconds: LeaseSeconds = 120.0
    """A silent worker's jobs go back to the queue after this long."""
    maximum_attempts: int = Field(default=3, ge=1)
    device: Literal["auto", "cpu"] = "auto"
    threads: int = Field(default=0, ge=0, le=1024)
    """CPU threads of one computation; 0 leaves it to the runtime: one for each core as a rule."""
