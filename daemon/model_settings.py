"""The settings of the networks: which packages may serve, how, and on what.

Owns the tables ``[models]``, ``[models.admission]``, ``[[models.remote]]`` and ``[worker]`` with
defaults and reasons. Reads no package.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

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
    fill_seconds: float = Field(default=0.02, ge=0, le=5, allow_inf_nan=False)
    """How long a batch that is not full waits for more while analyses follow each other closely;
    an urgent one, or one that comes alone, never waits."""
    lease_seconds: LeaseSeconds = 120.0
    """A silent worker's jobs go back to the queue after this long."""
    maximum_attempts: int = Field(default=3, ge=1)
    deadline_seconds: Seconds = 300.0
    """A batch that computes for longer hangs: its worker is ended and its jobs are tried again, one
    by one, up to ``maximum_attempts``."""
    long_deadline_seconds: Seconds = 1800.0
    """The same for loading a model, for its first batch of a shape, and on a CPU that stands in for
    a GPU."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """``auto`` takes a GPU when there is one, ``cpu`` never does; ``gpu`` wants one. Where a GPU is
    there or wanted and cannot be used, the CPU stands in for it, and that is said."""
    threads: int = Field(default=0, ge=0, le=1024)
    """CPU cores that the runtimes compute on; 0 takes all."""
    memory_megabytes: int = Field(default=0, ge=0)
    """What loaded models may occupy together, as measured; the one not used for longest is unloaded
    for another. 0 sets no limit."""
    recycle_batches: int = Field(default=0, ge=0)
    """After this many batches the worker starts anew, in order; 0: never."""
    recycle_growth_megabytes: int = Field(default=2048, ge=0)
    """The same once its memory has grown by so much since its models were loaded; 0: never."""

    @model_validator(mode="after")
    def _long_deadline_is_longer(self) -> WorkerSection:
        if self.long_deadline_seconds < self.deadline_seconds:
            raise ValueError(
                "worker.long_deadline_seconds must not be shorter than worker.deadline_seconds: "
                f"received {self.long_deadline_seconds:g} and {self.deadline_seconds:g}"
            )
        return self
