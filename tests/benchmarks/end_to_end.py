"""A study in, its report back: studies per minute, and the latency of one study.

Latency runs from the last C-STORE Success to the moment the archive has the report. The
expectation is stated before measuring: an idle daemon finds work by polling, so a study waits its
quiet time and on average half of each period, plus the time to make its tensor.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from daemon import courier, preparer, read_ahead, scheduler
from dicom_io.recipe import TensorRecipe
from dicom_io.tensors import build_tensor
from tests.benchmarks.busy_site import STAGES, BusySite, busy_site
from tests.benchmarks.figures import Table, median, percentile, rounds_of
from tests.benchmarks.material import FILM, StudyFiles, Workshop, fresh_studies
from tests.benchmarks.tensor_time import FILM_RECIPE, VOLUME_RECIPE
from tests.tiny_models import BRIGHT, write_package

PERIODS = (
    scheduler.COMPLETION_EVERY_SECONDS,
    preparer.IDLE_SECONDS,
    read_ahead.IDLE_SECONDS,
    courier.IDLE_SECONDS,
)


@dataclass(frozen=True)
class Case:
    """One kind of study and the model that reads it."""

    name: str
    source: Sequence[Path]
    models: Path | None
    """None: the packages shipped with medimgd."""
    recipe: TensorRecipe
    single: int
    """Studies sent one at a time, each after the last one's report."""
    burst: int
    """Studies sent back to back."""


@dataclass(frozen=True)
class Measured:
    """Everything about one case, in seconds."""

    quiet: float
    tensor: float
    latencies: list[float]
    stages: list[dict[str, float]]
    burst_latencies: list[float]
    burst: float
    sending: float
    processor: dict[str, float]
    """Per study of the burst, by role."""


def measure(workshop: Workshop) -> Iterator[Table]:
    """Yield latency and throughput of every case."""
    cases = _cases(workshop)
    measured = {case.name: _measure_case(workshop, case) for case in cases}
    yield _latency_table(cases, measured)
    yield _stage_table(cases, measured)
    yield _throughput_table(cases, measured)
    yield _processor_table(cases, measured)


def _cases(workshop: Workshop) -> list[Case]:
    films, volumes = workshop.room("film-models"), workshop.room("ct-models")
    write_package(
        films / "film-tiny-1.0.0", name="film-tiny", rows=160, columns=160,
        intensity={"kind": "percentile", "low": 0.5, "high": 99.5}, labels=(BRIGHT,),
    )  # fmt: skip
    write_package(
        volumes / "ct-tiny-1.0.0", name="ct-tiny", kind="volume", slices=64, rows=128,
        columns=128, intensity={"kind": "window", "centre": 40, "width": 400}, labels=(BRIGHT,),
    )  # fmt: skip
    single, burst = workshop.rounds(12, 2), workshop.rounds(100, 5)
    return [
        Case("1 film, tiny model", [FILM], films, FILM_RECIPE, single, burst),
        Case("1 film, cxr-pneumonia", [FILM], None, FILM_RECIPE, single, burst),
        Case("60 CT slices, tiny model", workshop.ct_series, volumes, VOLUME_RECIPE,
             workshop.rounds(7), workshop.rounds(12, 2)),
    ]  # fmt: skip


def _measure_case(workshop: Workshop, case: Case) -> Measured:
    tensor = median(rounds_of(lambda: build_tensor(case.source, case.recipe), 5))
    files = workshop.room("studies")
    studies = list(fresh_studies(case.source, 1 + case.single + case.burst, files))
    warm_up, single, burst = studies[0], studies[1 : 1 + case.single], studies[1 + case.single :]
    with busy_site(
        workshop.room("site"), case.models, bundled=case.models is None, warm_up=warm_up
    ) as site:
        alone = [_one_alone(site, study) for study in single]
        site.clock.accepted.clear()
        used = site.processor_seconds()
        started = time.perf_counter()
        successes = {study.study_instance_uid: site.push(study) for study in burst}
        reports = site.wait_for_reports(len(burst))
        return Measured(
            quiet=site.installation.config.study.quiet_seconds,
            tensor=tensor,
            latencies=[sum(stages.values()) for stages in alone],
            stages=alone,
            burst_latencies=[reports[uid] - moment for uid, moment in successes.items()],
            burst=max(reports.values()) - started,
            sending=max(successes.values()) - started,
            processor={
                role: (total - used[role]) / len(burst)
                for role, total in site.processor_seconds().items()
            },
        )


def _one_alone(site: BusySite, study: StudyFiles) -> dict[str, float]:
    # Polling periods must be met at any phase, not always at the same one.
    time.sleep(random.uniform(0, max(PERIODS)))
    site.clock.accepted.clear()
    success = site.push(study)
    site.wait_for_reports(1)
    return site.stages(study, success)


def _latency_table(cases: Sequence[Case], measured: dict[str, Measured]) -> Table:
    table = Table(
        "Seconds from the last C-STORE Success to the report in the archive, one study at a time",
        ["study and model", "studies", "median", "slowest", "less quiet time", "expected",
         "expected less quiet"],
        notes=[
            (f"expected: quiet time, half of the periods {', '.join(map(str, PERIODS))} s at which "
            "scheduler, preparer, worker and courier look for work, and the tensor"),
            "sender and archive run on the same cores as medimgd",
        ],
    )  # fmt: skip
    for case in cases:
        one = measured[case.name]
        middle, waiting = median(one.latencies), sum(PERIODS) / 2 + one.tensor
        table.rows.append(
            [case.name, len(one.latencies), middle, max(one.latencies),
             middle - one.quiet, one.quiet + waiting, waiting]
        )  # fmt: skip
        table.samples[case.name] = one.latencies
    return table


def _stage_table(cases: Sequence[Case], measured: dict[str, Measured]) -> Table:
    table = Table(
        "Where that latency goes: median seconds until the study is ...",
        ["study and model", *STAGES],
        notes=["complete includes the quiet time; stamps are those in the database"],
    )
    for case in cases:
        each = measured[case.name].stages
        table.rows.append([case.name, *(median([one[stage] for one in each]) for stage in STAGES)])
    return table


def _throughput_table(cases: Sequence[Case], measured: dict[str, Measured]) -> Table:
    table = Table(
        "Studies sent back to back by one modality, one association each",
        ["study and model", "studies", "per minute", "sent per minute", "latency median", "95th",
         "less quiet time"],
        notes=[
            "per minute: from the first C-STORE to the last report, quiet time included",
            ("sent per minute: the rate at which the modality got its Successes; where both are "
            "near, medimgd keeps up and reception with this sender is the limit"),
        ],
    )  # fmt: skip
    for case in cases:
        one = measured[case.name]
        middle = median(one.burst_latencies)
        table.rows.append(
            [case.name, case.burst, 60 * case.burst / one.burst, 60 * case.burst / one.sending,
             middle, percentile(one.burst_latencies, 95), middle - one.quiet]
        )  # fmt: skip
        table.samples[case.name] = one.burst_latencies
    return table


def _processor_table(cases: Sequence[Case], measured: dict[str, Measured]) -> Table:
    roles = list(measured[cases[0].name].processor)
    table = Table(
        "Processor milliseconds per study, by process, while those studies went through",
        ["study and model", *roles],
        notes=["the largest bounds the studies per minute: a process of Python uses one core"],
    )
    for case in cases:
        used = measured[case.name].processor
        table.rows.append([case.name, *(1000 * used[role] for role in roles)])
    return table
