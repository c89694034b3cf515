"""Recipes: every fault named, and a digest that changes exactly when the tensor may."""

from __future__ import annotations

from typing import Any

import pytest

from dicom_io import recipe as recipes
from dicom_io.errors import InvalidRecipe
from dicom_io.recipe import TensorRecipe
from dicom_io.tensors import FullRange, PercentileRange, VoiRange, WindowRange

IMAGE: dict[str, Any] = {"kind": "image", "rows": 224, "columns": 200}


def test_defaults_are_grey_percentiles_stretched() -> None:
    recipe = TensorRecipe.from_mapping(IMAGE)

    assert recipe == TensorRecipe("image", 224, 200, None, 1, PercentileRange(0.5, 99.5), "stretch")
    assert recipe.shape == (224, 200, 1)


@pytest.mark.parametrize(
    ("table", "intensity"),
    [
        ({"kind": "percentile", "low": 1, "high": 99}, PercentileRange(1, 99)),
        ({"kind": "window", "centre": -600, "width": 1500}, WindowRange(-600, 1500)),
        ({"kind": "voi"}, VoiRange()),
        ({"kind": "full"}, FullRange()),
    ],
)
def test_mappings_are_read_back_as_equal_recipes(table: dict[str, Any], intensity: object) -> None:
    mapping = {"kind": "volume", "rows": 8, "columns": 8, "slices": 4, "channels": 3,
               "fit": "pad", "intensity": table}  # fmt: skip

    recipe = TensorRecipe.from_mapping(mapping)

    assert recipe.intensity == intensity
    assert recipe.shape == (4, 8, 8, 3)
    assert TensorRecipe.from_mapping(recipe.to_mapping()) == recipe


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "film"}, "kind must be image or volume: 'film'"),
        ({"rows": 0}, "rows must be a whole number from 1 to 4096: received 0"),
        ({"columns": 4097}, "columns must be a whole number"),
        ({"rows": 2.5}, "received 2.5"),
        ({"rows": True}, "received True"),
        ({"channels": 2}, "channels must be 1 or 3: received 2"),
        ({"slices": 3}, "slices belong to kind volume only"),
        ({"fit": "squash"}, "fit must be stretch, pad or crop: received 'squash'"),
        ({"colour": 1}, "unknown colour"),
        ({"intensity": "window"}, "intensity must be a table with kind"),
        ({"intensity": {"kind": ["voi"]}}, "intensity must be a table with kind"),
        ({"intensity": {"kind": "window", "centre": 1}}, "missing width"),
        ({"intensity": {"kind": "window", "centre": 1, "width": 0}}, "width > 0: received 1, 0"),
        ({"intensity": {"kind": "window", "centre": float("nan"), "width": 1}}, "received nan"),
        ({"intensity": {"kind": "percentile", "low": 99, "high": 1}}, "received 99, 1"),
        ({"intensity": {"kind": "percentile", "low": "1"}}, "received '1', 99.5"),
        ({"intensity": {"kind": "voi", "index": 1}}, "intensity voi: unknown index"),
    ],
)
def test_faults_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRecipe, match=message.replace(".", r"\.").replace("[", r"\[")):
        TensorRecipe.from_mapping({**IMAGE, **change})


def test_all_faults_are_named_at_once() -> None:
    with pytest.raises(InvalidRecipe, match=r"rows.*channels.*fit"):
        TensorRecipe.from_mapping({**IMAGE, "rows": 0, "channels": 7, "fit": "squash"})


def test_missing_fields_are_named() -> None:
    with pytest.raises(InvalidRecipe, match="missing columns, rows"):
        TensorRecipe.from_mapping({"kind": "image"})


def test_tensor_beyond_any_memory_is_refused() -> None:
    with pytest.raises(InvalidRecipe, match="would hold more than"):
        TensorRecipe("volume", 4096, 4096, 4096)


def test_digest_is_fixed_for_a_recipe() -> None:
    # A changed digest means that tensors of installed models change: raise a step's version.
    assert TensorRecipe("image", 224, 224).digest == (
        "d5ebd8173f879881ccf164c7d5f661a75cfd174a309867b448e5967fc149c107"
    )


def test_digest_takes_whole_and_decimal_numbers_as_equal() -> None:
    whole = TensorRecipe("image", 8, 8, intensity=WindowRange(40, 400))
    decimal = TensorRecipe("image", 8, 8, intensity=WindowRange(40.0, 400.0))

    assert whole.digest == decimal.digest


def test_every_field_changes_the_digest() -> None:
    base = TensorRecipe("volume", 8, 8, 4)
    variants = [
        TensorRecipe("image", 8, 8),
        TensorRecipe("volume", 9, 8, 4),
        TensorRecipe("volume", 8, 9, 4),
        TensorRecipe("volume", 8, 8, 5),
        TensorRecipe("volume", 8, 8, None),
        TensorRecipe("volume", 8, 8, 4, 3),
        TensorRecipe("volume", 8, 8, 4, intensity=PercentileRange(1, 99)),
        TensorRecipe("volume", 8, 8, 4, intensity=WindowRange(1, 99)),
        TensorRecipe("volume", 8, 8, 4, intensity=VoiRange()),
        TensorRecipe("volume", 8, 8, 4, intensity=FullRange()),
        TensorRecipe("volume", 8, 8, 4, fit="pad"),
        TensorRecipe("volume", 8, 8, 4, fit="crop"),
    ]

    assert len({recipe.digest for recipe in [base, *variants]}) == len(variants) + 1


def test_version_of_a_step_changes_the_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    before = TensorRecipe("image", 8, 8).digest

    monkeypatch.setitem(recipes.STEP_VERSIONS, "resample", 99)

    assert TensorRecipe("image", 8, 8).digest != before
