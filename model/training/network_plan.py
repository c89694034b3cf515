"""Which network is trained, as a training configuration's ``[network]`` says it.

Owns the fields, their rules and their defaults. Imports neither Keras nor TensorFlow, so that a
configuration is checked in milliseconds; ``model.training.networks`` builds what is planned here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from model.manifest import ManifestTable

LARGEST_CHANNELS = 4096
LARGEST_BLOCKS = 32
REFERENCE_SHAPE = (150, 150, 3)
"""Rows, columns and channels the reference network is published with."""
REFERENCE_DROPOUT = 0.5
DEFAULT_DROPOUT = 0.4
DEFAULT_STEM_CHANNELS = 20
DEFAULT_SHARPNESS = 5.0
"""Of the smooth maximum over positions, as Pinheiro and Collobert chose it (CVPR 2015)."""
WEIGHTS_SUFFIXES = (".h5", ".keras")
"""``.weights.h5`` ends in the first."""


class NetworkKindValues(StrEnum):
    """The architectures that can be trained."""

    COMPACT = "compact"
    """Residual blocks of separable convolutions; on volumes each slice is read by itself."""
    COMPACT_3D = "compact-3d"
    """Residual blocks of convolutions within the slices and across them; volumes only."""
    REFERENCE = "reference"
    """Conv32-Pool-Conv64-Pool-Conv128-Pool-Flatten-Dense512-Dropout0.5-Dense."""
    APPLICATION = "application"
    """A backbone of ``keras.applications``; on volumes each slice is read by itself."""


class SlicePoolingValues(StrEnum):
    """What a network that reads slices one by one makes of their features."""

    MEAN = "mean"
    MAX = "max"


class ScalingValues(StrEnum):
    """What a backbone expects of its input; the network is given [0, 1] and converts it itself."""

    UNIT_RANGE = "tf"
    """[-1, 1]."""
    IMAGENET_STANDARD = "torch"
    """Less the mean of ImageNet, through its standard deviation, channel by channel."""
    IMAGENET_CENTRED = "caffe"
    """Blue, green, red in [0, 255] less the mean of ImageNet."""
    BYTES = "own"
    """[0, 255]; the backbone scales by itself."""


_FAMILIES: Mapping[ScalingValues, str] = {
    ScalingValues.UNIT_RANGE: "InceptionResNetV2 InceptionV3 MobileNet MobileNetV2 NASNetLarge "
    "NASNetMobile ResNet50V2 ResNet101V2 ResNet152V2 Xception",
    ScalingValues.IMAGENET_STANDARD: "DenseNet121 DenseNet169 DenseNet201",
    ScalingValues.IMAGENET_CENTRED: "ResNet50 ResNet101 ResNet152 VGG16 VGG19",
    ScalingValues.BYTES: "ConvNeXtTiny ConvNeXtSmall ConvNeXtBase ConvNeXtLarge ConvNeXtXLarge "
    "EfficientNetB0 EfficientNetB1 EfficientNetB2 EfficientNetB3 EfficientNetB4 EfficientNetB5 "
    "EfficientNetB6 EfficientNetB7 EfficientNetV2B0 EfficientNetV2B1 EfficientNetV2B2 "
    "EfficientNetV2B3 EfficientNetV2S EfficientNetV2M EfficientNetV2L MobileNetV3Small "
    "MobileNetV3Large",
}
APPLICATIONS: Mapping[str, ScalingValues] = {
    name: scaling for scaling, names in _FAMILIES.items() for name in names.split()
}
"""Every backbone of ``keras.applications`` and the input it was trained on."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Blocks of the same width."""

    channels: int
    blocks: int
    stride: int = 2
    """Of rows and columns, in the first block."""
    slice_stride: int = 1
    """Of slices, in the first block; ``compact-3d`` only."""


FILM_STAGES = (Stage(32, 1), Stage(64, 2), Stage(112, 3), Stage(176, 2))
"""Ends in cells of 32 pixels."""
FILM_MAP_STAGES = (Stage(32, 1), Stage(64, 2), Stage(112, 3, stride=1))
"""Ends in cells of 8 pixels: a map must say where."""
VOLUME_STAGES = (Stage(16, 1), Stage(32, 1, 2, 2), Stage(64, 2, 2, 2), Stage(96, 2))
VOLUME_MAP_STAGES = (Stage(16, 1), Stage(32, 2), Stage(64, 2, stride=1))

