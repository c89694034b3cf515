"""Whatever is sent ends in a stated, visible state; the processes survive; no name is spoken."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    ExplicitVRLittleEndian,
    RLELossless,
    generate_uid,
)

from dicom_io.association import Context, Destination, open_association
from dicom_io.results.reading import report_text
from dicom_io.sending import OutgoingInstance, send
from storage.documents import read_document
from storage.door import list_refused_instances
from storage.processes import list_processes
from storage.states import StudyState
from tests.acceptance.installation import Installation, recording_archive
from tests.tiny_models import BRIGHT, write_package

MARKED_NAME = "Zebrafish^Quetzal"
MARKED_BIRTH_DATE = "19310417"
MARKS = ("Zebrafish", "Quetzal", MARKED_BIRTH_DATE)


def film(**changes: object) -> Dataset:
    """A small chest film of a marked patient; keyword arguments replace or (None) remove."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = ComputedRadiographyImageStorage
    ds.SOPInstanceUID, ds.SeriesInstanceUID, ds.StudyInstanceUID = (
        generate_uid() for _ in range(3)
    )
    ds.PatientName, ds.PatientID, ds.PatientBirthDate = MARKED_NAME, "P1", MARKED_BIRTH_DATE
    ds.PatientSex, ds.StudyDate, ds.StudyTime, ds.AccessionNumber = "F", "20260101", "101500", ""
    ds.StudyID, ds.ReferringPhysicianName, ds.Modality = "1", MARKED_NAME, "CR"
    ds.BodyPartExamined, ds.ViewPosition, ds.PatientOrientation = "CHEST", "AP", ["L", "F"]
    ds.SeriesNumber = ds.InstanceNumber = 1
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows = ds.Columns = 64
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit, ds.PixelRepresentation = 7, 0
    ds.PixelData = np.tile(np.arange(64, dtype=np.uint8) * 3, 64).tobytes()
    for keyword, value in changes.items():
        if value is None:
            del ds[keyword]
        else:
            setattr(ds, keyword, value)
    return ds


def encoded(ds: Dataset) -> bytes:
    """The file as a careless device writes it: nothing is checked or mended."""
    buffer = BytesIO()
    ds.file_meta.MediaStorageSOPClassUID = ds.get("SOPClassUID", ComputedRadiographyImageStorage)
    ds.file_meta.MediaStorageSOPInstanceUID = ds.get("SOPInstanceUID", "1.2.3")
    pydicom.dcmwrite(buffer, ds, enforce_file_format=True)
    return buffer.getvalue()


@dataclass
class Clinic:
    """One running installation and what it sent to its archive."""

    site: Installation
    received: list[tuple[str, bytes]]

    def send(self, ds: Dataset, data: bytes | None = None) -> int | None:
        data = encoded(ds) if data is None else data
        (outcome,) = send(
            Destination("medimgd", "127.0.0.1", self.site.port, "MEDIMGD", "MODALITY"),
            [
                OutgoingInstance(
                    str(ds.get("SOPClassUID", ComputedRadiographyImageStorage)),
                    str(ds.get("SOPInstanceUID", "1.2.3")),
                    str(ds.file_meta.TransferSyntaxUID),
                    data,
                )
            ],
        )
        return outcome.status

    def outcome(self, ds: Dataset, data: bytes | None = None):
        """Send one instance, which must be acknowledged, and return how its study ended."""
        assert self.send(ds, data) == 0
        return self.site.wait_until_over(str(ds.StudyInstanceUID))


@pytest.fixture(scope="module")
def clinic(module_installation: Callable[..., Installation], tmp_path_factory) -> Clinic:
    models = tmp_path_factory.mktemp("models")
    write_package(
        models / "film-1.0.0", name="film", where={"attribute": "Modality", "in": ["CR", "DX"]},
        labels=(BRIGHT,),
        contract=[{"require": {"attribute": "ViewPosition", "not_in": ["LATERAL", "LL"]},
                   "text": "Lateral views are not analysed."}],
    )  # fmt: skip
    with recording_archive() as (sink, archive):
        site = module_installation([archive], models=models)
        site.start()
        yield Clinic(site, sink.received)


def test_a_plain_film_is_analysed(clinic: Clinic) -> None:
    dossier = clinic.outcome(film())

    assert dossier.study.state is StudyState.ROUTED
    assert len(dossier.results[0].findings) == 1


def test_truncated_pixel_data_is_refused_and_named(clinic: Clinic) -> None:
    ds = film()
    ds.PixelData = ds.PixelData[:1000]

    dossier = clinic.outcome(ds)

    assert dossier.study.state is StudyState.REFUSED
    assert "1000 bytes" in dossier.results[0].refusal_message
    assert not dossier.results[0].findings


def test_rows_that_disagree_with_the_data_are_refused(clinic: Clinic) -> None:
    dossier = clinic.outcome(film(Rows=65))

    assert dossier.study.state is StudyState.REFUSED
    assert "Rows 65" in dossier.results[0].refusal_message


