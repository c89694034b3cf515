"""What a model's input looks like, and the digest that says how it was made.

Owns the recipe, its checks and the versions of the steps. A step whose result changes in any way
gets a new version here, so that tensors of different code never pass as the same.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from dicom_io.errors import InvalidRecipe
from dicom_io.intensity import (
    LUMINANCE_WEIGHTS,
    VOI_FALLBACK,
    FullRange,
    IntensityRange,
    PercentileRange,
    VoiRange,
    WindowRange,
)

Kind = Literal["image", "volume"]
Fit = Literal["stretch", "pad", "crop"]

MAX_EDGE = 4096
"""The longest edge a model may ask for; beyond it the number is a mistake."""

MAX_ELEMENTS = 512 * 1024 * 1024
"""2 GiB of float32: more is no input for one inference."""

STEP_VERSIONS = {
    "decode": 1,
    "luminance": 1,
    "modality": 1,
    "stack": 1,
    "range": 1,
    "invert": 1,
    "resample": 1,
    "channels": 1,
}

_IMAGE_ORDER = ("decode", "luminance", "modality", "range", "invert", "resample", "channels")
_VOLUME_ORDER = ("decode", "modality", "stack", "resample", "range", "invert", "channels")
_FIELDS = frozenset({"kind", "rows", "columns", "slices", "channels", "intensity", "fit"})
_INTENSITY_FIELDS = {
    "percentile": frozenset({"low", "high"}),
    "window": frozenset({"centre", "width"}),
    "voi": frozenset(),
    "full": frozenset(),
}


@dataclass(frozen=True, slots=True)
class TensorRecipe:
    """How pixels become a model's input; checked when made.

    Raises
    ------
    InvalidRecipe
        A field is outside its rule; all faults are named at once.
    """

    kind: Kind
    rows: int
    columns: int
    slices: int | None = None
    """Of a volume; None keeps as many as the series has."""
    channels: int = 1
    """1, or 3 for networks that read RGB: the grey channel is repeated."""
    intensity: IntensityRange = VOI_FALLBACK
    """Percentiles 0.5 and 99.5 unless said otherwise."""
    fit: Fit = "stretch"
    """``pad`` keeps the aspect ratio and puts zeros around the centred image; ``crop`` keeps it
    and cuts the centre out of the longer side."""

    def __post_init__(self) -> None:
        faults = [fault for holds, fault in self._rules() if not holds]
        if faults:
            raise InvalidRecipe("; ".join(faults))

    def _rules(self) -> list[tuple[bool, str]]:
        return [
            (self.kind in ("image", "volume"), f"kind must be image or volume: {self.kind!r}"),
            *(_edge_rule(name, getattr(self, name)) for name in ("rows", "columns")),
            *([] if self.slices is None else [_edge_rule("slices", self.slices)]),
            (
                self.kind == "volume" or self.slices is None,
                f"slices belong to kind volume only: received {self.slices!r}",
            ),
            (self.channels in (1, 3), f"channels must be 1 or 3: received {self.channels!r}"),
            (
                self.fit in ("stretch", "pad", "crop"),
                f"fit must be stretch, pad or crop: received {self.fit!r}",
            ),
            *_intensity_rules(self.intensity),
            (self._is_bounded(), f"the tensor would hold more than {MAX_ELEMENTS} values"),
        ]

    def _is_bounded(self) -> bool:
        edges = (self.rows, self.columns, self.slices or 1, self.channels)
        return not all(_is_whole(edge) for edge in edges) or math.prod(edges) <= MAX_ELEMENTS

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> TensorRecipe:
        """Build a recipe from a manifest's table, naming everything that is wrong with it.

        Parameters
        ----------
        mapping : mapping
            ``kind``, ``rows`` and ``columns``; optionally ``slices``, ``channels`` (1), ``fit``
            (``stretch``; ``pad``, ``crop``) and ``intensity``, a table with ``kind``
            ``percentile`` (``low`` 0.5, ``high`` 99.5), ``window`` (``centre``, ``width``),
            ``voi`` or ``full``.

        Raises
        ------
        InvalidRecipe
            A field is unknown, missing or outside its rule.
        """
        unknown = sorted(set(mapping) - _FIELDS)
        missing = sorted({"kind", "rows", "columns"} - set(mapping))
        if unknown or missing:
            raise InvalidRecipe(
                f"a recipe has the fields {', '.join(sorted(_FIELDS))}: "
                f"unknown {', '.join(map(str, unknown)) or 'none'}, "
                f"missing {', '.join(missing) or 'none'}"
            )
        fields = dict(mapping)
        if "intensity" in fields:
            fields["intensity"] = _intensity_from(fields["intensity"])
        return cls(**fields)

    def to_mapping(self) -> dict[str, Any]:
        """Return what ``from_mapping`` reads back as an equal recipe."""
        mapping: dict[str, Any] = {"kind": self.kind, "rows": self.rows, "columns": self.columns}
        if self.slices is not None:
            mapping["slices"] = self.slices
        mapping |= {"channels": self.channels, "fit": self.fit}
        mapping["intensity"] = _intensity_mapping(self.intensity)
        return mapping

    @property
    def shape(self) -> tuple[int | None, ...]:
        """The tensor's shape, channels last; None where the series decides."""
        plane = (self.rows, self.columns, self.channels)
        return plane if self.kind == "image" else (self.slices, *plane)

    @property
    def steps(self) -> list[dict[str, Any]]:
        """The steps in their order, each with its version and parameters."""
        order = _IMAGE_ORDER if self.kind == "image" else _VOLUME_ORDER
        parameters = self._parameters()
        return [
            {"step": step, "version": STEP_VERSIONS[step], **parameters.get(step, {})}
            for step in order
        ]

    def _parameters(self) -> dict[str, dict[str, Any]]:
        resample: dict[str, Any] = {"rows": self.rows, "columns": self.columns, "fit": self.fit}
        if self.kind == "volume":
            resample["slices"] = self.slices
        intensity = _intensity_mapping(self.intensity)
        if isinstance(self.intensity, VoiRange):
            intensity["fallback"] = _intensity_mapping(VOI_FALLBACK)
        return {
            "luminance": {"weights": list(LUMINANCE_WEIGHTS)},
            "range": intensity,
            "resample": resample,
            "channels": {"channels": self.channels},
        }

    @property
    def digest(self) -> str:
        """SHA-256, hexadecimal, over the canonical JSON of ``steps``."""
        canonical = json.dumps(self.steps, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _edge_rule(name: str, value: object) -> tuple[bool, str]:
    holds = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_EDGE
    return holds, f"{name} must be a whole number from 1 to {MAX_EDGE}: received {value!r}"


def _intensity_rules(intensity: object) -> list[tuple[bool, str]]:
    if isinstance(intensity, PercentileRange):
        low, high = intensity.low, intensity.high
        holds = _is_number(low) and _is_number(high) and 0 <= low < high <= 100
        return [(holds, f"percentiles need 0 <= low < high <= 100: received {low!r}, {high!r}")]
    if isinstance(intensity, WindowRange):
        centre, width = intensity.centre, intensity.width
        holds = _is_number(centre) and _is_number(width) and width > 0
        return [(holds, f"a window needs numbers and width > 0: received {centre!r}, {width!r}")]
    known = isinstance(intensity, VoiRange | FullRange)
    return [
        (known, f"intensity must be one of the four ranges: received {type(intensity).__name__}")
    ]


def _intensity_from(value: object) -> IntensityRange:
    kind = str(value.get("kind")) if isinstance(value, Mapping) else ""
    if not isinstance(value, Mapping) or kind not in _INTENSITY_FIELDS:
        kinds = ", ".join(_INTENSITY_FIELDS)
        raise InvalidRecipe(f"intensity must be a table with kind {kinds}: received {value!r}")
    fields = {name: part for name, part in value.items() if name != "kind"}
    unknown = sorted(set(fields) - _INTENSITY_FIELDS[kind])
    missing = sorted({"centre", "width"} - set(fields)) if kind == "window" else []
    if unknown or missing:
        raise InvalidRecipe(
            f"intensity {kind}: unknown {', '.join(map(str, unknown)) or 'none'}, "
            f"missing {', '.join(missing) or 'none'}"
        )
    ranges = {
        "percentile": PercentileRange,
        "window": WindowRange,
        "voi": VoiRange,
        "full": FullRange,
    }
    made: IntensityRange = ranges[kind](**fields)
    return made


def _intensity_mapping(intensity: IntensityRange) -> dict[str, Any]:
    """Return numbers as floats: 99 and 99.0 are the same recipe and must have one digest."""
    kinds = {
        PercentileRange: "percentile",
        WindowRange: "window",
        VoiRange: "voi",
        FullRange: "full",
    }
    parameters = {name: float(value) for name, value in asdict(intensity).items()}
    return {"kind": kinds[type(intensity)], **parameters}
