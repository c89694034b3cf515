"""How a package wants its positive findings explained: the manifest's ``[explanation]``.

Owns that table's fields and their defaults. Knows no network.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from model.manifest import ManifestTable

DEFAULT_CELLS = 7
"""What the usual backbones end in: 32 times smaller than an input of 224 pixels a side."""

MOST_CELLS = 256


class MethodValues(StrEnum):
    """How it is found out what speaks for a finding."""

    HIRES_CAM = "hires-cam"
    """The gradient of each cell weighs the features of that cell (Draelos and Carin, 2020). Says
    what Grad-CAM says where the network ends in a global average, and stays true elsewhere."""
    GRAD_CAM = "grad-cam"
    """The mean gradient over all cells weighs the features (Selvaraju et al., 2017)."""
    OCCLUSION = "occlusion"
    """The score lost when parts of an image are covered (Zeiler and Fergus, 2014): on any runtime,
    for 64 predictions a finding. Takes the place of the others where a runtime computes none."""
    NONE = "none"
    """No map; the picture says so."""

    @property
    def spoken_name(self) -> str:
        """The method's name as its authors write it; empty for none."""
        names = {"hires-cam": "HiResCAM", "grad-cam": "Grad-CAM", "occlusion": "Occlusion"}
        return names.get(self.value, "")

    @property
    def needs_the_network(self) -> bool:
        """True for the methods that look into a network; only some runtimes can."""
        return self in (MethodValues.HIRES_CAM, MethodValues.GRAD_CAM)


@dataclass(frozen=True, slots=True)
class ExplanationPlan:
    """What to compute for a positive finding."""

    method: MethodValues = MethodValues.HIRES_CAM
    layers: tuple[str, ...] = ()
    """The layers to look at, one for each averaged network; empty leaves the choice to `cells`."""
    cells: int = DEFAULT_CELLS
    """The deepest layer whose map has this many rows and columns at least is looked at."""


def read_explanation_plan(table: ManifestTable) -> ExplanationPlan:
    """Read the manifest's table; every field may be absent."""
    methods = ", ".join(MethodValues)
    method = table.text(
        "method",
        "|".join(MethodValues),
        f"must be one of {methods}",
        default=MethodValues.HIRES_CAM,
    )
    layers = table.texts("layers")
    cells = table.whole_number("cells", 1, MOST_CELLS, default=DEFAULT_CELLS)
    if layers and table.has("cells"):
        table.add_fault("cells", "chooses a layer and has no meaning beside layers; remove one")
    table.refuse_unknown()
    return ExplanationPlan(MethodValues(method or MethodValues.HIRES_CAM), layers, cells)
