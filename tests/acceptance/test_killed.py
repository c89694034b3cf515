"""Any process killed at any arrow: every acknowledged instance is there, and one report each."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import pydicom
import pytest

from daemon.demo import SAMPLES
from dicom_io.association import Destination
from dicom_io.errors import AssociationFailed
from dicom_io.receiving.instances import STORED, StoreAnswer
from dicom_io.results.request import SRClassValues
from dicom_io.sending import PathOutcome, send_paths
from dicom_io.statuses import StoreStatusValues
from storage.states import JobState, ResultState, StudyState
from tests.acceptance.conftest import TinyPackages
from tests.acceptance.installation import ROLES, Archive, Installation, recording_archive
from tests.tiny_models import BRIGHT, write_package

CT = SAMPLES / "ct"
CT_FILES = 6
REPORTS = frozenset(map(str, SRClassValues))


def ct_study_uid() -> str:
    return str(pydicom.dcmread(next(CT.glob("*.dcm")), stop_before_pixels=True).StudyInstanceUID)


@pytest.fixture(scope="module")
def slow_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CT model that computes for seconds, so that there is time to kill its worker."""
    folder = tmp_path_factory.mktemp("slow")
    write_package(
        folder / "slow-1.0.0", name="slow", kind="volume", slices=16, rows=96, columns=96,
        labels=(BRIGHT,), where={"attribute": "Modality", "equals": "CT"}, busy_layers=18,
    )  # fmt: skip
    return folder


def slow_site(
    installation: Callable[..., Installation], slow_package: Path, archive: tuple
) -> Installation:
    site = installation([archive[1]], models=slow_package)
    # The model is warmed with every size of batch that there may be: once is slow enough.
    text = site.config_path.read_text()
    site.config_path.write_text(text.replace("[worker]\n", "[worker]\nmaximum_batch = 1\n"))
    return site


@pytest.fixture
def archive() -> Iterator[tuple]:
    with recording_archive() as pair:
        yield pair


@pytest.fixture
def site(
    installation: Callable[..., Installation], tiny_packages: TinyPackages, archive
) -> Installation:
    return installation([archive[1]], models=tiny_packages.folder)


def reports_in(sink) -> set[str]:
    return {
        str(pydicom.dcmread(BytesIO(data)).SOPInstanceUID)
        for sop_class_uid, data in sink.received
        if sop_class_uid in REPORTS
    }


def assert_exactly_one_report(site: Installation, archive) -> None:
    sink, _ = archive
    dossier = site.wait_until_over(ct_study_uid(), CT_FILES)
    assert dossier.study.state is StudyState.ROUTED
    assert [job.state for job in dossier.jobs] == [JobState.DONE]
    assert [result.state for result in dossier.results] == [ResultState.COMPOSED]
    assert len(reports_in(sink)) == 1
    assert len({data for cls, data in sink.received if cls in REPORTS}) == 1


def test_receiver_killed_again_and_again_loses_nothing_it_acknowledged(
    installation: Callable[..., Installation], unpacked
) -> None:
    site = installation()
    files = sorted(unpacked("ct-chest-60").rglob("*.dcm"))
    acknowledged: set[str] = set()
    for round_number in range(4):
        site.start("receiver")
        killer = threading.Timer(0.3 + 0.17 * round_number, lambda: site.kill("receiver"))
        outcomes: list[PathOutcome] = []
        peer = Destination("medimgd", "127.0.0.1", site.port, "MEDIMGD", "MODALITY")
        killer.start()
        try:
            for outcome in send_paths(peer, files):
                outcomes.append(outcome)
                if outcome.outcome.is_delivered:
                    acknowledged.add(outcome.outcome.sop_instance_uid)
        except AssociationFailed:
            pass
        killer.join()

    site.start("receiver")

    assert acknowledged, "nothing was acknowledged: the kills came too early to show anything"
    indexed = {
        instance.sop_instance_uid
        for series in site.dossier(study_uid_of(files[0])).series
        for instance in series.instances
    }
    assert acknowledged <= indexed
    for path in (site.config.spool_folder / "studies").rglob("*.dcm"):
        source = next(each for each in files if path.stem in uid_of(each))
        assert data_set_of(path) == data_set_of(source)
    assert list((site.config.spool_folder / "incoming").iterdir()) == []


def study_uid_of(path: Path) -> str:
    return str(pydicom.dcmread(path, stop_before_pixels=True).StudyInstanceUID)


def uid_of(path: Path) -> str:
    return str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID)


def data_set_of(path: Path) -> bytes:
    data = path.read_bytes()
    return data[144 + int.from_bytes(data[140:144], "little") :]


def test_scheduler_killed_before_completion(site: Installation, archive) -> None:
    site.start(*ROLES)
    site.send(CT)
    site.kill("scheduler")

    site.start("scheduler")

    assert_exactly_one_report(site, archive)


