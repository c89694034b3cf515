"""Regions from a detecting network's own map: positions above a threshold, joined into boxes.

Owns the way from logits on cells to boxes on the source's pixels. A map that explains a finding
never comes here: it says where a network looked, not where something is.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from dicom_io.source_geometry import Box, SourceGeometry, source_geometry
from dicom_io.vocabulary import Detection, Finding, ImageTensor, PresenceValues, Region
from dicom_io.vocabulary import RegionOutline as Outline
from model.errors import CannotLocate, ModelError
from model.explain import Explicable
from model.package import ModelPackage
from model.region_plan import RegionPlan
from model.runtimes.port import Detector, FloatArray, Predictor
from model.runtimes.signature import probe_shape

_logger = logging.getLogger(__name__)

_NO_GEOMETRY = "the images were prepared by a version that did not note where they lie in the input"
_NO_RUNTIME = "the runtime that serves this model gives no map"
_NO_REGIONS = "no regions can be shown"
"""How the note begins where no map was looked at; stored with results."""
_NOTHING = "no position of the map reaches the model's threshold for regions"

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Component:
    """Cells above the threshold that touch each other, edges and corners counted."""

    cells: FloatArray
    """(slices, rows, columns) of the whole map, logits."""
    labels: npt.NDArray[np.int32]
    """Of the same shape: which component each cell belongs to."""
    number: int
    """Its own label."""
    score: float
    """The highest logit in it."""

    def mask(self, number: int) -> Mask:
        """Return where it is on one slice of the map, (rows, columns)."""
        found: Mask = self.labels[number] == self.number
        return found


def detect(
    package: ModelPackage, predictor: Predictor, inputs: Sequence[Explicable]
) -> list[Detection | None]:
    """Return where the model sees what it found, for inputs of one shape.

    Whatever fails here becomes a note: findings are true without regions.

    Parameters
    ----------
    package : ModelPackage
        Whose findings they are.
    predictor : Predictor
        Loaded. One that is no ``Detector`` finds none, and the note says so.
    inputs : sequence of Explicable

    Returns
    -------
    list of Detection or None
        In the order of `inputs`; None where nothing is to be said: the package tells no places,
        or the finding they belong to is absent.
    """
    are_asked = [regions_are_asked(package, each.findings) for each in inputs]
    plan = package.regions
    if plan is None or not any(are_asked):
        return [None for _ in inputs]
    asked = [each.tensor for each, is_asked in zip(inputs, are_asked, strict=True) if is_asked]
    answers = iter(_detections(package, plan, predictor, asked))
    return [next(answers) if is_asked else None for is_asked in are_asked]


def undetected(package: ModelPackage, findings: Sequence[Finding], why: str) -> Detection | None:
    """Return that no region was looked for, where one could have been found."""
    return Detection(note=_no_regions(why)) if regions_are_asked(package, findings) else None


def was_looked_for(detection: Detection) -> bool:
    """Return whether a map was looked at, whether or not it showed anything."""
    return not detection.note.startswith(_NO_REGIONS)


def regions_are_asked(package: ModelPackage, findings: Sequence[Finding]) -> bool:
    """Return whether the package tells the places of a finding, and that one is not absent."""
    plan = package.regions
    return plan is not None and any(
        each.label == plan.label and each.presence is not PresenceValues.ABSENT for each in findings
    )


def regions_in_words(package: ModelPackage, predictor: Predictor) -> str:
    """Say where a loaded predictor reads regions from, or ``none`` and why."""
    plan = package.regions
    if plan is None:
        return "none: the model package asks for none"
    blank = np.zeros((1, *probe_shape(package.recipe)), np.float32)
    try:
        if not isinstance(predictor, Detector):
            raise CannotLocate(_NO_RUNTIME)
        cells = predictor.locate(blank)
    except CannotLocate as error:
        return f"none: {error}"
    edges = " x ".join(str(edge) for edge in cells.shape[1:-1])
    return f"the layer {plan.layer} for {plan.label}, {edges} cells"


def _detections(
    package: ModelPackage, plan: RegionPlan, predictor: Predictor, tensors: Sequence[ImageTensor]
) -> list[Detection]:
    try:
        if not isinstance(predictor, Detector):
            raise CannotLocate(_NO_RUNTIME)
        maps = predictor.locate(np.stack([tensor.values for tensor in tensors]))
    except ModelError as error:
        _logger.warning(
            "%s finds no regions: %s", package.at_version, error, extra={"action": "no_regions"}
        )
        return [Detection(note=_no_regions(str(error))) for _ in tensors]
    return [
        _detection(plan, tensor, each[..., plan.index])
        for tensor, each in zip(tensors, maps, strict=True)
    ]


def _no_regions(why: str) -> str:
    return f"{_NO_REGIONS}: {why}"


def _detection(plan: RegionPlan, tensor: ImageTensor, cells: FloatArray) -> Detection:
    geometry = source_geometry(tensor)
    if geometry is None:
        return Detection(note=_no_regions(_NO_GEOMETRY))
    if not np.isfinite(cells).all():
        return Detection(note=_no_regions("the map holds numbers that are not finite"))
    return found_regions(plan, geometry, cells)


def found_regions(plan: RegionPlan, geometry: SourceGeometry, cells: FloatArray) -> Detection:
    """Return the regions of one map.

    Parameters
    ----------
    plan : RegionPlan
        Threshold, least size, most regions and what they are called.
    geometry : SourceGeometry
        How the source lies in the input.
    cells : numpy.ndarray
        ([slices,] rows, columns) float32 logits; cells divide the input evenly.
    """
    volume = cells.reshape((-1, *cells.shape[-2:])).astype(np.float32)
    limit = float(np.log(plan.threshold / (1 - plan.threshold)))
    regions: list[Region] = []
    left_out = 0
    for component in _components(volume, limit, plan.least_cells):
        if len(regions) == plan.most:
            left_out += 1
        elif outlines := _outlines(component, geometry, limit):
            regions.append(_region(plan, len(regions) + 1, component, outlines))
    if not regions:
        return Detection(note=_NOTHING)
    note = f"{left_out} more regions are left out: the model reports the {plan.most} most certain"
    return Detection(tuple(regions), note if left_out else "")


def _components(cells: FloatArray, limit: float, least: int) -> Iterator[_Component]:
    """Yield the components of a map, the highest first; where they tie, in the order of cells."""
    # Corners join too: a small thing that lies across cells would else be several.
    labels, count = ndimage.label(cells >= limit, structure=np.ones((3, 3, 3)))
    numbers = np.arange(1, count + 1)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    scores = np.asarray(ndimage.maximum(cells, labels, numbers)) if count else np.empty(0)
    for place in np.argsort(-scores, kind="stable"):
        if sizes[place] >= least:
            yield _Component(cells, labels, int(numbers[place]), float(scores[place]))


def _region(
    plan: RegionPlan, number: int, component: _Component, outlines: tuple[Outline, ...]
) -> Region:
    return Region(
        label=plan.label,
        number=number,
        name=plan.name,
        code=plan.code,
        site=plan.site,
        certainty=_probability(component.score),
        threshold=plan.threshold,
        outlines=outlines,
    )


def _outlines(component: _Component, geometry: SourceGeometry, limit: float) -> tuple[Outline, ...]:
    """Return a box on each slice of the source that a component is seen on.

    Empty when all of it lies in what was padded.
    """
    count, slices = component.cells.shape[0], len(geometry.planes)
    # Where the centres of the source's slices lie in the map, in slices of the map.
    places = [geometry.centre_of(n) * count - 0.5 for n in range(slices)]
    found = [_outline(component, geometry, n, place, limit) for n, place in enumerate(places)]
    if not any(found):
        # It lies between two slices of a coarser source: it is shown on the nearest one.
        highest = np.where(component.labels == component.number, component.cells, -np.inf)
        peak = int(np.unravel_index(np.argmax(highest), highest.shape)[0])
        nearest = int(np.argmin([abs(place - peak) for place in places]))
        found = [_outline(component, geometry, nearest, peak, limit)]
    return tuple(each for each in found if each is not None)


def _outline(
    component: _Component, geometry: SourceGeometry, number: int, place: float, limit: float
) -> Outline | None:
    """Return the box on one slice of the source, the map interpolated linearly at its place."""
    count = component.cells.shape[0]
    place = min(max(place, 0.0), count - 1.0)
    low = int(place)
    share = place - low
    high = min(low + 1, count - 1)
    mask = component.mask(low) | component.mask(high) if share else component.mask(low)
    if not mask.any():
        return None
    plane = component.cells[low] * (1 - share) + component.cells[high] * share
    mask &= plane >= limit
    if not mask.any():
        return None
    certainty = _probability(float(plane[mask].max()))
    return geometry.outline(number, _box(plane, mask, limit), certainty)


def _box(plane: FloatArray, mask: Mask, limit: float) -> Box:
    """Return the box around the cells of a mask, its edges where the map crosses the threshold."""
    top, bottom = _bounds(plane, mask, limit)
    left, right = _bounds(plane.T, mask.T, limit)
    rows, columns = plane.shape
    return Box(top / rows, left / columns, bottom / rows, right / columns)


def _bounds(plane: FloatArray, mask: Mask, limit: float) -> tuple[float, float]:
    """Return where a mask begins and ends along the first axis, in cells from the outer edge.

    At least one cell: what is smaller cannot be told from it.
    """
    inside = np.flatnonzero(mask.any(axis=1))
    first, last = int(inside[0]), int(inside[-1])
    start = first + 0.5 - _reach(plane, mask, first, -1, limit)
    end = last + 0.5 + _reach(plane, mask, last, 1, limit)
    if end - start < 1.0:
        middle = float(np.clip((start + end) / 2, 0.5, len(plane) - 0.5))
        start, end = middle - 0.5, middle + 0.5
    return start, end


def _reach(plane: FloatArray, mask: Mask, line: int, step: int, limit: float) -> float:
    """Return how far beyond the centres of the outermost line the map stays above the threshold.

    In cells, 0 to 1, by linear interpolation to the centres of the next line; to the edge of the
    cell where there is none.
    """
    beyond = line + step
    if not 0 <= beyond < len(plane):
        return 0.5
    own, next_to = plane[line][mask[line]], plane[beyond][mask[line]]
    fall = np.maximum(own - next_to, np.finfo(np.float32).eps)
    return float(np.clip((own - limit) / fall, 0.0, 1.0).max())


def _probability(logit: float) -> float:
    small = float(np.exp(-abs(logit)))
    return 1 / (1 + small) if logit >= 0 else small / (1 + small)
