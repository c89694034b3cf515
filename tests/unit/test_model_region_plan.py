"""The manifest's ``[regions]``: what may be left out, and what is refused with a reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from dicom_io.vocabulary import Code
from model.errors import PackageFault
from model.package import ModelPackage, load_package
from model.region_plan import RegionPlan
from tests.tiny_models import BRIGHT, DARK, write_package


def loaded(folder: Path, regions: object, **options: object) -> ModelPackage:
    write_package(folder, weights=b"weights", changes={"regions": regions}, **options)  # type: ignore[arg-type]
    return load_package(folder)


def test_package_without_the_table_does_not_say_where(tmp_path):
    write_package(tmp_path / "p", weights=b"weights")

    assert load_package(tmp_path / "p").regions is None


def test_the_only_label_lends_its_name_and_code(tmp_path):
    package = loaded(tmp_path / "p", {"threshold": 0.5})

    assert package.regions == RegionPlan(
        label="Bright", index=0, name="Bright", code=Code(*BRIGHT.code), site=None,
        threshold=0.5, layer="map", least_cells=1, most=10,
    )  # fmt: skip


def test_every_field_is_read(tmp_path):
    regions = {
        "label": "Dark",
        "layer": "positions",
        "threshold": 0.3,
        "least_cells": 2,
        "most": 5,
        "name": "Shadow",
        "code": ["TINY-9", "99MEDIMGD", "Shadow"],
        "site": ["39607008", "SCT", "Lung"],
    }

    plan = loaded(tmp_path / "p", regions, labels=(BRIGHT, DARK)).regions

    assert plan == RegionPlan(
        label="Dark", index=1, name="Shadow", code=Code("TINY-9", "99MEDIMGD", "Shadow"),
        site=Code("39607008", "SCT", "Lung"), threshold=0.3, layer="positions", least_cells=2,
        most=5,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("regions", "fault"),
    [
        ({}, "regions.threshold: must be a number between 0 and 1; received nothing"),
        ({"threshold": 1.0}, "regions.threshold: must lie between 0 and 1, both excluded"),
        ({"threshold": 0.5, "label": "Dim"}, "must be the name of one of the labels, Bright, Dark"),
        ({"threshold": 0.5}, "regions.label: must be text that is not empty; received nothing"),
        ({"threshold": 0.5, "label": "Dark", "name": "a\\b"}, "without a backslash"),
        ({"threshold": 0.5, "label": "Dark", "name": "n" * 49}, "at most 48 characters"),
        ({"threshold": 0.5, "label": "Dark", "least_cells": 0}, "between 1 and 1000000"),
        ({"threshold": 0.5, "label": "Dark", "most": 101}, "between 1 and 100"),
        ({"threshold": 0.5, "label": "Dark", "treshold": 1}, "regions.treshold: unknown field"),
    ],
)
def test_wrong_field_is_named_with_its_rule(tmp_path, regions, fault):
    with pytest.raises(PackageFault) as caught:
        loaded(tmp_path / "p", regions, labels=(BRIGHT, DARK))

    assert any(fault in each for each in caught.value.faults), caught.value.faults


def test_classes_that_exclude_each_other_have_no_map(tmp_path):
    with pytest.raises(PackageFault, match="kind must not be softmax"):
        loaded(
            tmp_path / "p", {"threshold": 0.5, "label": "Dark"},
            labels=(BRIGHT, DARK), output="softmax",
        )  # fmt: skip
