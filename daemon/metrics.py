"""Metrics for Prometheus, gathered from the database at each scrape.

Owns the names of the metrics. Labels hold states, destinations, roles, slots and models; nothing
that was received ever becomes a label or a value, so no patient can be recognised.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from daemon import __version__
from daemon.config import Config
from daemon.role import now_utc
from daemon.status import MEBIBYTE, ProcessStatus, Status, read_status
from storage.errors import StorageError
from storage.overview import Overview

METRICS: Mapping[str, str] = {
    "medimgd_build_info": "Version of medimgd; always 1.",
    "medimgd_database_readable": "1 when the database exists and can be read.",
    "medimgd_disk_free_bytes": "Room left on the disk of the data folder.",
    "medimgd_studies": "Studies by state.",
    "medimgd_jobs": "Analyses by state.",
    "medimgd_results": "Results by state.",
    "medimgd_deliveries": "Deliveries of documents by state.",
    "medimgd_commitments": "Requests for storage commitment by the state of their report.",
    "medimgd_oldest_waiting_seconds": "Age of the study that waits longest for an answer.",
    "medimgd_stuck_items": "Things that need a person or have not moved for too long.",
    "medimgd_conflicting_studies": "Studies with other content under a known SOP Instance UID.",
    "medimgd_refused_last_day": "Instances and associations refused at the door in 24 hours.",
    "medimgd_last_instance_timestamp_seconds": "When the last instance was received.",
    "medimgd_process_alive": "1 when the process beats, by role and slot.",
    "medimgd_process_heartbeat_age_seconds": "Time since the last heartbeat, by role and slot.",
    "medimgd_open_associations": "Associations under way, by slot of the receiver.",
    "medimgd_receiver_congested": "1 while a receiver takes no new associations, by slot.",
    "medimgd_worker_batches": "Batches computed, by slot; goes on when a worker starts anew.",
    "medimgd_worker_images": "Inputs computed, by slot.",
    "medimgd_worker_batch_fill": "How full the batches were, 0 to 1, by slot.",
    "medimgd_worker_waited_seconds": "Time in which the device had nothing to do, by slot.",
    "medimgd_worker_computed_seconds": "Time in which the device worked, by slot.",
    "medimgd_worker_read_seconds": "Time spent on claiming and reading tensors, by slot.",
    "medimgd_worker_recorded_seconds": "Time spent on recording findings, by slot.",
    "medimgd_worker_utilisation": "Share of the last minute in which the device worked, by slot.",
    "medimgd_worker_recycled": "How often the worker started anew in order, by slot.",
    "medimgd_worker_hung": "How often a worker was ended because a batch did not end, by slot.",
    "medimgd_worker_resident_bytes": "Memory of the worker's process, by slot.",
    "medimgd_worker_model_bytes": "What a loaded model occupies, as measured, by slot and model.",
    "medimgd_worker_cpu_instead": "1 for a model that the CPU computes in a GPU's stead.",
    "medimgd_worker_queue_age_seconds": "Age of the oldest analysis that waits, by slot.",
    "medimgd_destination_pending": "Documents that wait for a destination.",
    "medimgd_destination_failures": "Failures of a destination since its last success.",
    "medimgd_destination_last_success_timestamp_seconds": "When a destination last took a result.",
    "medimgd_attention_items": "Sentences that 'medimgd status' would print for a person.",
}
"""Every metric with its meaning."""


class StatusCollector(Collector):
    """Reads the status of an installation when it is scraped.

    Parameters
    ----------
    config : Config
        Where the database lies.
    """

    def __init__(self, config: Config) -> None:
        self._config = config

    def describe(self) -> Iterable[Metric]:
        """Return nothing, so that registering does not read the database."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield every metric; without a readable database the few that need none."""
        yield _gauge("medimgd_build_info", ("version",), [((__version__,), 1)])
        now = now_utc()
        try:
            status = read_status(self._config, now)
        except StorageError:
            yield _gauge("medimgd_database_readable", (), [((), 0)])
            return
        yield _gauge("medimgd_database_readable", (), [((), status.overview is not None)])
        yield _gauge("medimgd_disk_free_bytes", (), [((), status.disk.free_mib * MEBIBYTE)])
        yield _gauge("medimgd_attention_items", (), [((), len(status.attention))])
        yield from _of_processes(status)
        yield from _of_workers(status)
        yield from _of_destinations(status)
        if status.overview is not None:
            yield from _of_overview(status.overview, now)


