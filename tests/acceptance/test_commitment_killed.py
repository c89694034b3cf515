"""What an answered request for storage commitment is owed, whoever is killed meanwhile."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pydicom
import pytest
from pynetdicom.sop_class import StorageCommitmentPushModel

from daemon.demo import SAMPLES
from dicom_io.commitment import Reference
from storage.commitments import list_commitments
from storage.states import CommitmentState
from tests.acceptance.installation import Installation
from tests.commitment_requester import Requester, ask, information

CT_FILES = sorted((SAMPLES / "ct").glob("*.dcm"))


def references() -> list[Reference]:
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in CT_FILES]
    return [Reference(str(ds.SOPClassUID), str(ds.SOPInstanceUID)) for ds in headers]


@pytest.fixture
def requester() -> Requester:
    return Requester()


@pytest.fixture
def reachable(requester: Requester, monkeypatch: pytest.MonkeyPatch) -> Iterator[Requester]:
    """A requester that listens, and whose port is known to installations made from now on."""
    with requester.listening() as port:
        rules = [{"ae_title": "CT1", "network": "127.0.0.1/32", "port": port}, {}]
        monkeypatch.setenv("MEDIMGD_RECEIVER__STORAGE_COMMITMENT", "true")
        monkeypatch.setenv("MEDIMGD_RECEIVER__PEERS", json.dumps(rules))
        yield requester


def commitment_states(site: Installation) -> list[CommitmentState]:
    return [record.state for record in site.read(list_commitments, ())]


def test_storage_commitment_is_not_offered_unless_it_is_switched_on(
    installation: Callable[..., Installation], requester: Requester
) -> None:
    site = installation()
    site.start("receiver")

    assoc = requester.associate(site.port)

    refused = {context.abstract_syntax for context in assoc.rejected_contexts}
    assert refused == {StorageCommitmentPushModel}
    assoc.release()


def test_a_receiver_killed_between_answer_and_report_leaves_the_report_to_the_courier(
    installation: Callable[..., Installation], reachable: Requester
) -> None:
    site = installation()
    site.start("receiver")
    site.send(*CT_FILES)
    assoc = reachable.associate(site.port)

    assert ask(assoc, information(references())).Status == 0x0000
    site.kill("receiver")
    assert reachable.reports == []
    site.start("receiver", "courier")

    site.wait(lambda: commitment_states(site) == [CommitmentState.REPORTED], "the report")
    assert [event for event, _ in reachable.reports] == [1]
    assert sorted(reachable.committed()) == sorted(ref.sop_instance_uid for ref in references())
    assert reachable.roles == [(False, True)]


def test_a_courier_killed_while_it_reports_reports_again(
    installation: Callable[..., Installation], reachable: Requester
) -> None:
    reachable.pause = 3.0
    site = installation()
    site.start("receiver", "courier")
    site.send(*CT_FILES)
    assoc = reachable.associate(site.port)
    ask(assoc, information(references()))
    assoc.release()
    site.wait(lambda: reachable.roles, "the report to be on its way")

    site.kill("courier")
    site.start("courier")

    site.wait(lambda: commitment_states(site) == [CommitmentState.REPORTED], "the report")
    assert len(reachable.roles) == 2
    assert sorted(reachable.committed()) == sorted(ref.sop_instance_uid for ref in references())