def test_absurd_dimensions_in_a_small_file_are_refused_without_allocating(clinic: Clinic) -> None:
    ds = film(Rows=65535, Columns=65535, PixelData=b"\0" * 800)

    dossier = clinic.outcome(ds)

    assert dossier.study.state is StudyState.REFUSED


def test_garbage_in_a_codec_is_refused(clinic: Clinic) -> None:
    ds = film()
    ds.file_meta.TransferSyntaxUID = RLELossless
    ds.PixelData = pydicom.encaps.encapsulate([bytes(range(200))])
    ds["PixelData"].is_undefined_length = True

    dossier = clinic.outcome(ds)

    assert dossier.study.state is StudyState.REFUSED


def test_blank_film_is_refused(clinic: Clinic) -> None:
    dossier = clinic.outcome(film(PixelData=b"\x80" * 4096))

    assert dossier.study.state is StudyState.REFUSED


def test_film_outside_the_contract_is_refused_with_the_condition(clinic: Clinic) -> None:
    ds = film(ViewPosition="LATERAL")

    dossier = clinic.outcome(ds)

    assert dossier.study.state is StudyState.REFUSED
    assert "ViewPosition" in dossier.results[0].refusal_message
    explained = clinic.site.run("explain", str(ds.StudyInstanceUID)).stdout
    assert "LATERAL" in explained


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"])
def test_missing_uids_are_refused_at_the_door_and_kept_in_the_list_of_refusals(
    clinic: Clinic, keyword: str
) -> None:
    ds = film(**{keyword: None})

    status = clinic.send(ds)

    assert status == 0xC000
    clinic.site.wait(
        lambda: any(
            keyword in each.reason for each in clinic.site.read(list_refused_instances, ())
        ),
        f"a refusal that names {keyword}",
    )


@pytest.mark.parametrize(
    "uid", ["../../../etc/passwd", "1.2/../3", "1.2.3;rm", "1.2.\u0661", "", "."]
)
def test_path_characters_in_uids_never_become_a_path(clinic: Clinic, uid: str) -> None:
    ds = film()
    data = encoded(ds).replace(
        str(ds.StudyInstanceUID).encode().ljust(64, b"\0")[: len(str(ds.StudyInstanceUID))],
        uid.encode().ljust(len(str(ds.StudyInstanceUID)), b"\0"),
    )

    status = clinic.send(ds, data)

    assert status == 0xC000
    spool = clinic.site.config.spool_folder
    assert {path.name for path in spool.iterdir()} == {"incoming", "studies"}


def test_data_set_of_another_instance_than_the_command_says_is_refused(clinic: Clinic) -> None:
    ds, other = film(SOPInstanceUID="1.2.3.111"), film(SOPInstanceUID="1.2.3.222")
    # The command is made from group 2, which comes first.
    data = encoded(other).replace(b"1.2.3.222", b"1.2.3.111", 1)

    status = clinic.send(ds, data)

    assert status == 0xA900
    assert clinic.site.dossier(str(other.StudyInstanceUID)) is None


def test_deeply_nested_sequences_do_not_end_the_receiver(clinic: Clinic) -> None:
    ds = film()
    data = bytearray(encoded(ds))
    # pydicom itself cannot write this deep: undefined lengths are written by hand.
    opening = b"\x40\x00\x75\x02SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    closing = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    nested = b"\x08\x00\x15\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    end = bytes(data).index(b"\x18\x00\x15\x00CS")
    data[end:end] = nested + opening * 3000 + closing * 3000 + closing

    status = clinic.send(ds, bytes(data))

    assert status in (0, 0xC000)
    if status == 0:
        dossier = clinic.site.wait_until_over(str(ds.StudyInstanceUID))
        assert dossier.study.state in (StudyState.ROUTED, StudyState.REFUSED, StudyState.HELD)
    assert clinic.send(film()) == 0


def test_object_without_an_image_ends_unmatched(clinic: Clinic) -> None:
    ds = film(Rows=None, Columns=None, PixelData=None, Modality="PR")
    ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.11.1"

    dossier = clinic.outcome(ds)

    assert dossier.study.state is StudyState.UNMATCHED
    assert "holds no image" in json.dumps([each.evaluation for each in dossier.decisions])


def test_private_sop_class_is_kept_byte_for_byte_and_ends_unmatched(clinic: Clinic) -> None:
    ds = film(Modality="XX", Rows=None, Columns=None)
    ds.SOPClassUID = "1.3.6.1.4.1.99999.1.2.3"

    dossier = clinic.outcome(ds)

    assert dossier.study.state is StudyState.UNMATCHED