def test_preparer_killed_while_it_prepares(site: Installation, archive) -> None:
    site.start(*ROLES)
    site.send(CT)
    site.wait(lambda: leased_study(site), "the study to be claimed")
    site.kill("preparer")

    site.start("preparer")

    assert_exactly_one_report(site, archive)


def leased_study(site: Installation) -> bool:
    dossier = site.dossier(ct_study_uid())
    # Late is no failure of the test: the kill then falls behind the preparation.
    return bool(dossier and (dossier.study.lease_owner or dossier.jobs))


def test_worker_killed_while_it_computes_then_infers_again_and_reports_once(
    installation: Callable[..., Installation], slow_package: Path, archive
) -> None:
    site = slow_site(installation, slow_package, archive)
    site.start(*ROLES)
    site.send(CT)
    site.wait(lambda: job_states(site) == [JobState.RUNNING], "the job to run")
    site.kill("worker")

    site.start("worker")

    assert_exactly_one_report(site, archive)
    (job,) = site.dossier(ct_study_uid()).jobs
    assert job.crashes == 1


def test_study_that_kills_its_worker_twice_is_dead_lettered_and_named(
    installation: Callable[..., Installation], slow_package: Path, archive
) -> None:
    site = slow_site(installation, slow_package, archive)
    site.start(*ROLES)
    site.send(CT)
    for crashes in range(2):
        site.wait(lambda crashes=crashes: runs_after(site, crashes), "the job to run")
        site.kill("worker")
        # Not waited for: it takes the job up as soon as it is warm.
        site.launch("worker")

    site.wait(lambda: job_states(site) == [JobState.FAILED], "the job to be dead-lettered")

    shown = site.run("status", check=3).stdout
    assert ct_study_uid() in shown
    assert "2 workers died" in shown


def runs_after(site: Installation, crashes: int) -> bool:
    """True when a worker has the job in hand that was lost so many times before."""
    dossier = site.dossier(ct_study_uid())
    jobs = dossier.jobs if dossier else ()
    return [(job.state, job.crashes) for job in jobs] == [(JobState.RUNNING, crashes)]


def job_states(site: Installation) -> list[JobState]:
    dossier = site.dossier(ct_study_uid())
    return [job.state for job in dossier.jobs] if dossier else []


def test_courier_killed_while_it_delivers(site: Installation, archive) -> None:
    sink, _ = archive
    sink.delay_seconds = 1.5
    site.start(*ROLES)
    site.send(CT)
    site.wait(lambda: site.dossier(ct_study_uid()) and site.dossier(ct_study_uid()).documents,
              "the result to be composed")  # fmt: skip
    time.sleep(0.3)
    site.kill("courier")
    sink.delay_seconds = 0.0

    site.start("courier")

    assert_exactly_one_report(site, archive)


def test_archive_away_all_the_time_gets_the_report_when_it_returns_and_inference_ran_once(
    installation: Callable[..., Installation], tiny_packages: TinyPackages, free_port: int
) -> None:
    site = installation([Archive("archive", free_port)], models=tiny_packages.folder)
    site.start(*ROLES)
    site.send(CT)
    site.wait(lambda: "does not take results now" in site.log(), "the outage to be noticed")
    (before,) = site.dossier(ct_study_uid()).results
    assert "destination archive does not take results" in site.run("status", check=3).stdout

    with recording_archive(free_port) as pair:
        assert_exactly_one_report(site, pair)

    (after,) = site.dossier(ct_study_uid()).results
    assert after == before
    assert site.log().count("analysed 1 input") == 1


def test_archive_short_of_space_is_asked_again(site: Installation, archive) -> None:
    sink, _ = archive
    sink.answer = StoreAnswer(StoreStatusValues.OUT_OF_RESOURCES, "disk full")
    site.start(*ROLES)
    site.send(CT)

    def refused_verbatim() -> bool:
        dossier = site.dossier(ct_study_uid())
        # The report waits with its picture, and is not tried.
        return bool(dossier) and {
            d.role: (d.last_status, d.last_comment) for d in dossier.deliveries
        } == {"SC": (0xA700, "disk full"), "SR": (None, "")}

    site.wait(refused_verbatim, "the archive's own words to be kept")
    sink.answer = STORED

    assert_exactly_one_report(site, archive)


def test_supervisor_restarts_what_dies_and_stops_in_order(
    installation: Callable[..., Installation], tiny_packages: TinyPackages, archive
) -> None:
    site = installation([archive[1]], models=tiny_packages.folder)
    site.start()
    for role in ("receiver", "preparer", "worker", "courier"):
        first = site.child_pid(role)
        os.kill(first, signal.SIGKILL)
        site.wait(lambda role=role, first=first: site.child_pid(role) != first, f"a new {role}")
    site.send(CT)

    assert_exactly_one_report(site, archive)

    assert site.stop() == {"all": 0}
    assert "receiver stopped" in site.log()
