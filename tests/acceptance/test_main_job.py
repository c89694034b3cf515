"""Real CT, MR and X-ray studies pushed by DCMTK come back as reports, in Orthanc and in DCMTK."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest

from daemon import demo
from dicom_io.results.card import PANEL_WIDTH
from dicom_io.results.lettering import CELL_SIDE, ROW_HEIGHT, ROW_WIDTH
from dicom_io.tensors import build_tensor
from model.package import load_package
from storage.documents import read_document
from storage.explanations import read_explanations
from storage.processes import list_processes
from storage.results import ResultKind
from storage.states import DeliveryState, StudyState
from tests.acceptance.browser import dump_dom
from tests.acceptance.conftest import TinyPackages
from tests.acceptance.installation import Archive, Installation
from tests.results_judges import judge_together

CHEST_FILM = demo.SAMPLES / "chest-xray" / "film.dcm"


@pytest.fixture(scope="module")
def material(unpacked, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("material")
    return {
        "ct": unpacked("ct-chest-60") / "ct-chest-60",
        "mr": unpacked("mr-head-t1-60") / "mr-head-t1-60",
        "cr": CHEST_FILM.parent,
        "scratch": folder,
    }


@pytest.fixture(scope="module")
def hospital(
    module_installation: Callable[..., Installation],
    tiny_packages: TinyPackages,
    module_orthanc,
    module_storescp,
    run_dcmtk,
    material,
):
    """An installation that received the three studies and sent its results to two archives."""
    site = module_installation(
        [
            Archive("orthanc", module_orthanc.port, "ORTHANC", confirm=True),
            Archive("dcmtk", module_storescp.port, "STORESCP"),
        ],
        models=tiny_packages.folder,
        bundled=True,
        settings="finding_order = ['Pneumonia']\n",  # continues the section [web]
    )
    site.start()
    pushed = {
        "ct": run_dcmtk("dcmsend", "-q", "-aec", "MEDIMGD", "+sd", "127.0.0.1", site.port,
                        material["ct"]),
        "mr": run_dcmtk("storescu", "-q", "-aec", "MEDIMGD", "+sd", "127.0.0.1", site.port,
                        material["mr"]),
        "cr": run_dcmtk("storescu", "-q", "-aec", "MEDIMGD", "127.0.0.1", site.port, CHEST_FILM),
    }  # fmt: skip
    assert {name: done.returncode for name, done in pushed.items()} == {"ct": 0, "mr": 0, "cr": 0}
    uids = {name: study_uid_of(next(material[name].glob("*.dcm"))) for name in ("ct", "mr", "cr")}
    counts = {"ct": 60, "mr": 60, "cr": 1}
    dossiers = {name: site.wait_until_over(uid, counts[name]) for name, uid in uids.items()}
    return site, uids, dossiers


def study_uid_of(path: Path) -> str:
    return str(pydicom.dcmread(path, stop_before_pixels=True).StudyInstanceUID)


def documents_of(site: Installation, dossier) -> dict[str, bytes]:
    with site.database() as database:
        return {each.role: read_document(database, each.id) for each in dossier.documents}


@pytest.mark.parametrize("name", ["ct", "mr", "cr"])
def test_each_study_ends_with_one_report_at_every_archive(hospital, name: str) -> None:
    _, _, dossiers = hospital
    dossier = dossiers[name]

    assert dossier.study.state is StudyState.ROUTED
    assert [result.kind for result in dossier.results] == [ResultKind.FINDING]
    assert {(each.destination, each.role) for each in dossier.deliveries} == {
        (archive, role) for archive in ("orthanc", "dcmtk") for role in ("SC", "SR")
    }
    assert {each.last_status for each in dossier.deliveries} == {0}


@pytest.mark.parametrize("name", ["ct", "mr", "cr"])
def test_orthanc_holds_report_and_picture_in_the_source_study(
    hospital, module_orthanc, name: str
) -> None:
    site, uids, dossiers = hospital
    held = {
        tags["SOPInstanceUID"]: tags
        for tags in (
            module_orthanc.get(f"/instances/{each}/simplified-tags")
            for each in module_orthanc.get("/instances")
        )
    }

    for document in dossiers[name].documents:
        assert held[document.sop_instance_uid]["StudyInstanceUID"] == uids[name]

    confirmed = {DeliveryState.CONFIRMED}
    site.wait(
        lambda: {
            each.state
            for each in site.dossier(uids[name]).deliveries
            if each.destination == "orthanc"
        } == confirmed,
        "Orthanc's confirmation by C-FIND",
    )  # fmt: skip


def test_storescp_holds_the_very_bytes_that_were_composed(hospital, module_storescp) -> None:
    site, _, dossiers = hospital
    received = {pydicom.dcmread(path).SOPInstanceUID: path for path in module_storescp.paths()}

    for dossier in dossiers.values():
        for role, data in documents_of(site, dossier).items():
            uid = next(each for each in dossier.documents if each.role == role).sop_instance_uid
            assert data_set_of(received[uid].read_bytes()) == data_set_of(data)


def data_set_of(part10: bytes) -> bytes:
    return part10[144 + int.from_bytes(part10[140:144], "little") :]


@pytest.mark.parametrize("name", ["ct", "mr", "cr"])
def test_every_object_is_accepted_by_the_validators(
    hospital, material, dcmtk, name: str, tmp_path: Path
) -> None:
    site, _, dossiers = hospital
    written = []
    for role, data in documents_of(site, dossiers[name]).items():
        path = tmp_path / f"{role}.dcm"
        path.write_bytes(data)
        written.append(path)

    judge_together(written, sorted(material[name].glob("*.dcm")))
    report = subprocess.run(
        [dcmtk("dsrdump"), "+Pl", str(tmp_path / "SR.dcm")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "AI result, not verified by a physician" in report.stdout


@pytest.mark.parametrize("name", ["ct", "mr"])
def test_the_reported_certainty_is_what_the_model_computes_by_hand(
    hospital, material, tiny_packages: TinyPackages, name: str
) -> None:
    _, _, dossiers = hospital
    tiny = getattr(tiny_packages, name)
    tensor = build_tensor(sorted(material[name].glob("*.dcm")), load_package(tiny.folder).recipe)

    expected = tiny.expected(tensor.values)

    (result,) = dossiers[name].results
    found = [finding.probability for finding in result.findings]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert len(found) == len(tiny.labels)


def test_the_bundled_film_labelled_pneumonia_is_flagged(hospital) -> None:
    _, _, dossiers = hospital

    (result,) = dossiers["cr"].results

    assert [(each.label, each.presence) for each in result.findings] == [("Pneumonia", "Present")]


def test_the_flagged_film_comes_with_a_map_of_what_spoke_for_it(hospital, tmp_path: Path) -> None:
    site, _, dossiers = hospital
    (result,) = dossiers["cr"].results
    documents = documents_of(site, dossiers["cr"])

    with site.database() as database:
        (explanation,) = read_explanations(database, result.id)

    assert explanation.label == "Pneumonia"
    assert explanation.values.max() == 1
    card = pydicom.dcmread(BytesIO(documents["SC"]))
    assert (card.Rows, card.Columns) == (ROW_HEIGHT, ROW_WIDTH + PANEL_WIDTH)
    assert f"{explanation.method} attention" in card.DerivationDescription
    pictures = card.pixel_array[:CELL_SIDE, :ROW_WIDTH].astype(int)
    source, heat = pictures[:, :CELL_SIDE], pictures[:, CELL_SIDE:]
    assert np.ptp(source, axis=2).max() == 0
    assert np.ptp(heat, axis=2).max() > 60
    report = pydicom.dcmread(BytesIO(documents["SR"]))
    assert list(explanations_in(report)) == [str(card.SOPInstanceUID)]


def explanations_in(item: pydicom.Dataset) -> Iterator[str]:
    """Yield what the items named Visual explanation refer to."""
    for child in item.get("ContentSequence", ()):
        if child.get("ConceptNameCodeSequence"):
            concept = child.ConceptNameCodeSequence[0]
            if (concept.CodeValue, concept.CodingSchemeDesignator) == ("130401", "DCM"):
                yield str(child.ReferencedSOPSequence[0].ReferencedSOPInstanceUID)
        yield from explanations_in(child)


def test_what_has_no_map_says_why(hospital) -> None:
    site, _, dossiers = hospital
    results = [each for name in ("ct", "mr") for each in dossiers[name].results]
    present = [
        (result.id, each.label)
        for result in results
        for each in result.findings
        if each.presence == "Present"
    ]

    with site.database() as database:
        found = [(r.id, each) for r in results for each in read_explanations(database, r.id)]

    assert [(result_id, each.label) for result_id, each in found] == present
    assert all("no convolution" in each.reason for _, each in found)
    assert present


def test_a_result_computed_again_comes_out_as_stored(hospital) -> None:
    site, _, dossiers = hospital
    (result,) = dossiers["cr"].results
    assert (
        f"result {result.id}:" in site.run("show", dossiers["cr"].study.study_instance_uid).stdout
    )

    found = site.run_json("replay", str(result.id))

    assert found["same"] is True
    (finding,) = found["replay"]["findings"]
    assert finding["stored_probability"] == pytest.approx(finding["probability"], abs=1e-4)
    (shown,) = found["replay"]["maps"]
    assert shown["largest_difference"] <= 0.01
    assert "no result 999" in site.run("replay", "999", check=4).stderr


def test_the_same_study_again_changes_nothing(hospital, run_dcmtk) -> None:
    site, uids, dossiers = hospital

    done = run_dcmtk("storescu", "-aec", "MEDIMGD", "127.0.0.1", site.port, CHEST_FILM)

    assert done.returncode == 0
    site.wait(lambda: "1 known" in site.log(), "the duplicate to be indexed")
    after = site.dossier(uids["cr"])
    assert after.study.state is StudyState.ROUTED
    assert after.results == dossiers["cr"].results


def test_our_own_results_coming_back_are_acknowledged_and_ignored(hospital, tmp_path: Path) -> None:
    site, uids, dossiers = hospital
    for role, data in documents_of(site, dossiers["cr"]).items():
        (tmp_path / f"{role}.dcm").write_bytes(data)

    outcomes = site.send(tmp_path)

    assert [each.outcome.status for each in outcomes] == [0, 0]
    assert site.dossier(uids["cr"]).study.instance_count == 1
    assert site.log().count("one of our own results came back") == 2


def test_worklist_and_study_page_show_the_real_studies_in_a_browser(
    hospital, tmp_path: Path
) -> None:
    site, uids, _ = hospital
    port = next(each.detail["port"] for each in site.read(list_processes, ()) if each.role == "web")

    worklist = dump_dom(f"http://127.0.0.1:{port}/", tmp_path)
    study = dump_dom(f"http://127.0.0.1:{port}/studies/{uids['cr']}", tmp_path)

    for uid in uids.values():
        assert f"/studies/{uid}" in worklist
    assert "POSITIVE" in worklist
    assert worklist.index(uids["cr"]) == min(map(worklist.index, uids.values()))
    assert "preliminary, not verified by a physician" in worklist
    assert "Pneumonia" in study
    assert "Imaging Measurement Report" in study
    assert "capture/" in study
