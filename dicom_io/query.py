"""Asking a peer whether it holds an instance (Study Root C-FIND at IMAGE level).

Owns the query and the reading of its answer. Must not know why somebody asks, nor what follows.
"""

from __future__ import annotations

from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom.association import Association
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelFind,
)

from dicom_io.association import Context, Destination, hold_reactor, open_association

_PENDING = frozenset({0xFF00, 0xFF01})
_SUCCESS = 0x0000


def holds_instance(
    destination: Destination,
    study_instance_uid: str,
    series_instance_uid: str,
    sop_instance_uid: str,
) -> bool | None:
    """Ask whether the peer holds one instance.

    Returns
    -------
    bool or None
        None when the peer cannot say: it does not support the query, fails it, or does not
        finish answering. That is no evidence of either.

    Raises
    ------
    AssociationFailed
        If no association could be opened.

    References
    ----------
    PS3.4 section C.6.2 (Study Root Query/Retrieve Information Model).
    """
    context = Context(StudyRootQueryRetrieveInformationModelFind, ImplicitVRLittleEndian)
    identifier = _identifier(study_instance_uid, series_instance_uid, sop_instance_uid)
    with open_association(destination, [context]) as assoc:
        return None if assoc is None else _is_found(assoc, identifier)


def _identifier(
    study_instance_uid: str, series_instance_uid: str, sop_instance_uid: str
) -> Dataset:
    ds = Dataset()
    ds.QueryRetrieveLevel = "IMAGE"
    ds.StudyInstanceUID = study_instance_uid
    ds.SeriesInstanceUID = series_instance_uid
    ds.SOPInstanceUID = sop_instance_uid
    return ds


def _is_found(assoc: Association, identifier: Dataset) -> bool | None:
    is_found = False
    final: int | None = None
    hold_reactor(assoc)
    for status, match in assoc.send_c_find(identifier, StudyRootQueryRetrieveInformationModelFind):
        final = int(status.Status) if "Status" in status else None
        # A peer that ignores a key answers with other instances: only ours is evidence.
        if final in _PENDING and match is not None:
            is_found = is_found or match.get("SOPInstanceUID") == identifier.SOPInstanceUID
    if is_found:
        return True
    return False if final == _SUCCESS else None
