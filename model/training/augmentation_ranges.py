"""How far an input may be changed while training, as a configuration's ``[augmentation]`` says it.

Owns the list of changes, their defaults and their bounds; the changes are made elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from model.manifest import ManifestTable

FILMS, NONE = "films", "none"


@dataclass(frozen=True, slots=True)
class AugmentationRanges:
    """How far each change may go; written into the package as part of its provenance.

    The defaults are those of projection films. Each change is drawn anew for every input; in a
    volume all slices are changed alike.
    """

    rotation_degrees: float = 8.0
    shift_fraction: float = 0.06
    zoom: float = 0.12
    """Zoom factor within 1 ± this, the same for both axes."""
    aspect: float = 0.10
    """Further stretch of one axis within 1 ± this: films were squashed to squares."""
    border_crop_fraction: float = 0.12
    """Up to this share of each side is cut off: the field of view differs between rooms."""
    border_add_fraction: float = 0.08
    """Up to this share is added to each side, black: collimators leave such borders."""
    flip_probability: float = 0.5
    """Left and right."""
    vertical_flip_probability: float = 0.0
    """Top and bottom."""
    slice_flip_probability: float = 0.0
    """First and last slice of a volume."""
    quarter_turn_probability: float = 0.0
    """A turn by 90, 180 or 270 degrees; by 180 where rows and columns differ."""
    gamma: float = 0.40
    """Exponent within exp(± this): tube voltage and the manufacturer's curve."""
    brightness: float = 0.10
    """Added, within ± this."""
    contrast: float = 0.20
    """Distance from middle grey multiplied by 1 ± this."""
    blur_probability: float = 0.5
    blur_sigma_pixels: float = 1.2
    """Sharpness follows the original matrix size, which differs between the classes."""
    noise: float = 0.03
    """Highest standard deviation; the same in all channels of a pixel."""
    erase_probability: float = 0.5
    erase_fraction: float = 0.25
    """Side of an erased rectangle as share of the film: markers, tubes, text."""
    mixup_alpha: float = 0.2
    """Two inputs and their labels are blended by a share from Beta(this, this); 0 blends none."""

    @classmethod
    def none(cls) -> AugmentationRanges:
        """Return the ranges that leave every input as it is."""
        return cls(**{field.name: 0.0 for field in fields(cls)})

    @classmethod
    def from_table(cls, table: ManifestTable) -> AugmentationRanges:
        """Read ``[augmentation]``; what it does not name is taken from its ``base``.

        Parameters
        ----------
        table : ManifestTable
            ``base`` is ``films`` (the defaults above) or ``none``; every fault is added to the
            table's list.
        """
        name = table.text("base", default=FILMS)
        if name not in {FILMS, NONE}:
            table.add_fault("base", f"must be {FILMS} or {NONE}")
        base = cls.none() if name == NONE else cls()
        values = {
            key: table.number(key, *bounds, getattr(base, key)) for key, bounds in _BOUNDS.items()
        }
        if values["blur_probability"] and values["blur_sigma_pixels"] < SMALLEST_SIGMA:
            table.add_fault(
                "blur_sigma_pixels", f"must be {SMALLEST_SIGMA:g} at least where images are blurred"
            )
        if values["erase_probability"] and values["erase_fraction"] < SMALLEST_ERASED:
            table.add_fault(
                "erase_fraction", f"must be {SMALLEST_ERASED:g} at least where parts are erased"
            )
        table.refuse_unknown()
        return cls(**values)

    def as_mapping(self) -> dict[str, float]:
        """Return the ranges for a manifest."""
        return asdict(self)


SMALLEST_SIGMA = 0.2
SMALLEST_ERASED = 0.05

_SHARE = (0.0, 1.0)
_BOUNDS: Mapping[str, tuple[float, float]] = {
    "rotation_degrees": (0.0, 180.0),
    "shift_fraction": (0.0, 0.5),
    "zoom": (0.0, 0.9),
    "aspect": (0.0, 0.9),
    "border_crop_fraction": (0.0, 0.45),
    "border_add_fraction": (0.0, 0.45),
    "flip_probability": _SHARE,
    "vertical_flip_probability": _SHARE,
    "slice_flip_probability": _SHARE,
    "quarter_turn_probability": _SHARE,
    "gamma": (0.0, 3.0),
    "brightness": (0.0, 1.0),
    "contrast": (0.0, 1.0),
    "blur_probability": _SHARE,
    "blur_sigma_pixels": (0.0, 20.0),
    "noise": (0.0, 1.0),
    "erase_probability": _SHARE,
    "erase_fraction": (0.0, 0.9),
    "mixup_alpha": (0.0, 10.0),
}
