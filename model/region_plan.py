"""How a detecting package says where its finding lies: the manifest's ``[regions]``.

Owns that table's fields and their defaults. Knows no network and no array.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from dicom_io.vocabulary import Code
from model.labels import Label
from model.manifest import ManifestTable

DEFAULT_LAYER = "map"
DEFAULT_MOST = 10
MOST_REGIONS = 100
LARGEST_LEAST_CELLS = 1_000_000

_NAME_PATTERN = r"[^\\\x00-\x1f\x7f]{1,48}"
_UNWRITABLE = re.compile(r"[\\\x00-\x1f\x7f]")
_NAME_RULE = "must be one line of at most 48 characters without a backslash"
_LONGEST_NAME = 48
"""Leaves room for a number behind it: tracking identifiers are read on lists."""


@dataclass(frozen=True, slots=True)
class RegionPlan:
    """Which map holds a logit per position, and what its peaks are called."""

    label: str
    """The label that the regions belong to: they exist only where it is Present or Undetermined."""
    index: int
    """Which of the map's outputs speaks for it."""
    name: str
    """What one region is called; a number is added: ``Nodule 1``."""
    code: Code
    """What a region is, for ``Finding``."""
    site: Code | None
    """Where it lies; the label's own when the table names none."""
    threshold: float
    """Positions whose sigmoid reaches it belong to a region."""
    layer: str = DEFAULT_LAYER
    """The network's layer, or in an ONNX file the output, (batch, [slices,] rows, columns,
    outputs): logits on cells that divide the input evenly."""
    least_cells: int = 1
    """Smaller regions are left out."""
    most: int = DEFAULT_MOST
    """Only so many are reported, the most certain ones."""


def read_region_plan(
    manifest: ManifestTable, labels: Sequence[Label], output_kind: str
) -> RegionPlan | None:
    """Read the manifest's table; None when there is none: the model does not say where."""
    if not manifest.has("regions"):
        return None
    table = manifest.table("regions")
    label = _label(table, labels)
    if output_kind == "softmax":
        manifest.faults.append(
            "regions: a map is judged output by output through the sigmoid, which says nothing of "
            "classes that exclude each other: [output] kind must not be softmax"
        )
    if label is None:
        return None
    plan = RegionPlan(
        label=label.name,
        index=label.index,
        name=table.text(
            "name",
            _NAME_PATTERN,
            _NAME_RULE,
            default=_UNWRITABLE.sub(" ", label.name)[:_LONGEST_NAME],
        ),
        code=table.code("code") if table.has("code") else label.code,
        site=table.code("site") if table.has("site") else label.site,
        threshold=_threshold(table),
        layer=table.text("layer", default=DEFAULT_LAYER),
        least_cells=table.whole_number("least_cells", 1, LARGEST_LEAST_CELLS, default=1),
        most=table.whole_number("most", 1, MOST_REGIONS, default=DEFAULT_MOST),
    )
    table.refuse_unknown()
    return plan


def _threshold(table: ManifestTable) -> float:
    threshold = table.number("threshold", 0.0, 1.0)
    if table.has("threshold") and threshold in (0.0, 1.0):
        # Everything or nothing would be a region.
        table.add_fault("threshold", "must lie between 0 and 1, both excluded")
    return threshold


def _label(table: ManifestTable, labels: Sequence[Label]) -> Label | None:
    """Return the label that the regions speak for; the only one need not be named."""
    name = table.text("label", default=labels[0].name if len(labels) == 1 else None)
    found = [label for label in labels if label.name == name]
    if found:
        return found[0]
    if name:
        known = ", ".join(label.name for label in labels)
        table.add_fault("label", f"must be the name of one of the labels, {known}")
    # Faulty by now; the other fields are read all the same, so that all faults are named at once.
    return labels[0] if labels else None