_DEFAULT_STAGES = {
    (NetworkKindValues.COMPACT, False): FILM_STAGES,
    (NetworkKindValues.COMPACT, True): FILM_MAP_STAGES,
    (NetworkKindValues.COMPACT_3D, False): VOLUME_STAGES,
    (NetworkKindValues.COMPACT_3D, True): VOLUME_MAP_STAGES,
}


@dataclass(frozen=True, slots=True)
class NetworkPlan:
    """One network; what does not belong to its kind is left at its default."""

    kind: NetworkKindValues = NetworkKindValues.COMPACT
    dropout: float = DEFAULT_DROPOUT
    """Share of the last features dropped while training."""
    l2: float = 0.0
    """Weight of the squared kernels in the loss; the network adds it to its ``losses``."""
    stages: tuple[Stage, ...] = ()
    """Empty means those of the kind, with or without a map: see ``planned_stages``."""
    stem_channels: int = DEFAULT_STEM_CHANNELS
    stem_stride: int = 2
    standardise: bool = True
    """Each input to zero mean and unit variance first: exposure carries no information then."""
    has_map: bool = False
    """One logit per position in the layer ``map``, whose smooth maximum is the answer."""
    map_sharpness: float = DEFAULT_SHARPNESS
    """r of log(mean(exp(r * map))) / r: towards 0 it is the mean, towards infinity the maximum."""
    slice_pooling: SlicePoolingValues = SlicePoolingValues.MEAN
    """Without a map, on volumes that are read slice by slice."""
    application: str = ""
    """Name in ``keras.applications``."""
    weights: Path | None = None
    """The backbone's, a local file; none starts from random ones. Nothing is ever downloaded."""
    frozen_epochs: int = 0
    """So many epochs at the start train the last layer only."""
    fine_tune_rate: float = 0.1
    """Share of the learning rate that is left when the backbone is trained too."""
    train_norm: bool = True
    """False keeps the backbone's BatchNormalization as it was trained, also when fine-tuning."""

    @property
    def planned_stages(self) -> tuple[Stage, ...]:
        """The stages, or those of the kind where none are stated."""
        return self.stages or _DEFAULT_STAGES.get((self.kind, self.has_map), ())

    def as_mapping(self) -> dict[str, object]:
        """Return the plan for a manifest or a run's record; fields that say nothing are absent."""
        fields = {key: value for key, value in asdict(self).items() if key in _own_fields(self)}
        fields["kind"] = str(self.kind)
        if "stages" in fields:
            fields["stages"] = [_stage_mapping(each, self.kind) for each in self.planned_stages]
        if "has_map" in fields:
            fields["map"] = fields.pop("has_map")
        if "slice_pooling" in fields:
            fields["slice_pooling"] = str(self.slice_pooling)
        if fields.pop("weights", None) is not None and self.weights is not None:
            fields["weights"] = self.weights.name
        return fields


_COMMON = ("kind", "dropout", "l2")
_CONVOLVED = (*_COMMON, "stages", "stem_channels", "stem_stride", "standardise")
_MAP = ("has_map", "map_sharpness")
_BACKBONE = ("application", "weights", "frozen_epochs", "fine_tune_rate", "train_norm")
_FIELDS = {
    NetworkKindValues.COMPACT: (*_CONVOLVED, *_MAP, "slice_pooling"),
    NetworkKindValues.COMPACT_3D: (*_CONVOLVED, *_MAP),
    NetworkKindValues.REFERENCE: _COMMON,
    NetworkKindValues.APPLICATION: (*_COMMON, *_BACKBONE, *_MAP, "slice_pooling"),
}


def _stage_mapping(stage: Stage, kind: NetworkKindValues) -> dict[str, int]:
    mapping = asdict(stage)
    if kind is not NetworkKindValues.COMPACT_3D:
        del mapping["slice_stride"]
    return mapping


def _own_fields(plan: NetworkPlan) -> tuple[str, ...]:
    return _FIELDS[plan.kind]


