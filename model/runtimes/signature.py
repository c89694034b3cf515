"""What a network takes and gives, held against the manifest: one input, one output, their shapes.

Owns the sentences about names, types and shapes for every runtime that reads a foreign format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dicom_io.tensors import TensorRecipe
from model.errors import RuntimeFault
from model.labels import OutputKindValues
from model.package import ModelPackage
from model.runtime_plan import LayoutValues
from model.runtimes.port import FloatArray

PROBE_SLICES = 16
"""Slices of a probe where the recipe leaves the number to the series."""

FLOAT32 = "float32"

_SQUASHING = frozenset({"sigmoid", "softmax", "hardsigmoid", "logsoftmax"})
"""Operations after which numbers are no unscaled scores any more."""

Shape = tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a network."""

    name: str
    datatype: str
    """``float32``, or what the runtime calls it."""
    shape: Shape
    """With the batch first; None where it is open."""


@dataclass(frozen=True, slots=True)
class Signature:
    """The input and the output in use."""

    input: TensorSpec
    output: TensorSpec
    map: TensorSpec | None = None
    """The output that holds a logit per position, where the package names one and it is there."""

    @property
    def fixed_batch(self) -> int | None:
        """How many inputs the network takes at once, where it insists on a number."""
        return self.input.shape[0] if self.input.shape else None


def agreed_signature(
    package: ModelPackage, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> Signature:
    """Choose the input and output that the manifest means, and hold them against it.

    Raises
    ------
    RuntimeFault
        With every disagreement, not only the first.
    """
    plan = package.runtime
    faults: list[str] = []
    taken = _chosen(inputs, plan.input_name, "input", faults)
    located = _map_of(package, outputs)
    answers = [spec for spec in outputs if spec is not located]
    given = _chosen(answers, plan.output_name, "output", faults)
    if taken is not None:
        faults += _input_faults(package, taken)
    if given is not None:
        faults += _output_faults(package, given)
    if faults or taken is None or given is None:
        raise RuntimeFault(f"{package.at_version}: " + "; ".join(faults))
    return Signature(taken, given, located)


def _map_of(package: ModelPackage, outputs: Sequence[TensorSpec]) -> TensorSpec | None:
    """Return the output that ``[regions]`` names; a file may have been written without it."""
    if package.regions is None:
        return None
    return next((spec for spec in outputs if spec.name == package.regions.layer), None)


def _chosen(
    specs: Sequence[TensorSpec], name: str, what: str, faults: list[str]
) -> TensorSpec | None:
    known = ", ".join(spec.name for spec in specs) or "none"
    fitting = [spec for spec in specs if not name or spec.name == name]
    if len(fitting) == 1:
        return fitting[0]
    if name:
        faults.append(f"[weights] {what} is {name}; the network's {what}s are {known}")
    else:
        faults.append(
            f"the network must have one {what}, or the manifest must name it as {what} in "
            f"[weights]; it has {len(specs)}: {known}"
        )
    return None


def _input_faults(package: ModelPackage, spec: TensorSpec) -> list[str]:
    faults = []
    if spec.datatype != FLOAT32:
        faults.append(f"the network's input {spec.name} is {spec.datatype}; it must be float32")
    wanted = laid_out_shape(package.recipe.shape, package.runtime.layout)
    if not fits(spec.shape[1:], wanted):
        layout = package.runtime.layout
        faults.append(
            f"[input] makes tensors of {wanted} ({layout}), the network takes {spec.shape[1:]}"
            + _layout_hint(package, spec)
        )
    return faults


def _layout_hint(package: ModelPackage, spec: TensorSpec) -> str:
    layouts = [each for each in LayoutValues if each is not package.runtime.layout]
    fitting = [
        each for each in layouts if fits(spec.shape[1:], laid_out_shape(package.recipe.shape, each))
    ]
    return f'; with layout = "{fitting[0]}" in [weights] they would agree' if fitting else ""


def _output_faults(package: ModelPackage, spec: TensorSpec) -> list[str]:
    faults = []
    if spec.datatype != FLOAT32:
        faults.append(f"the network's output {spec.name} is {spec.datatype}; it must be float32")
    if not fits(spec.shape[1:], (package.output.size,)):
        names = ", ".join(label.name for label in package.labels)
        faults.append(
            f"[output] size is {package.output.size} for the labels {names}; "
            f"the network gives {spec.shape[1:]}"
        )
    return faults


def squashing_faults(package: ModelPackage, last_operation: str) -> list[str]:
    """Return a fault when the network applies already what the manifest asks us to apply."""
    if package.output.kind is OutputKindValues.PROBABILITY:
        return []
    last = last_operation.casefold()
    if last.replace("_", "") not in _SQUASHING:
        return []
    fault = (
        f"[output] kind is {package.output.kind}, but the last layer applies {last} already: "
        f"the kind is probability"
    )
    return [fault]


def fits(found: Shape, wanted: Shape) -> bool:
    """Return True when each edge of `found` is open (None) or the one wanted."""
    pairs = zip(found, wanted, strict=False)
    return len(found) == len(wanted) and all(f is None or f == w for f, w in pairs)


def laid_out_shape(shape: Shape, layout: LayoutValues) -> Shape:
    """Return the shape of one input, channels last, as the network wants it."""
    return shape if layout is LayoutValues.CHANNELS_LAST else (shape[-1], *shape[:-1])


def laid_out(batch: FloatArray, layout: LayoutValues) -> FloatArray:
    """Return a batch as the network wants it, contiguous in memory."""
    if layout is LayoutValues.CHANNELS_FIRST:
        batch = np.moveaxis(batch, -1, 1)
    return np.ascontiguousarray(batch)


def channels_last(values: FloatArray, layout: LayoutValues) -> FloatArray:
    """Return what a network gave for every position with its channels last."""
    return np.moveaxis(values, 1, -1) if layout is LayoutValues.CHANNELS_FIRST else values


def probe_shape(recipe: TensorRecipe) -> tuple[int, ...]:
    """Return the shape of one input; where the series decides, a few slices stand for it."""
    return tuple(PROBE_SLICES if edge is None else edge for edge in recipe.shape)
