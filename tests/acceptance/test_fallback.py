"""An archive that does not take Comprehensive 3D SR gets the same report in a class it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from pynetdicom import AE, _config, evt
from pynetdicom.sop_class import (
    ComprehensiveSRStorage,
    EnhancedSRStorage,
    SecondaryCaptureImageStorage,
)

from daemon.demo import SAMPLES, bundled_samples
from dicom_io.results.request import SRClassValues
from storage.states import DeliveryState
from tests.acceptance.conftest import TinyPackages
from tests.acceptance.installation import Archive, Installation

CT = bundled_samples()[1]


@pytest.fixture
def old_archive(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[list[str], Archive]]:
    """A pynetdicom archive that knows only the classes it is given."""
    # The product's own receiver takes any class; this peer must not.
    monkeypatch.setattr(_config, "UNRESTRICTED_STORAGE_SERVICE", False)
    received: list[str] = []
    ae = AE("ARCHIVE")
    for sop_class in request.param:
        ae.add_supported_context(sop_class)

    def on_store(event: evt.Event) -> int:
        received.append(str(event.request.AffectedSOPClassUID))
        return 0

    server = ae.start_server(
        ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, on_store)]
    )
    yield received, Archive("old", server.server_address[1])
    server.shutdown()


@pytest.mark.parametrize(
    ("old_archive", "expected"),
    [
        ([SecondaryCaptureImageStorage, ComprehensiveSRStorage], SRClassValues.COMPREHENSIVE),
        ([SecondaryCaptureImageStorage, EnhancedSRStorage], SRClassValues.ENHANCED),
    ],
    indirect=["old_archive"],
)
def test_report_steps_down_to_a_class_the_archive_takes(
    installation: Callable[..., Installation], tiny_packages: TinyPackages, old_archive, expected
) -> None:
    received, archive = old_archive
    site = installation([archive], models=tiny_packages.folder)
    site.start("receiver", "scheduler", "preparer", "worker", "courier")

    site.send(SAMPLES / "ct")
    dossier = site.wait_until_over(CT.study_instance_uid, 6)

    assert received == [SecondaryCaptureImageStorage, str(expected)]
    assert {each.state for each in dossier.deliveries} == {DeliveryState.SENT}
    assert "reports are sent as" in site.log()


@pytest.mark.parametrize("old_archive", [[SecondaryCaptureImageStorage]], indirect=True)
def test_archive_without_any_report_class_gets_the_picture_and_asks_for_a_person(
    installation: Callable[..., Installation], tiny_packages: TinyPackages, old_archive
) -> None:
    received, archive = old_archive
    site = installation([archive], models=tiny_packages.folder)
    site.start("receiver", "scheduler", "preparer", "worker", "courier")

    site.send(SAMPLES / "ct")
    dossier = site.wait_until_over(CT.study_instance_uid, 6)

    states = {each.role: each.state for each in dossier.deliveries}
    assert states == {"SC": DeliveryState.SENT, "SR": DeliveryState.REJECTED}
    assert received == [SecondaryCaptureImageStorage]
    assert "was rejected or given up" in site.run("status", check=3).stdout