def read_network_plan(table: ManifestTable, folder: Path | None = None) -> NetworkPlan:
    """Read ``[network]``; every field may be absent.

    Parameters
    ----------
    table : ManifestTable
        Every fault is added to its list; the plan returned then is usable but not meant.
    folder : Path, optional
        Where a relative path in ``weights`` starts; the working folder when None.

    Returns
    -------
    NetworkPlan
    """
    kind = table.choice("kind", NetworkKindValues, NetworkKindValues.COMPACT)
    values: dict[str, object] = {"kind": kind, "l2": table.number("l2", 0.0, 1.0, 0.0)}
    values["dropout"] = _read_dropout(table, kind)
    fields = _FIELDS[kind]
    if "has_map" in fields:
        values["has_map"] = table.flag("map", default=False)
        values["map_sharpness"] = table.number("map_sharpness", 0.1, 100, DEFAULT_SHARPNESS)
    if "slice_pooling" in fields:
        pooling = table.choice("slice_pooling", SlicePoolingValues, SlicePoolingValues.MEAN)
        values["slice_pooling"] = pooling
    if "stages" in fields:
        values |= _read_convolutions(table, kind, has_map=bool(values["has_map"]))
    if "application" in fields:
        values |= _read_backbone(table, folder or Path())
    table.refuse_unknown()
    return NetworkPlan(**values)  # type: ignore[arg-type]  # names and types are those above


def _read_dropout(table: ManifestTable, kind: NetworkKindValues) -> float:
    if kind is not NetworkKindValues.REFERENCE:
        return table.number("dropout", 0.0, 0.95, DEFAULT_DROPOUT)
    dropout = table.number("dropout", 0.0, 0.95, REFERENCE_DROPOUT)
    if dropout != REFERENCE_DROPOUT:
        table.add_fault("dropout", f"of the reference network is {REFERENCE_DROPOUT}, by its name")
    return dropout


def _read_convolutions(
    table: ManifestTable, kind: NetworkKindValues, *, has_map: bool
) -> dict[str, object]:
    """Read what networks of plain convolutions share."""
    stages = tuple(_read_stage(each, kind) for each in table.tables("stages", required=False))
    if has_map and any(stage.slice_stride != 1 for stage in stages):
        table.add_fault("stages", "slice_stride must be 1 where the network has a map")
    return {
        "stages": stages,
        "stem_channels": table.whole_number(
            "stem_channels", 1, LARGEST_CHANNELS, DEFAULT_STEM_CHANNELS
        ),
        "stem_stride": table.whole_number("stem_stride", 1, 4, 2),
        "standardise": table.flag("standardise", default=True),
    }


def _read_stage(table: ManifestTable, kind: NetworkKindValues) -> Stage:
    stage = Stage(
        channels=table.whole_number("channels", 1, LARGEST_CHANNELS),
        blocks=table.whole_number("blocks", 1, LARGEST_BLOCKS),
        stride=table.whole_number("stride", 1, 2, 2),
        slice_stride=table.whole_number("slice_stride", 1, 2, 1)
        if kind is NetworkKindValues.COMPACT_3D
        else 1,
    )
    table.refuse_unknown()
    return stage


def _read_backbone(table: ManifestTable, folder: Path) -> dict[str, object]:
    name = table.text("application", rule="must name a backbone of keras.applications")
    if name and name not in APPLICATIONS:
        known = ", ".join(sorted(APPLICATIONS))
        table.add_fault("application", f"must be one of {known}")
    weights = _read_weights(table, folder)
    frozen = table.whole_number("frozen_epochs", 0, 10_000, 0)
    if frozen and weights is None:
        table.add_fault("frozen_epochs", "must be 0 without weights: random ones teach nothing")
    return {
        "application": name,
        "weights": weights,
        "frozen_epochs": frozen,
        "fine_tune_rate": table.number("fine_tune_rate", 1e-6, 1.0, 0.1),
        "train_norm": table.flag("train_norm", default=weights is None),
    }


def _read_weights(table: ManifestTable, folder: Path) -> Path | None:
    value = table.text("weights", default="-")
    if value in {"", "-"}:
        return None
    path = folder / value
    if "://" in value or not value.endswith(WEIGHTS_SUFFIXES):
        table.add_fault("weights", "must be a local file that ends in .h5, .weights.h5 or .keras")
    elif not path.is_file():
        table.add_fault("weights", "must be a file that is there; nothing is downloaded")
    return path
