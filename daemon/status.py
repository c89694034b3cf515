"""What ``medimgd status`` says: the state of everything in one screen, and what needs a person.

Owns the judgement of what needs attention. Reads the database file directly, whether or not a
daemon runs, and imports nothing slow.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from daemon.config import Config
from dicom_io.wording import number_of
from storage.errors import DatabaseMissing
from storage.overview import Overview, ProcessOverview, read_overview
from storage.states import JobState, ResultState, StudyState

SILENT_SECONDS = 15.0
"""A process that has not beaten for this long is dead or stopped."""
RENEWING = "renewing"
"""The state of a slot whose process ended in order and whose successor starts."""
MEBIBYTE = 1024 * 1024
ALL_ROLES = ("receiver", "scheduler", "preparer", "worker", "courier", "web")


@dataclass(frozen=True, slots=True)
class DiskStatus:
    """Room on the spool's disk."""

    free_mib: int
    total_mib: int
    minimum_free_mib: int
    """Below this reception answers A700."""

    @property
    def is_short(self) -> bool:
        """True when instances are turned away for want of room."""
        return self.free_mib < self.minimum_free_mib


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """One process and whether it lives."""

    slot: str
    role: str
    pid: int
    host: str
    alive: bool
    state: str
    heartbeat_age_seconds: float
    detail: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class DestinationStatus:
    """One archive and what it said last."""

    name: str
    address: str
    pending: int
    last_answer: str
    last_success_at: datetime | None
    consecutive_failures: int
    breaker_until: datetime | None


@dataclass(frozen=True, slots=True)
class Status:
    """The whole screen."""

    at: datetime
    data_folder: str
    running: bool
    """True when at least one process beats."""
    processes: tuple[ProcessStatus, ...]
    overview: Overview | None
    """None when nothing was ever received here: there is no database yet."""
    destinations: tuple[DestinationStatus, ...]
    disk: DiskStatus
    device: str
    models: tuple[str, ...]
    open_associations: Mapping[str, int]
    """Associations under way, by the slot of each receiver that lives."""
    attention: tuple[str, ...]
    """What needs a person, one sentence each; empty when all is well."""


def read_status(config: Config, now: datetime) -> Status:
    """Gather the status of an installation; works while the daemon is down."""
    try:
        overview = read_overview(config.database_path, now)
    except DatabaseMissing:
        overview = None
    processes = tuple(_process(each, config.site.node_id) for each in _of(overview))
    destinations = _destinations(config, overview)
    disk = _disk(config)
    return Status(
        at=now,
        data_folder=str(config.site.data_folder.resolve()),
        running=any(process.alive for process in processes),
        processes=processes,
        overview=overview,
        destinations=destinations,
        disk=disk,
        device=_worker_detail(processes, "device") or "",
        models=tuple(_worker_detail(processes, "models") or ()),
        open_associations=_open_associations(overview, processes),
        attention=tuple(_attention(config, overview, processes, destinations, disk)),
    )


def _of(overview: Overview | None) -> tuple[ProcessOverview, ...]:
    return () if overview is None else overview.processes


def _process(known: ProcessOverview, this_host: str) -> ProcessStatus:
    fresh = known.heartbeat_age_seconds < SILENT_SECONDS
    here = known.host == this_host
    return ProcessStatus(
        known.slot, known.role, known.pid, known.host,
        alive=fresh and (not here or _exists(known.pid) or known.state == RENEWING),
        state=known.state,
        heartbeat_age_seconds=known.heartbeat_age_seconds,
        detail=known.detail,
    )  # fmt: skip


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _destinations(config: Config, overview: Overview | None) -> tuple[DestinationStatus, ...]:
    known = {each.name: each for each in overview.destinations} if overview else {}
    addresses = {
        section.name: f"{section.ae_title}@{section.host}:{section.port}"
        for section in config.destinations
    }
    rows = []
    for name in sorted({*known, *addresses}):
        state = known.get(name)
        rows.append(
            DestinationStatus(
                name,
                addresses.get(name, "no longer configured"),
                state.pending if state else 0,
                state.last_answer if state else "",
                state.last_success_at if state else None,
                state.consecutive_failures if state else 0,
                state.breaker_until if state else None,
            )
        )
    return tuple(rows)


def _disk(config: Config) -> DiskStatus:
    folder = config.site.data_folder.resolve()
    while not folder.exists():
        folder = folder.parent
    usage = shutil.disk_usage(folder)
    return DiskStatus(
        usage.free // MEBIBYTE, usage.total // MEBIBYTE, config.receiver.minimum_free_mib
    )


def _open_associations(
    overview: Overview | None, processes: tuple[ProcessStatus, ...]
) -> Mapping[str, int]:
    """Leave out what a dead receiver left open: its successor will close that."""
    known = {} if overview is None else overview.open_associations
    receivers = [process for process in processes if process.role == "receiver" and process.alive]
    return {process.slot: known.get(process.slot, 0) for process in receivers}


