"""Turning the records of ``dicom_io.vocabulary`` into columns and back.

Owns the stored form of findings, regions, model identities and tensors; knows no query.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from functools import lru_cache
from typing import Any

import numpy as np
from sqlalchemy import RowMapping

from dicom_io.vocabulary import (
    Code,
    Detection,
    Finding,
    ImageTensor,
    ModelIdentity,
    PresenceValues,
    Region,
    RegionOutline,
)
from storage.errors import TensorDamaged

_FINDING_FIELDS = tuple(each.name for each in fields(Finding))
_CODE_FIELDS = tuple(each.name for each in fields(Code))
_IDENTITY_FIELDS = tuple(each.name for each in fields(ModelIdentity))


def canonical_digest(value: object) -> str:
    """Return the SHA-256 of a value's canonical JSON (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def finding_to_json(finding: Finding) -> dict[str, Any]:
    """Return a finding as JSON values."""
    # Field by field: ``asdict`` copies every value deeply, which costs more than the rest.
    site = finding.site
    return {
        **{name: getattr(finding, name) for name in _FINDING_FIELDS},
        "code": _code_to_json(finding.code),
        "site": None if site is None else _code_to_json(site),
    }


def _code_to_json(code: Code) -> dict[str, Any]:
    return {name: getattr(code, name) for name in _CODE_FIELDS}


def finding_from_json(stored: Mapping[str, Any]) -> Finding:
    """Return the finding that ``finding_to_json`` stored."""
    site = stored["site"]
    return Finding(
        **{
            **stored,
            "code": Code(**stored["code"]),
            "site": None if site is None else Code(**site),
            "presence": PresenceValues(stored["presence"]),
        }
    )


def findings_to_json(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """Return findings as a JSON list, in their order."""
    return [finding_to_json(finding) for finding in findings]


def detection_to_json(detection: Detection | None) -> dict[str, Any] | None:
    """Return what a detecting network said of places as JSON values; None where it said nothing."""
    return None if detection is None else asdict(detection)


def detection_from_json(stored: Mapping[str, Any] | None) -> Detection | None:
    """Return what ``detection_to_json`` stored."""
    if stored is None:
        return None
    return Detection(tuple(_region(each) for each in stored["regions"]), stored["note"])


def _region(stored: Mapping[str, Any]) -> Region:
    site = stored["site"]
    outlines = tuple(
        RegionOutline(**{**each, "points": tuple((column, row) for column, row in each["points"])})
        for each in stored["outlines"]
    )
    return Region(
        **{
            **stored,
            "code": Code(**stored["code"]),
            "site": None if site is None else Code(**site),
            "outlines": outlines,
        }
    )


def identity_to_json(identity: ModelIdentity) -> dict[str, Any]:
    """Return a model identity as JSON values."""
    return {name: getattr(identity, name) for name in _IDENTITY_FIELDS}


def identity_from_json(stored: Mapping[str, Any]) -> ModelIdentity:
    """Return the identity that ``identity_to_json`` stored."""
    return ModelIdentity(**stored)


@lru_cache(maxsize=64)
def identity_from_text(stored: str) -> ModelIdentity:
    """Return the identity that is stored as this JSON text."""
    return identity_from_json(json.loads(stored))


def uids_from_text(stored: str) -> tuple[str, ...]:
    """Return the UIDs that are stored as this JSON text."""
    return tuple(json.loads(stored))


def tensor_to_columns(tensor: ImageTensor) -> dict[str, Any]:
    """Return a tensor as the columns of table ``tensor``: float32, little-endian, C order."""
    values = np.ascontiguousarray(tensor.values, dtype="<f4")
    return {
        "dtype": "<f4",
        "shape": list(values.shape),
        "axes": list(tensor.axes),
        "spacing_mm": None if tensor.spacing_mm is None else list(tensor.spacing_mm),
        "notes": _plain(tensor.notes),
        "data": values.tobytes(),
    }


def tensor_from_columns(
    row: RowMapping, sop_instance_uids: Sequence[str], preprocessing_digest: str
) -> ImageTensor:
    """Return the tensor that ``tensor_to_columns`` stored; its array is read-only.

    Parameters
    ----------
    row : mapping
        The columns as ``storage.prepared.tensor_as_stored`` selects them.
    sop_instance_uids : sequence of str
    preprocessing_digest : str

    Raises
    ------
    TensorDamaged
        The columns do not fit each other.
    """
    try:
        shape, axes, spacing_mm = _layout(row["shape"], row["axes"], row["spacing_mm"])
        return ImageTensor(
            values=np.frombuffer(row["data"], dtype=row["dtype"]).reshape(shape),
            axes=axes,
            spacing_mm=spacing_mm,
            sop_instance_uids=tuple(sop_instance_uids),
            preprocessing_digest=preprocessing_digest,
            notes=json.loads(row["notes"]),
        )
    except (ValueError, TypeError) as error:
        # Not quoted: what stands there instead of a tensor may be anything.
        raise TensorDamaged(
            f"its tensor in the database is damaged ({type(error).__name__} in reading it back); "
            "check the disk of the data folder, then 'medimgd retry STUDY' prepares it anew"
        ) from error


@lru_cache(maxsize=64)
def _layout(
    shape: str, axes: str, spacing_mm: str
) -> tuple[tuple[int, ...], tuple[str, ...], tuple[float, ...] | None]:
    spacing = json.loads(spacing_mm)
    return (
        tuple(json.loads(shape)),
        tuple(json.loads(axes)),
        None if spacing is None else tuple(spacing),
    )


def _plain(value: object) -> Any:
    """Return notes as JSON values: NumPy scalars and arrays, tuples and enums included."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def plain_json(value: Mapping[str, object]) -> dict[str, Any]:
    """Return a mapping as JSON values; what JSON has no word for becomes text."""
    plain: dict[str, Any] = _plain(value)
    return plain
