"""Regions from the worker to every object that is sent, and computed again; without TensorFlow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pydicom
import pytest
from pynetdicom import AE, _config, evt

from daemon import composing
from daemon.cli.studies import explain, show
from daemon.composing import Composer
from daemon.config import DestinationSection, WebSection
from daemon.courier import Courier
from daemon.explaining import with_explanations
from daemon.replaying import compared_regions, replay
from daemon.role import now_utc
from daemon.web.serving import WebServer
from daemon.worklist.flags import FindingOrder
from daemon.worklist.study_page import study_page
from dicom_io.errors import CannotCompose
from dicom_io.results.lettering import CELL_SIDE, ROW_HEIGHT, ROW_WIDTH
from dicom_io.results.request import (
    SECONDARY_CAPTURE_CLASS_UID,
    DocumentRole,
    EncodedDocument,
    SRClassValues,
)
from dicom_io.vocabulary import MANUFACTURER, Code, Detection, PresenceValues, Region
from model.errors import CannotExplain, CannotLocate
from model.findings import judge
from model.package import load_package
from model.regions import undetected
from storage.backoff import DeliveryPolicy
from storage.claims import claim_batch
from storage.destinations import DeliveryOutcome, destination_state, learn_sr_sop_class
from storage.documents import is_own_sop_instance_uid
from storage.dossier import read_dossier
from storage.endings import Analysed
from storage.installation import read_installation
from storage.outbox import due_deliveries, record_outcomes, replace_document
from storage.results import ResultRecord, store_documents
from storage.retention import purge_finished_studies
from storage.retry import retry_study
from storage.states import DeliveryState
from tests.integration.test_daemon_explaining import Seer, Site, opened_site
from tests.results_judges import judge_together
from tests.tiny_models import BRIGHT

REGIONS = {"regions": {"threshold": 0.5, "name": "Spot"}}
STUDY = "2.25.1001"
CAPTURE = SECONDARY_CAPTURE_CLASS_UID
COMPREHENSIVE = SRClassValues.COMPREHENSIVE


@dataclass
class Marker(Seer):
    """Marks its brightest eighth by eighth; of volumes a place on the last slices but one."""

    lost: bool = False
    moved: float = 0.0

    def locate(self, batch: np.ndarray) -> np.ndarray:
        if self.lost:
            raise CannotLocate("the map is lost")
        if batch.ndim == 5:
            cells = np.full((len(batch), batch.shape[1], 8, 8), -4.0, np.float32)
            cells[:, -4:-2, 2, 5] = 4.0
            cells[:, 2, 6, 6] = 1.0
            return cells[..., None]
        edge = batch.shape[1] // 8
        means = batch.reshape(len(batch), 8, edge, 8, edge).mean((2, 4))
        return (8 * means - 4 - self.moved)[..., None].astype(np.float32)


class MarkedSite(Site):
    """A site whose model marks places."""

    def maker(self, **how: Any) -> Any:
        def make(package: Any) -> Marker:
            self.made.append(Marker(package, **{"fault": CannotExplain("none here"), **how}))
            return self.made[-1]

        return make

    def composer(self) -> Composer:
        installation = read_installation(self.database)
        return Composer(self.config, self.database, self.spool, installation)

    def documents(
        self, result: ResultRecord, sr_class: SRClassValues = SRClassValues.COMPREHENSIVE_3D
    ) -> dict[str, EncodedDocument]:
        documents = self.composer().compose(result, sr_class)
        assert documents == self.composer().compose(result, sr_class)
        return {str(each.role): each for each in documents}


def sites(tmp_path: Path, **package: Any) -> Iterator[MarkedSite]:
    for plain in opened_site(tmp_path, changes=REGIONS, **package):
        yield MarkedSite(plain.config, plain.database, plain.spool, plain.folder)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[MarkedSite]:
    yield from sites(tmp_path)


@pytest.fixture
def undetermined_site(tmp_path: Path) -> Iterator[MarkedSite]:
    yield from sites(tmp_path, labels=(replace(BRIGHT, undetermined=(0.3, 0.95)),))


@pytest.fixture
def volume_site(tmp_path: Path) -> Iterator[MarkedSite]:
    yield from sites(tmp_path, kind="volume", slices=60)


def read(document: EncodedDocument) -> pydicom.Dataset:
    return pydicom.dcmread(BytesIO(document.data))


def boxes_in(item: pydicom.Dataset) -> list[tuple[str, list[float]]]:
    """Return the images and points of all coordinates below an item."""
    found = []
    for child in item.get("ContentSequence", ()):
        if child.ValueType == "SCOORD":
            source = child.ContentSequence[0].ReferencedSOPSequence[0]
            found.append((str(source.ReferencedSOPInstanceUID), list(child.GraphicData)))
        found += boxes_in(child)
    return found


def evidence_of(ds: pydicom.Dataset) -> set[str]:
    return {
        str(instance.ReferencedSOPInstanceUID)
        for study in ds.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence for instance in series.ReferencedSOPSequence
    }  # fmt: skip


def test_a_film_gets_a_box_around_its_bright_quarter(site: MarkedSite) -> None:
    site.receive(corner=(0, 1))

    documents = site.documents(site.analyse())

    assert list(documents) == ["SC", "SR-ROI", "SR"]
    ((uid, points),) = boxes_in(read(documents["SR-ROI"]))
    assert uid == f"{STUDY}.9"
    # The right upper quarter of 64 pixels; between cells of 8 the box ends half way.
    assert points == pytest.approx([32, 0, 64, 0, 64, 32, 32, 32, 32, 0], abs=4.1)
    assert boxes_in(read(documents["SR"])) == []
    regions = documents["SR-ROI"].sop_instance_uid
    assert {regions, documents["SC"].sop_instance_uid} < evidence_of(read(documents["SR"]))


def test_the_card_shows_the_boxes_and_says_whose_they_are(site: MarkedSite) -> None:
    site.receive(corner=(0, 1))
    result = site.analyse()

    card = read(site.documents(result)["SC"])

    pixels = card.pixel_array.astype(int)
    assert pixels.shape[1] == ROW_WIDTH + 360
    assert pixels.shape[0] >= ROW_HEIGHT
    plain, marked = pixels[:CELL_SIDE, :CELL_SIDE], pixels[:CELL_SIDE, CELL_SIDE:ROW_WIDTH]
    coloured = np.ptp(marked, axis=2) > 60
    assert not (np.ptp(plain, axis=2) > 60).any()
    rows, columns = np.flatnonzero(coloured.any(axis=1)), np.flatnonzero(coloured.any(axis=0))
    # The box of the upper right quarter, drawn outside of it.
    assert rows.max() == pytest.approx(CELL_SIDE / 2, abs=40)
    assert columns.min() == pytest.approx(CELL_SIDE / 2, abs=40)
    inside = coloured[30 : CELL_SIDE // 2 - 40, CELL_SIDE // 2 + 40 : -60]
    assert not inside.any()
    assert "boxes show regions of the model's detection map" in card.DerivationDescription


def test_a_film_that_is_shown_with_boxes_and_a_map_has_both(site: MarkedSite) -> None:
    site.receive()

    card = read(site.documents(site.analyse(fault=None))["SC"])

    assert card.Rows >= 2 * ROW_HEIGHT


def test_no_region_is_no_report_of_regions_and_is_said(site: MarkedSite) -> None:
    site.receive()
    result = site.analyse(lost=True)

    documents = site.documents(result)

    assert list(documents) == ["SC", "SR"]
    assert result.detection is not None
    assert result.detection.note == "no regions can be shown: the map is lost"
    assert b"No regions can be shown: the map is lost." in documents["SR"].data


def test_a_negative_film_is_not_asked_for_places(site: MarkedSite) -> None:
    site.receive()

    result = site.analyse(answer=0.1, lost=True)

    assert result.detection is None
    assert list(site.documents(result)) == ["SC", "SR"]


def test_an_undetermined_film_has_its_places_reported_and_computed_again(
    undetermined_site: MarkedSite,
) -> None:
    undetermined_site.receive(corner=(0, 1))

    result = undetermined_site.analyse()

    assert [each.presence for each in result.findings] == [PresenceValues.UNDETERMINED]
    assert result.detection is not None
    assert len(result.detection.regions) == 1
    documents = undetermined_site.documents(result)
    assert list(documents) == ["SC", "SR-ROI", "SR"]
    assert "Undetermined" in str(read(documents["SR-ROI"]))
    assert undetermined_site.replay(result).is_same


def test_a_job_that_took_a_worker_down_is_not_asked_for_places(site: MarkedSite) -> None:
    site.receive()
    (job,) = claim_batch(site.database, "worker-1", "tiny", "1.0.0", 1, now_utc(), 60)
    package = load_package(site.config.models.folders[0] / "tiny-1.0.0")
    found = judge(np.array([0.9], np.float32), package.labels)
    batch = [Analysed(replace(job, crashes=1), found, now_utc())]

    (done,) = with_explanations(package, Marker(package), batch)

    assert done.detection is not None
    assert done.detection.regions == ()
    assert "died over this analysis" in done.detection.note


@pytest.fixture(scope="module")
def ct(unpacked: Any) -> list[Path]:
    return sorted(unpacked("ct-chest-60").rglob("*.dcm"))


def test_a_volume_has_a_group_on_each_slice_and_judges_accept_all(
    volume_site: MarkedSite, ct: list[Path], tmp_path: Path
) -> None:
    study = str(pydicom.dcmread(ct[0], stop_before_pixels=True).StudyInstanceUID)
    volume_site.take(ct, study)
    result = volume_site.analyse()

    documents = volume_site.documents(result)

    boxes = boxes_in(read(documents["SR-ROI"]))
    uids = result.sop_instance_uids
    assert [uids.index(uid) for uid, _ in boxes] == [56, 57, 2]
    # The place is the sixth of eight cells across and the third down, of 512 pixels or so.
    rows = int(pydicom.dcmread(ct[0], stop_before_pixels=True).Rows)
    left, top = boxes[0][1][:2]
    assert (left, top) == pytest.approx((5 / 8 * rows, 2 / 8 * rows), abs=rows / 16)
    card = read(documents["SC"])
    (shown,) = card.SourceImageSequence
    assert shown.ReferencedSOPInstanceUID == uids[57]
    files = [tmp_path / f"{role}.dcm" for role in documents]
    for file, document in zip(files, documents.values(), strict=True):
        file.write_bytes(document.data)
    judge_together(files, ct)


def test_another_class_is_composed_for_each_kind_of_report(site: MarkedSite) -> None:
    site.receive()
    result = site.analyse()
    composer = site.composer()

    regions = composer.compose_report(result, COMPREHENSIVE, DocumentRole.REGIONS)
    report = composer.compose_report(result, COMPREHENSIVE)

    assert {regions.sop_class_uid, report.sop_class_uid} == {COMPREHENSIVE}
    # At a destination that takes this class both are sent in it.
    assert regions.sop_instance_uid in evidence_of(read(report))
    silent = replace(result, detection=None)
    with pytest.raises(CannotCompose, match="has no document of role SR-ROI"):
        composer.compose_report(silent, COMPREHENSIVE, DocumentRole.REGIONS)


def test_a_later_version_replaces_both_documents_in_the_class_that_was_sent(
    site: MarkedSite,
) -> None:
    site.receive()
    first = site.analyse()
    by_class = {each: site.documents(first, each) for each in SRClassValues}
    composed = list(by_class[SRClassValues.COMPREHENSIVE_3D].values())
    store_documents(site.database, first.id, composed, ("old",), now_utc())
    # An archive that takes a lesser class had each report replaced by one of that class.
    for delivery in read_dossier(site.database, STUDY).deliveries:
        if delivery.role != "SC":
            lesser = by_class[COMPREHENSIVE][delivery.role]
            replace_document(site.database, delivery.id, lesser, now_utc())
    later = replace(
        first, version_number=2, predecessor_result_id=first.id, result_digest="ef" * 32
    )

    # Where nothing was sent in a class, the first that was composed is named.
    first_class = SRClassValues.COMPREHENSIVE_3D
    before = {first_class: first_class, COMPREHENSIVE: COMPREHENSIVE}
    for sr_class, sent in (before | {SRClassValues.ENHANCED: first_class}).items():
        documents = site.documents(later, sr_class)

        for role in ("SR-ROI", "SR"):
            (study,) = read(documents[role]).PredecessorDocumentsSequence
            (series,) = study.ReferencedSeriesSequence
            (named,) = series.ReferencedSOPSequence
            earlier = by_class[sent][role]
            assert named.ReferencedSOPInstanceUID == earlier.sop_instance_uid
            assert named.ReferencedSOPClassUID == sent


def test_regions_computed_again_are_the_same(site: MarkedSite) -> None:
    site.receive()

    found = site.replay(site.analyse())

    assert found.is_same
    assert found.regions.largest_difference == 0
    assert (found.regions.stored, found.regions.computed) == (1, 1)


@pytest.mark.parametrize(
    ("how", "words"),
    [({"lost": True}, "0 regions now, 1 then"), ({"moved": 2.0}, "largest difference")],
)
def test_regions_that_come_out_otherwise_are_found(
    site: MarkedSite, how: dict[str, Any], words: str
) -> None:
    site.receive()

    found = site.replay(site.analyse(), **how)

    assert not found.is_same
    assert words in found.regions.words


def test_regions_that_were_not_looked_for_then_are_nothing_to_compare_with(
    site: MarkedSite,
) -> None:
    site.receive()
    result = site.analyse(lost=True)
    package = load_package(site.config.models.folders[0] / "tiny-1.0.0")
    after_crash = undetected(package, result.findings, "a worker died over it")
    region = Region("Bright", 1, "Spot", Code("1", "99TEST", "Spot"), None, 0.9, 0.5, ())

    found = site.replay(result)

    assert found.is_same
    assert found.regions.words == (
        "nothing to compare with: no regions can be shown: the map is lost"
    )
    for then in (None, after_crash):
        compared = compared_regions(then, Detection((region,)), 0.001)
        assert compared is not None
        assert compared.is_same
        assert compared.words.startswith("nothing to compare with: ")


def test_a_region_where_none_was_found_then_is_another_result(site: MarkedSite) -> None:
    site.receive()

    found = site.replay(site.analyse(moved=8.0))

    assert not found.is_same
    assert "1 region now, 0 then" in found.regions.words


def test_models_that_tell_no_places_are_not_compared(site: MarkedSite) -> None:
    site.receive()
    result = site.analyse(answer=0.1)

    found = replay(site.config, site.database, site.spool, result.id, site.maker(answer=0.1))

    assert found.regions is None
    assert found.is_same


def test_the_worklist_counts_the_regions(site: MarkedSite) -> None:
    site.receive()
    result = site.analyse()

    page = study_page(read_dossier(site.database, STUDY), FindingOrder([]))

    (statement,) = page.line.statements
    assert statement.detail == "1 region"
    assert page.latest[0].detection == result.detection


def test_the_study_page_and_the_command_list_the_regions(
    site: MarkedSite, capsys: pytest.CaptureFixture[str]
) -> None:
    site.receive(corner=(0, 1))
    site.analyse()
    file = site.folder / "medimgd.toml"
    file.write_text(
        f'[site]\ndata_folder = "{site.config.site.data_folder}"\n[models]\nbundled = false\n'
    )
    server = WebServer(site.config.model_copy(update={"web": WebSection(port=0)}))
    server.start()

    with urlopen(f"http://127.0.0.1:{server.port}/studies/{STUDY}", timeout=20) as answer:
        page = answer.read().decode()
    server.stop()
    show(STUDY, config=file)
    explain(STUDY, config=file)

    assert "1 region marked by the model" in page
    assert "<li>Spot 1 " in page
    said = capsys.readouterr().out
    assert said.count("  1 region\n") == 2
    assert "Spot 1: certainty 98.2 %, on 1 image" in said


def test_a_picture_that_cannot_be_shown_keeps_no_report_back(site: MarkedSite) -> None:
    site.receive()
    result = site.analyse()
    assert result.detection is not None
    (region,) = result.detection.regions
    beyond = replace(region.outlines[0], frame_number=7)
    odd = Detection((replace(region, outlines=(beyond,)),))

    documents = site.documents(replace(result, detection=odd))

    assert list(documents) == ["SC", "SR-ROI", "SR"]
    assert read(documents["SC"]).Columns < ROW_WIDTH + 360


@pytest.fixture
def archive(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[list[pydicom.Dataset], int]]:
    """An archive that takes only the classes it is given, and its port."""
    # The product's own receiver takes any class; this peer must not.
    monkeypatch.setattr(_config, "UNRESTRICTED_STORAGE_SERVICE", False)
    received: list[pydicom.Dataset] = []
    ae = AE("ARCHIVE")
    for sop_class in request.param:
        ae.add_supported_context(sop_class)

    def on_store(event: evt.Event) -> int:
        received.append(event.dataset)
        return 0

    server = ae.start_server(
        ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, on_store)]
    )
    yield received, server.server_address[1]
    server.shutdown()


@pytest.mark.parametrize(
    ("archive", "sr_class"),
    [
        ([CAPTURE, *SRClassValues], SRClassValues.COMPREHENSIVE_3D),
        ([CAPTURE, SRClassValues.COMPREHENSIVE], SRClassValues.COMPREHENSIVE),
        ([CAPTURE, SRClassValues.ENHANCED], SRClassValues.ENHANCED),
    ],
    indirect=["archive"],
)
def test_both_reports_step_down_to_the_class_an_archive_takes(
    site: MarkedSite, archive: tuple[list[pydicom.Dataset], int], sr_class: SRClassValues
) -> None:
    received, port = archive
    site.receive()
    result = site.analyse()
    destination = DestinationSection(name="old", host="127.0.0.1", port=port, ae_title="ARCHIVE")
    config = site.config.model_copy(update={"destinations": (destination,)})

    Courier(config, site.database, site.composer()).work()

    assert [str(each.SOPClassUID) for each in received] == [CAPTURE, sr_class, sr_class]
    card, regions, report = received
    assert regions.SeriesDescription.startswith("AI REGIONS")
    # What the study report lists is what this archive was sent.
    assert {card.SOPInstanceUID, regions.SOPInstanceUID} < evidence_of(report)
    deliveries = read_dossier(site.database, STUDY).deliveries
    assert {each.role: each.state for each in deliveries} == dict.fromkeys(
        ("SC", "SR-ROI", "SR"), DeliveryState.SENT
    )
    assert {each.result_id for each in deliveries} == {result.id}
    # Coming back, it is known as ours by its UID and by its equipment.
    assert is_own_sop_instance_uid(site.database, str(regions.SOPInstanceUID))
    processing = regions.ContributingEquipmentSequence[-1]
    assert processing.Manufacturer == MANUFACTURER


@pytest.mark.parametrize("archive", [[CAPTURE, SRClassValues.COMPREHENSIVE]], indirect=True)
def test_a_report_composed_again_by_a_later_version_lists_what_was_composed_before(
    site: MarkedSite,
    archive: tuple[list[pydicom.Dataset], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The archive was away during an update and takes another class than was composed."""
    received, port = archive
    site.receive()
    result = site.analyse()
    destination = DestinationSection(name="old", host="127.0.0.1", port=port, ae_title="ARCHIVE")
    config = site.config.model_copy(update={"destinations": (destination,)})
    documents = site.documents(result)
    store_documents(site.database, result.id, list(documents.values()), ["old"], now_utc())
    monkeypatch.setattr(composing, "__version__", "99.0.0")

    Courier(config, site.database, site.composer()).work()

    card, regions, report = received
    assert str(card.SOPInstanceUID) == documents["SC"].sop_instance_uid
    assert report.SoftwareVersions == "99.0.0"
    assert {card.SOPInstanceUID, regions.SOPInstanceUID} < evidence_of(report)


