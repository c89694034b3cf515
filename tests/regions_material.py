"""Regions for the tests of what a detecting model says: one place that knows a complete one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dicom_io.vocabulary import Code, Region, RegionOutline
from tests.results_material import LUNG

NODULE = Code("27925004", "SCT", "Nodule")


def make_outline(uid: str, certainty: float = 0.8, **changes: Any) -> RegionOutline:
    """Return a box from column 1 to 3 and row 0.5 to 2 of an image."""
    box = ((1.0, 0.5), (3.0, 0.5), (3.0, 2.0), (1.0, 2.0), (1.0, 0.5))
    return RegionOutline(**{"sop_instance_uid": uid, "points": box, "certainty": certainty,
                            **changes})  # fmt: skip


def make_region(uids: Sequence[str], number: int = 1, **changes: Any) -> Region:
    """Return a region of the finding Pneumonia on these images."""
    fields: dict[str, Any] = {
        "label": "Pneumonia",
        "number": number,
        "name": "Nodule",
        "code": NODULE,
        "site": LUNG,
        "certainty": 0.8,
        "threshold": 0.4,
        "outlines": tuple(make_outline(uid) for uid in uids),
    }
    return Region(**{**fields, **changes})