def metrics_text(config: Config) -> bytes:
    """Return all metrics in the text format of Prometheus."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(StatusCollector(config))
    return generate_latest(registry)


_Sample = tuple[tuple[str, ...], float]


def _gauge(name: str, labels: tuple[str, ...], samples: Iterable[_Sample]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, METRICS[name], labels=labels)
    for values, number in samples:
        family.add_metric(values, float(number))
    return family


def _of_overview(overview: Overview, now: datetime) -> Iterator[Metric]:
    yield _by_state("medimgd_studies", overview.studies)
    yield _by_state("medimgd_jobs", overview.jobs)
    yield _by_state("medimgd_results", overview.results)
    yield _by_state("medimgd_deliveries", overview.deliveries)
    yield _by_state("medimgd_commitments", overview.commitments)
    oldest = overview.oldest_waiting
    age = 0.0 if oldest is None else (now - oldest.since).total_seconds()
    yield _gauge("medimgd_oldest_waiting_seconds", (), [((), age)])
    yield _gauge("medimgd_stuck_items", (), [((), overview.stuck_count)])
    yield _gauge("medimgd_conflicting_studies", (), [((), overview.studies_with_conflicts)])
    yield _gauge("medimgd_refused_last_day", (), [((), overview.refused_last_day)])
    if overview.last_instance_at is not None:
        moment = overview.last_instance_at.timestamp()
        yield _gauge("medimgd_last_instance_timestamp_seconds", (), [((), moment)])


StateT = TypeVar("StateT", bound=StrEnum)


def _by_state(name: str, counts: Mapping[StateT, int]) -> Metric:
    return _gauge(name, ("state",), [((str(state),), count) for state, count in counts.items()])


def _of_processes(status: Status) -> Iterator[Metric]:
    labels = ("role", "slot")
    of = [((process.role, process.slot), process) for process in status.processes]
    yield _gauge("medimgd_process_alive", labels, [(key, each.alive) for key, each in of])
    ages = [(key, each.heartbeat_age_seconds) for key, each in of]
    yield _gauge("medimgd_process_heartbeat_age_seconds", labels, ages)
    opened = [((slot,), count) for slot, count in status.open_associations.items()]
    yield _gauge("medimgd_open_associations", ("slot",), opened)
    receivers = [each for each in status.processes if each.role == "receiver" and each.alive]
    congested = [((each.slot,), bool(each.detail.get("congested"))) for each in receivers]
    yield _gauge("medimgd_receiver_congested", ("slot",), congested)


_FIGURES = (
    "batches", "images", "waited_seconds", "computed_seconds", "read_seconds", "recorded_seconds",
    "recycled", "hung",
)  # fmt: skip


def _of_workers(status: Status) -> Iterator[Metric]:
    workers = [each for each in status.processes if each.role == "worker" and each.alive]
    for name in _FIGURES:
        counted = [((each.slot,), _figure(each, name)) for each in workers]
        yield _gauge(f"medimgd_worker_{name}", ("slot",), counted)
    fills = [((each.slot,), _figure(each, "fill")) for each in workers]
    yield _gauge("medimgd_worker_batch_fill", ("slot",), fills)
    for name in ("utilisation", "resident_bytes", "queue_age_seconds"):
        found = [((each.slot,), float(each.detail.get(name, 0))) for each in workers]
        yield _gauge(f"medimgd_worker_{name}", ("slot",), found)
    occupied = [
        ((each.slot, model), mib * MEBIBYTE)
        for each in workers
        for model, mib in _of_models(each, "loaded_mib").items()
    ]
    yield _gauge("medimgd_worker_model_bytes", ("slot", "model"), occupied)
    instead = [
        ((each.slot, model), 1) for each in workers for model in _of_models(each, "on_cpu_instead")
    ]
    yield _gauge("medimgd_worker_cpu_instead", ("slot", "model"), instead)


def _of_models(process: ProcessStatus, name: str) -> Mapping[str, Any]:
    """Return what a worker says of each model that serves."""
    # A shadow is heard by nobody; what it occupies is in the process's memory.
    shadows = process.detail.get("shadows", ())
    said = dict(process.detail.get(name, {}))
    return {model: each for model, each in said.items() if model not in shadows}


def _figure(process: ProcessStatus, name: str) -> float:
    return float(dict(process.detail.get("figures", {})).get(name, 0))


def _of_destinations(status: Status) -> Iterator[Metric]:
    label = ("destination",)
    of = [((destination.name,), destination) for destination in status.destinations]
    yield _gauge("medimgd_destination_pending", label, [(k, each.pending) for k, each in of])
    failures = [(key, each.consecutive_failures) for key, each in of]
    yield _gauge("medimgd_destination_failures", label, failures)
    yield _gauge(
        "medimgd_destination_last_success_timestamp_seconds",
        label,
        [(k, each.last_success_at.timestamp()) for k, each in of if each.last_success_at],
    )