@pytest.mark.parametrize(
    ("archive", "reports"),
    [
        ([CAPTURE, *SRClassValues], DeliveryState.SENT),
        ([CAPTURE, SRClassValues.ENHANCED], DeliveryState.PENDING),
    ],
    indirect=["archive"],
)
def test_what_cannot_be_composed_in_another_class_any_more_is_sent_as_it_was_kept(
    site: MarkedSite, archive: tuple[list[pydicom.Dataset], int], reports: DeliveryState
) -> None:
    received, port = archive
    site.receive()
    result = site.analyse()
    destination = DestinationSection(name="old", host="127.0.0.1", port=port, ae_title="ARCHIVE")
    config = site.config.model_copy(update={"destinations": (destination,)})
    documents = site.documents(result)
    store_documents(site.database, result.id, list(documents.values()), ["old"], now_utc())
    _reject(site)
    later = now_utc() + timedelta(days=31)
    assert purge_finished_studies(site.database, site.spool, later, older_than_days=30)
    learn_sr_sop_class(site.database, "old", SRClassValues.ENHANCED)
    retry_study(site.database, STUDY, now_utc(), destinations=["old"])

    Courier(config, site.database, site.composer()).work()

    deliveries = read_dossier(site.database, STUDY).deliveries
    assert {each.role: each.state for each in deliveries} == {
        "SC": DeliveryState.SENT, "SR-ROI": reports, "SR": reports,
    }  # fmt: skip
    sent = [each for each in deliveries if each.state is DeliveryState.SENT]
    assert {each.SOPInstanceUID for each in received} == {each.sop_instance_uid for each in sent}
    assert destination_state(site.database, "old").sr_sop_class_uid == SRClassValues.ENHANCED


def _reject(site: MarkedSite) -> None:
    policy = DeliveryPolicy(rejected_after=1)
    (group,) = due_deliveries(site.database, now_utc())
    outcomes = [DeliveryOutcome(each.id, 0xC000) for each in group.deliveries]
    record_outcomes(site.database, "old", outcomes, now_utc(), policy)
