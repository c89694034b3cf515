"""The courier before a real archive: what arrives, and in which order, whatever it answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from daemon.config import Config, DestinationSection, SiteSection
from daemon.courier import Courier
from daemon.role import now_utc
from dicom_io.receiving.instances import STORED, StoreAnswer, StoreRequest
from dicom_io.receiving.server import StorageServer
from dicom_io.results.request import (
    SECONDARY_CAPTURE_CLASS_UID,
    DocumentRole,
    EncodedDocument,
    SRClassValues,
)
from dicom_io.statuses import StoreStatusValues
from storage.database import Database, migrate, open_database
from storage.dossier import read_dossier
from storage.outbox import MOST_PUT_OFF, wake_destination
from storage.spool import Spool
from tests.sinks import GatheringSink
from tests.storage_hospital import STUDY, Hospital

REPORT, REGIONS, PICTURE = DocumentRole.REPORT, DocumentRole.REGIONS, DocumentRole.CAPTURE
FULL = StoreAnswer(StoreStatusValues.OUT_OF_RESOURCES, "disk full")
REFUSED = StoreAnswer(StoreStatusValues.CANNOT_UNDERSTAND, "no pictures here")


class Archive(GatheringSink):
    """An archive that answers by role, and remembers what it took in which order."""

    def __init__(self) -> None:
        self.answers: dict[DocumentRole, StoreAnswer] = {}
        self.taken: list[DocumentRole] = []

    def store(self, request: StoreRequest, data_set: bytes) -> StoreAnswer:
        role = next(role for role in DocumentRole if _uid(role) == request.sop_instance_uid)
        answer = self.answers.get(role, STORED)
        if answer is STORED:
            self.taken.append(role)
        return answer


class ThreeDocuments:
    """A composer of a picture, regions and a report for a result."""

    def compose(self, result, sr_class: SRClassValues) -> tuple[EncodedDocument, ...]:
        return tuple(_document(role) for role in DocumentRole)


def _uid(role: DocumentRole) -> str:
    return f"2.25.7.{list(DocumentRole).index(role)}"


def _document(role: DocumentRole) -> EncodedDocument:
    ds = Dataset()
    ds.SOPClassUID = (
        SECONDARY_CAPTURE_CLASS_UID if role is PICTURE else str(SRClassValues.COMPREHENSIVE_3D)
    )
    ds.SOPInstanceUID = _uid(role)
    ds.ensure_file_meta()
    ds.file_meta.TransferSyntaxUID = UID(ExplicitVRLittleEndian)
    file = BytesIO()
    ds.save_as(file, enforce_file_format=True)
    return EncodedDocument(
        role, STUDY, "2.25.8", ds.SOPClassUID, ds.SOPInstanceUID, file.getvalue()
    )


@pytest.fixture
def archive() -> Archive:
    return Archive()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    path = tmp_path / "data" / "medimgd.sqlite"
    migrate(path)
    opened = open_database(path)
    yield opened
    opened.close()


@pytest.fixture
def deliver(tmp_path: Path, archive: Archive, database: Database) -> Iterator[Callable[[], None]]:
    """Compose one result, and give the function that makes everything due and tries it once."""
    Hospital(database, Spool(tmp_path / "data" / "spool", 0)).analyse()
    with StorageServer(archive, ae_titles=("PACS",), port=0) as server:
        config = Config(
            site=SiteSection(data_folder=tmp_path / "data"),
            destinations=(
                DestinationSection(
                    name="pacs", host="127.0.0.1", port=server.port, ae_title="PACS", confirm=False
                ),
            ),
        )
        courier = Courier(config, database, ThreeDocuments())  # type: ignore[arg-type]

        def deliver() -> None:
            wake_destination(database, "pacs", now_utc())
            courier.work()

        yield deliver


@pytest.mark.parametrize("put_off", [PICTURE, REGIONS])
def test_a_report_waits_with_what_the_archive_has_no_room_for_yet(
    deliver: Callable[[], None], archive: Archive, put_off: DocumentRole
) -> None:
    archive.answers = {put_off: FULL}
    deliver()
    assert REPORT not in archive.taken

    archive.answers.clear()
    deliver()

    assert archive.taken == [PICTURE, REGIONS, REPORT]


def test_an_archive_that_never_has_room_for_pictures_gets_reports(
    deliver: Callable[[], None], archive: Archive, database: Database
) -> None:
    archive.answers = {PICTURE: FULL}
    for _ in range(MOST_PUT_OFF - 1):
        deliver()
    assert archive.taken == []

    deliver()

    assert archive.taken == [REGIONS, REPORT]
    states = {each.role: each.state for each in read_dossier(database, STUDY).deliveries}
    assert states == {"SC": "pending", "SR-ROI": "sent", "SR": "sent"}


def test_a_picture_that_the_archive_refuses_keeps_no_report_waiting(
    deliver: Callable[[], None], archive: Archive
) -> None:
    archive.answers = {PICTURE: REFUSED}

    deliver()

    assert archive.taken == [REGIONS, REPORT]
