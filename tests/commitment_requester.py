"""A modality that asks for storage commitment, over pynetdicom, for tests of any rung."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation
from pynetdicom.sop_class import CTImageStorage, StorageCommitmentPushModel, Verification

from dicom_io.commitment import STORAGE_COMMITMENT_INSTANCE_UID, Reference

CT = str(CTImageStorage)
REFERENCES = tuple(Reference(CT, f"1.2.3.{number}") for number in range(1, 4))


@dataclass
class Requester:
    """A modality: asks for commitment and takes reports."""

    reports: list[tuple[int, Dataset]] = field(default_factory=list)
    status: int | Dataset = 0x0000
    pause: float = 0.0
    """Before a report is answered."""
    ae_title: str = "CT1"
    roles: list[tuple[bool, bool]] = field(default_factory=list)
    """Proposed to it on new associations, as SCU and as SCP."""

    def on_report(self, event: evt.Event):
        time.sleep(self.pause)
        self.reports.append((event.request.EventTypeID, event.event_information))
        return self.status, None

    def committed(self) -> list[str]:
        """Return what the last report commits to."""
        items = self.reports[-1][1].get("ReferencedSOPSequence", ())
        return [str(item.ReferencedSOPInstanceUID) for item in items]

    def failed(self) -> dict[str, int]:
        """Return what the last report does not commit to, with the reasons."""
        items = self.reports[-1][1].get("FailedSOPSequence", ())
        return {str(item.ReferencedSOPInstanceUID): int(item.FailureReason) for item in items}

    @contextmanager
    def listening(self, port: int = 0, *, answers_roles: bool = True) -> Iterator[int]:
        """Take reports on new associations meanwhile."""
        ae = AE(ae_title=self.ae_title)
        roles = {"scu_role": False, "scp_role": True} if answers_roles else {}
        ae.add_supported_context(StorageCommitmentPushModel, **roles)
        handlers = [*self.handlers(), (evt.EVT_REQUESTED, self._remember_roles)]
        server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers)
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()

    def _remember_roles(self, event: evt.Event) -> None:
        items = event.assoc.requestor.user_information
        self.roles.extend(
            (item.scu_role, item.scp_role)
            for item in items
            if isinstance(item, SCP_SCU_RoleSelectionNegotiation)
        )

    def handlers(self):
        return [(evt.EVT_N_EVENT_REPORT, self.on_report)]

    def associate(self, port: int, **more) -> Association:
        ae = AE(ae_title=self.ae_title)
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 20
        ae.add_requested_context(StorageCommitmentPushModel)
        ae.add_requested_context(Verification)
        return ae.associate(
            "127.0.0.1", port, ae_title="MEDIMGD", evt_handlers=self.handlers(), **more
        )


def information(
    references: Sequence[Reference] = REFERENCES, transaction: str | None = "1.2.3"
) -> Dataset:
    ds = Dataset()
    if transaction is not None:
        ds.TransactionUID = transaction
    ds.ReferencedSOPSequence = []
    for reference in references:
        item = Dataset()
        item.ReferencedSOPClassUID = reference.sop_class_uid
        item.ReferencedSOPInstanceUID = reference.sop_instance_uid
        ds.ReferencedSOPSequence.append(item)
    return ds


def ask(assoc: Association, ds: Dataset | None = None, **changes) -> Dataset:
    """Send the N-ACTION and return its status."""
    wanted = {
        "action_type": 1,
        "class_uid": StorageCommitmentPushModel,
        "instance_uid": STORAGE_COMMITMENT_INSTANCE_UID,
        **changes,
    }
    status, _ = assoc.send_n_action(information() if ds is None else ds, **wanted)
    return status


def wait_for(condition: Callable[[], Any], seconds: float = 10.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.01)
    raise AssertionError("waited in vain")