@pytest.mark.parametrize(
    ("charset", "name"),
    [
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        ("GB18030", "Wang^XiaoDong=王^小东"),
        ("ISO_IR 192", "Ünal^Çiğdem"),
    ],
)
def test_names_of_the_world_reach_the_report_and_the_worklist(
    clinic: Clinic, charset: object, name: str
) -> None:
    ds = film(SpecificCharacterSet=charset, PatientName=name)

    dossier = clinic.outcome(ds)

    with clinic.site.database() as database:
        reports = [read_document(database, each.id) for each in dossier.documents]
    names = {str(pydicom.dcmread(BytesIO(data)).PatientName) for data in reports}
    assert names == {name}
    family = name.split("^", maxsplit=1)[0]
    assert family in dossier.study.patient_name


def test_script_tag_as_patient_name_is_text_everywhere(clinic: Clinic) -> None:
    ds = film(PatientName="<script>alert(1)</script>", StudyDescription="<img src=x onerror=1>")

    clinic.outcome(ds)

    page = page_of(clinic, f"/studies/{ds.StudyInstanceUID}")
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<img src=x" not in page


def page_of(clinic: Clinic, path: str) -> str:
    def web_port() -> int | None:
        known = clinic.site.read(list_processes, ())
        return next(
            (p.detail["port"] for p in known if p.role == "web" and "port" in p.detail), None
        )

    port = clinic.site.wait(web_port, "the web page")
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
        return answer.read().decode()


def test_same_uid_with_other_content_is_kept_apart_and_shown(clinic: Clinic) -> None:
    ds = film()
    clinic.outcome(ds)
    before = (
        clinic.site.config.spool_folder
        / clinic.site.dossier(str(ds.StudyInstanceUID)).series[0].instances[0].path
    )
    kept = before.read_bytes()
    ds.PixelData = bytes(reversed(ds.PixelData))

    assert clinic.send(ds) == 0

    uid = str(ds.StudyInstanceUID)
    clinic.site.wait(lambda: clinic.site.dossier(uid).study.conflict_count, "the conflict")
    assert before.read_bytes() == kept
    assert len(clinic.site.dossier(uid).conflicts) == 1
    assert (
        "other content under a known SOP Instance UID" in clinic.site.run("status", check=3).stdout
    )


def test_empty_association_and_unanswered_probes_leave_nothing(clinic: Clinic) -> None:
    count = len(clinic.site.studies())
    peer = Destination("medimgd", "127.0.0.1", clinic.site.port, "MEDIMGD", "MODALITY")

    with open_association(peer, [Context(ComputedRadiographyImageStorage, ExplicitVRLittleEndian)]):
        pass

    assert len(clinic.site.studies()) == count


def test_late_instance_gives_a_second_report_that_names_its_predecessor(clinic: Clinic) -> None:
    first = film()
    before = clinic.outcome(first)
    late = film(
        StudyInstanceUID=first.StudyInstanceUID, SeriesInstanceUID=first.SeriesInstanceUID,
        InstanceNumber=2,
    )  # fmt: skip

    assert clinic.send(late) == 0
    after = clinic.site.wait_until_over(str(first.StudyInstanceUID), instances=2)

    assert [result.version_number for result in after.results] == [1, 2]
    old = next(each for each in before.documents if each.role == "SR")
    new = [each for each in after.documents if each.role == "SR"][-1]
    with clinic.site.database() as database:
        report = pydicom.dcmread(BytesIO(read_document(database, new.id)))
    predecessor = report.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0]
    assert predecessor.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == old.sop_instance_uid
    assert new.sop_instance_uid != old.sop_instance_uid


def test_refusal_reports_reach_the_archive_and_say_that_nothing_is_stated(clinic: Clinic) -> None:
    dossier = clinic.outcome(film(ViewPosition="LL"))

    report = next(each for each in dossier.documents if each.role == "SR")
    with clinic.site.database() as database:
        text = report_text(read_document(database, report.id))
    assert "No statement about any finding is made" in text
    assert "Absent" not in text


def test_no_marked_name_or_birth_date_in_any_log_metric_or_message(clinic: Clinic) -> None:
    site = clinic.site
    clinic.outcome(film())
    spoken = {
        "log": site.log(),
        "metrics": page_of(clinic, "/metrics"),
        "health": page_of(clinic, "/health"),
        "status": site.run("status", check=None).stdout,
        "doctor": site.run("doctor", check=None).stdout,
    }
    for dossier in map(site.dossier, [each.study_instance_uid for each in site.studies()]):
        spoken["audit"] = spoken.get("audit", "") + str(dossier.audit) + dossier.study.reason
        spoken["jobs"] = spoken.get("jobs", "") + "".join(job.reason for job in dossier.jobs)
        spoken["results"] = spoken.get("results", "") + "".join(
            each.refusal_message for each in dossier.results
        )
        spoken["explain"] = spoken.get("explain", "") + str(dossier.decisions)

    assert all(spoken.values()), "an empty output cannot show anything"
    for place, text in spoken.items():
        for mark in MARKS:
            assert mark not in text, f"{mark} in {place}"


def test_every_process_survived(clinic: Clinic) -> None:
    assert "starts again in" not in clinic.site.log()
    assert "unexpected" not in clinic.site.log()
