"""Orthanc stores with us, asks for commitment and takes the report on its own DICOM port."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pydicom
import pytest

from daemon.committing import CommitmentDesk
from daemon.config import Config, SiteSection
from daemon.demo import SAMPLES
from daemon.indexing import IndexWriter
from daemon.receiver import IndexedAssociations, SpoolSink, make_server
from daemon.receiver_settings import PeerSection, ReceiverSection
from daemon.reporting import CommitmentReporter
from storage.commitments import list_commitments
from storage.database import Database, migrate, open_database
from storage.spool import Spool
from tests.commitment_requester import wait_for
from tests.peers import OrthancPeer

CT_FILES = sorted((SAMPLES / "ct").glob("*.dcm"))


def post(orthanc: OrthancPeer, path: str, body: object, method: str = "POST"):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{orthanc.http_port}{path}", data, method=method
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read() or b"null")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    path = Config(site=SiteSection(data_folder=tmp_path / "data")).database_path
    migrate(path)
    opened = open_database(path)
    yield opened
    opened.close()


@pytest.fixture
def reporter(tmp_path, database, orthanc_peer) -> Iterator[CommitmentReporter]:
    """A receiver that Orthanc knows as MEDIMGD, and what reports on its promises."""
    peer = PeerSection(ae_title="ORTHANC", network="127.0.0.0/8", port=orthanc_peer.port)
    config = Config(
        site=SiteSection(data_folder=tmp_path / "data"),
        receiver=ReceiverSection(port=0, storage_commitment=True, peers=(peer,)),
    )
    spool = Spool(config.spool_folder, 0)
    with (
        closing(IndexWriter(database, "receiver-0")) as index,
        closing(CommitmentDesk(config, database, spool)) as desk,
        make_server(
            config.receiver, SpoolSink(spool, index, database), IndexedAssociations(index),
            desk=desk,
        ) as server,
    ):  # fmt: skip
        us = {"AET": "MEDIMGD", "Host": "127.0.0.1", "Port": server.port}
        post(orthanc_peer, "/modalities/medimgd", us, "PUT")
        yield CommitmentReporter(config, database, spool)


def upload(orthanc: OrthancPeer) -> list[str]:
    return [post(orthanc, "/instances", path.read_bytes())["ID"] for path in CT_FILES]


def ended(orthanc: OrthancPeer, transaction: str, reporter: CommitmentReporter) -> dict:
    """Do the courier's rounds until Orthanc has heard; return what it heard."""

    def heard() -> dict | None:
        reporter.work()
        found = orthanc.get(f"/storage-commitment/{transaction}")
        return None if found["Status"] == "Pending" else found

    return wait_for(heard, 30)


def test_orthanc_learns_that_all_it_stored_is_committed_to(
    orthanc_peer, reporter, database
) -> None:
    uploaded = upload(orthanc_peer)

    stored = post(
        orthanc_peer,
        "/modalities/medimgd/store",
        {"Resources": uploaded, "StorageCommitment": True},
    )
    found = ended(orthanc_peer, stored["StorageCommitmentTransactionUID"], reporter)

    assert found["Status"] == "Success"
    assert {each["SOPInstanceUID"] for each in found["Success"]} == {
        str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID) for path in CT_FILES
    }
    assert found["Failures"] == []
    wait_for(lambda: list_commitments(database)[0].state == "reported")


def test_orthanc_learns_what_is_not_here(orthanc_peer, reporter, database) -> None:
    uploaded = upload(orthanc_peer)
    post(orthanc_peer, "/modalities/medimgd/store", uploaded[:2])

    asked = post(
        orthanc_peer,
        "/modalities/medimgd/storage-commitment",
        {"DicomInstances": [_identity(path) for path in (CT_FILES[0], CT_FILES[1], CT_FILES[2])]},
    )
    found = ended(orthanc_peer, asked["ID"], reporter)

    assert found["Status"] == "Failure"
    assert [each["SOPInstanceUID"] for each in found["Success"]] == [
        _identity(path)["SOPInstanceUID"] for path in CT_FILES[:2]
    ]
    (failure,) = found["Failures"]
    assert failure["SOPInstanceUID"] == _identity(CT_FILES[2])["SOPInstanceUID"]
    assert failure["FailureReason"] == 0x0112, failure


def _identity(path: Path) -> dict[str, str]:
    ds = pydicom.dcmread(path, stop_before_pixels=True)
    return {"SOPClassUID": str(ds.SOPClassUID), "SOPInstanceUID": str(ds.SOPInstanceUID)}
