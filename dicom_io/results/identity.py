"""Derived UIDs: the same result always has the same UID, another result never has.

Owns the naming rules of results. Knows no data set: it hashes what it is given (PS3.5 B.2 allows
``2.25.`` followed by any UUID as a decimal number; ours are name-based, RFC 9562 version 5).
"""

from __future__ import annotations

import uuid
import zlib

from dicom_io.vocabulary import ModelIdentity

ENCODER_VERSION = "1"
"""Counts changes of how results are written that the data set itself does not show.

A PACS that holds a UID keeps the old object whatever is sent under it, so a corrected encoding
needs other UIDs.
"""

_FIRST_SERIES_NUMBER = 9001
_SERIES_NUMBER_SLOTS = 900


def derived_uid(namespace: uuid.UUID, role: str, *parts: str) -> str:
    """Return ``2.25.<UUIDv5>`` over the role and the parts, at most 44 characters long.

    Parameters
    ----------
    namespace : uuid.UUID
        Generated once per installation, so that two sites with the same de-identified study do
        not collide.
    role : str
        What is named: ``model``, ``series``, ``instance`` or ``tracking``.
    *parts : str
        Everything that tells one object of this role from another. The length of each part is
        hashed with it, so that no two different lists read the same.
    """
    name = "|".join(f"{len(part)}:{part}" for part in (role, *parts))
    return f"2.25.{uuid.uuid5(namespace, name).int}"


def model_uid(namespace: uuid.UUID, model: ModelIdentity) -> str:
    """Return the UID of a model as a device; every re-training gives another one."""
    return derived_uid(namespace, "model", model.name, model.version, model.weights_sha256)


def series_uid(
    namespace: uuid.UUID,
    study_instance_uid: str,
    model: ModelIdentity,
    document_role: str,
    description: str,
) -> str:
    """Return the UID of the series that holds all versions of one document with one flag.

    The description is part of the name because archives show the series description of the first
    instance they were given: a positive that joined a series called negative would stay hidden.
    """
    return derived_uid(
        namespace, "series", study_instance_uid, model.name, document_role, description
    )


def series_number(model: ModelIdentity, document_role: str) -> int:
    """Return a stable Series Number from 9001 on, so that results sort behind the images."""
    spread = zlib.crc32(f"{document_role}|{model.name}".encode())
    return _FIRST_SERIES_NUMBER + spread % _SERIES_NUMBER_SLOTS


def instance_uid(
    namespace: uuid.UUID, series_instance_uid: str, sop_class_uid: str, content_sha256: str
) -> str:
    """Return the UID of one result object.

    Parameters
    ----------
    content_sha256 : str
        The digest of the complete encoded data set without its own UID: findings, model, source
        instances, patient attributes, software version, everything. Equal UID therefore implies
        equal content.
    """
    return derived_uid(
        namespace, "instance", series_instance_uid, sop_class_uid, content_sha256, ENCODER_VERSION
    )


def tracking_uid(
    namespace: uuid.UUID, study_instance_uid: str, model: ModelIdentity, tracked: str
) -> str:
    """Return the UID under which a finding is followed through all versions of a result."""
    return derived_uid(namespace, "tracking", study_instance_uid, model.name, tracked)
