"""Where a model saw what it found: asked for positive findings, never allowed to cost a result.

Owns which findings are explained and what is said when a map cannot be had. How a map is computed
is the business of the runtime or of ``model.occlusion``, how it lies on the image that of
``dicom_io.attention``.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dicom_io.vocabulary import Explanation, Finding, ImageTensor, PresenceValues
from model.errors import CannotExplain, ModelError, UnusableOutput
from model.explanation_plan import MethodValues
from model.occlusion import CELLS, occlusion_map
from model.package import ModelPackage
from model.runtimes.port import Attention, Explainer, FloatArray, Predictor
from model.runtimes.signature import probe_shape

_logger = logging.getLogger(__name__)

MOST_EXPLAINED = 4
"""Findings of one input; a picture with more maps than that is not looked at."""

_TOO_MANY = f"only the {MOST_EXPLAINED} most certain findings are explained"
_OTHER_RUNTIME = "the runtime that serves this model computes none of volumes"
_SWITCHED_OFF = "the model package asks for none"
_NO_GEOMETRY = "the images were prepared by a version that did not note where they lie in the input"
_NOT_FINITE = "what was computed for it is not a finite number"
_EMPTY = "no part of the image speaks for the finding more than another"


@dataclass(frozen=True, slots=True)
class Explicable:
    """One analysed input."""

    tensor: ImageTensor
    findings: tuple[Finding, ...]


def explained_findings(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Return the findings that get an explanation, or a word on why not: those present."""
    present = [each for each in findings if each.presence is PresenceValues.PRESENT]
    return tuple(sorted(present, key=lambda each: -each.probability))


def unexplained(findings: Sequence[Finding], reason: str) -> tuple[Explanation, ...]:
    """Return, for every finding that should be explained, that it is not, and why."""
    return tuple(Explanation(each.label, reason=reason) for each in explained_findings(findings))


def explain(
    package: ModelPackage, predictor: Predictor, inputs: Sequence[Explicable]
) -> list[tuple[Explanation, ...]]:
    """Explain the positive findings of inputs of one shape.

    Whatever fails here becomes the reason why there is no map: findings are true without one.

    Parameters
    ----------
    package : ModelPackage
        Whose findings they are.
    predictor : Predictor
        Loaded. One that is no ``Explainer`` is asked for predictions of covered images instead.
    inputs : sequence of Explicable

    Returns
    -------
    list of tuple of Explanation
        In the order of `inputs`; one explanation per positive finding, the most certain first.
    """
    wanted = [explained_findings(each.findings) for each in inputs]
    asked = [
        (each.tensor, finding)
        for each, found in zip(inputs, wanted, strict=True)
        for finding in found[:MOST_EXPLAINED]
    ]
    if not asked:
        return [() for _ in inputs]
    answers = iter(_answers(package, predictor, asked))
    return [
        tuple(next(answers) for _ in found[:MOST_EXPLAINED])
        + tuple(Explanation(each.label, reason=_TOO_MANY) for each in found[MOST_EXPLAINED:])
        for found in wanted
    ]


def looks_inside(package: ModelPackage, predictor: Predictor) -> bool:
    """Return whether many inputs are explained in one computation, by what the network holds.

    Else parts of each are covered, one prediction after the other.
    """
    return package.explanation.method.needs_the_network and isinstance(predictor, Explainer)


def explanation_in_words(package: ModelPackage, predictor: Predictor) -> str:
    """Say how a loaded predictor explains findings of its package, or ``none`` and why."""
    method = package.explanation.method
    if method is MethodValues.NONE:
        return f"none: {_SWITCHED_OFF}"
    if method.needs_the_network and isinstance(predictor, Explainer):
        blank = np.zeros((1, *probe_shape(package.recipe)), np.float32)
        try:
            found = predictor.explain(blank, [package.labels[0].index])
        except CannotExplain as error:
            return f"none: {error}"
        if found is not None:
            cells = " x ".join(str(edge) for edge in found.values.shape[1:])
            return f"{found.method} at {', '.join(found.layers)}, {cells} cells"
    if package.recipe.kind != "image":
        return f"none: {_OTHER_RUNTIME}"
    return f"{MethodValues.OCCLUSION.spoken_name}, {CELLS} x {CELLS} cells"


def _answers(
    package: ModelPackage, predictor: Predictor, asked: Sequence[tuple[ImageTensor, Finding]]
) -> list[Explanation]:
    regions = [_region(tensor.notes) for tensor, _ in asked]
    placed = [each for each, region in zip(asked, regions, strict=True) if region is not None]
    try:
        attention = _attention(package, predictor, placed) if placed else None
    except ModelError as error:
        _logger.warning(
            "%s explains nothing: %s", package.at_version, error, extra={"action": "unexplained"}
        )
        return [Explanation(finding.label, reason=str(error)) for _, finding in asked]
    values = iter(attention.values if attention else ())
    return [
        Explanation(finding.label, reason=_NO_GEOMETRY)
        if region is None or attention is None
        else _explanation(tensor, finding, region, next(values), attention)
        for (tensor, finding), region in zip(asked, regions, strict=True)
    ]


def _attention(
    package: ModelPackage, predictor: Predictor, asked: Sequence[tuple[ImageTensor, Finding]]
) -> Attention:
    method = package.explanation.method
    if method is MethodValues.NONE:
        raise CannotExplain(_SWITCHED_OFF)
    attention = None
    if method.needs_the_network and isinstance(predictor, Explainer):
        outputs = {label.name: label.index for label in package.labels}
        attention = predictor.explain(
            np.stack([tensor.values for tensor, _ in asked]),
            [outputs[finding.label] for _, finding in asked],
        )
    return attention or _occlusion(package, predictor, asked)


def _occlusion(
    package: ModelPackage, predictor: Predictor, asked: Sequence[tuple[ImageTensor, Finding]]
) -> Attention:
    """Find out from outside, where a runtime cannot look into the network."""
    if package.recipe.kind != "image":
        raise CannotExplain(_OTHER_RUNTIME)
    places = {label.name: place for place, label in enumerate(package.labels)}
    maps = [_covered(predictor, tensor.values, places[finding.label]) for tensor, finding in asked]
    return Attention(np.stack(maps), MethodValues.OCCLUSION.spoken_name, ())


def _covered(predictor: Predictor, values: FloatArray, place: int) -> FloatArray:
    try:
        return occlusion_map(predictor, values, place)
    except UnusableOutput:
        # Of a covered image: that says nothing about the other inputs.
        return np.full((CELLS, CELLS), np.nan, np.float32)


def _explanation(
    tensor: ImageTensor,
    finding: Finding,
    region: tuple[float, float, float, float],
    values: FloatArray,
    attention: Attention,
) -> Explanation:
    strength = float(values.max())
    if not math.isfinite(strength):
        return Explanation(finding.label, reason=_NOT_FINITE)
    if strength <= 0:
        return Explanation(finding.label, reason=_EMPTY)
    return Explanation(
        label=finding.label,
        method=attention.method,
        layers=attention.layers,
        values=np.ascontiguousarray(values / np.float32(strength), dtype=np.float32),
        strength=strength,
        region=region,
        source_slices=_source_slices(tensor),
    )


def _region(notes: Mapping[str, Any]) -> tuple[float, float, float, float] | None:
    stated = notes.get("source_region")
    if stated is None:
        return None
    top, left, bottom, right = (float(edge) for edge in stated)
    return top, left, bottom, right


def _source_slices(tensor: ImageTensor) -> int:
    shape: Any = tensor.notes.get("source_shape")
    return int(shape[0]) if shape is not None and len(shape) == 3 else 1