def _worker_detail(processes: tuple[ProcessStatus, ...], name: str) -> Any:
    details = [p.detail.get(name) for p in processes if p.role == "worker" and p.alive]
    return next((detail for detail in details if detail), None)


def _attention(
    config: Config,
    overview: Overview | None,
    processes: tuple[ProcessStatus, ...],
    destinations: tuple[DestinationStatus, ...],
    disk: DiskStatus,
) -> Iterator[str]:
    yield from _missing_roles(config, processes)
    congested = {p.detail.get("congested", "") for p in processes if p.alive} - {""}
    for reason in () if disk.is_short else sorted(congested):
        yield f"new associations are asked to come back later: {reason}"
    if disk.is_short:
        yield (
            f"disk: {disk.free_mib} MiB free, {disk.minimum_free_mib} needed: "
            "senders are told to come back later; free space or shorten retention"
        )
    for process in processes:
        yield from _model_trouble(process.detail)
    configured = {section.name for section in config.destinations}
    for destination in destinations:
        # One that was taken out while it was away has nothing to say any more.
        is_wanted = destination.name in configured or destination.pending
        if destination.consecutive_failures and is_wanted:
            yield (
                f"destination {destination.name} does not take results "
                f"({number_of(destination.consecutive_failures, 'failure')} in a row, "
                f"{destination.pending} waiting): {destination.last_answer}"
            )
    if overview is not None:
        if overview.results_without_delivery and not config.destinations:
            yield (
                number_of(
                    overview.results_without_delivery,
                    "result has no destination",
                    "results have no destination",
                )
                + ": add a [[destinations]] block, and what has none is sent by itself"
            )
        yield from _stuck_work(overview)


def _model_trouble(detail: Mapping[str, Any]) -> Iterator[str]:
    for model, fault in dict(detail.get("out_of_order", {})).items():
        yield f"model {model} is out of order: {fault}"
    for model, fault in dict(detail.get("on_cpu_instead", {})).items():
        yield f"model {model} is computed on the CPU in the GPU's stead, and slower: {fault}"
    for model in detail.get("unserved", ()):
        yield (
            f"analyses wait for {model}, which does not serve ('medimgd models list'): "
            "they go on when it does; 'medimgd retry STUDY --again' asks the models that do"
        )


def _missing_roles(config: Config, processes: tuple[ProcessStatus, ...]) -> Iterator[str]:
    wanted = [role for role in ALL_ROLES if role != "web" or config.web.enabled]
    alive = {process.role for process in processes if process.alive}
    missing = [role for role in wanted if role not in alive]
    if missing == wanted:
        yield "medimgd is not running: nothing is received or analysed; start it with 'medimgd run'"
    else:
        missing += _missing_slots(processes, missing)
        if missing:
            yield f"not running: {', '.join(missing)}; see the log for the reason"


def _missing_slots(processes: tuple[ProcessStatus, ...], roles: list[str]) -> list[str]:
    """Return the slots that a living parent watches and that do not beat, but for these roles'."""
    alive = [process for process in processes if process.alive]
    watched = {slot for process in alive for slot in process.detail.get("slots", ())}
    missing = sorted(watched - {process.slot for process in alive})
    return [slot for slot in missing if slot.rpartition("-")[0] not in roles]


def _stuck_work(overview: Overview) -> Iterator[str]:
    held = overview.studies.get(StudyState.HELD, 0)
    failed = overview.jobs.get(JobState.FAILED, 0)
    unwritten = overview.results.get(ResultState.UNCOMPOSABLE, 0)
    undelivered = overview.undelivered
    if held:
        said = number_of(held, "study is held", "studies are held")
        yield f"{said}: see 'medimgd retry --state held --dry-run'"
    if failed:
        said = number_of(failed, "analysis", "analyses")
        yield f"{said} failed for good: see 'medimgd retry --state failed --dry-run'"
    if unwritten:
        yield (
            f"{number_of(unwritten, 'result')} could not be written, which no archive gets: "
            "see 'medimgd retry --state failed --dry-run'"
        )
    if undelivered:
        yield (
            f"{number_of(undelivered, 'result was', 'results were')} rejected or given up, or "
            "accepted and not found: 'medimgd retry --state undelivered' sends again"
        )
    for commitment in overview.unreported:
        yield (
            f"{commitment.calling_ae_title!r} ({commitment.address}) could not be told about its "
            f"request for storage commitment and keeps its images: {commitment.last_answer}"
        )
    others = overview.stuck_count - held - failed - unwritten - undelivered
    if others > 0:
        said = number_of(others, "item has not moved", "items have not moved")
        yield f"{said} for a quarter of an hour"
    if overview.studies_with_conflicts:
        yield (
            f"{number_of(overview.studies_with_conflicts, 'study holds', 'studies hold')} other "
            "content under a known SOP Instance UID: it was kept apart; compare before trusting "
            "either"
        )
