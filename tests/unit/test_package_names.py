"""The four short package names are ours alone, in the installed environment."""

from __future__ import annotations

from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

OURS = ("daemon", "dicom_io", "model", "storage")


@pytest.mark.parametrize("name", OURS)
def test_no_other_distribution_owns_the_name(name: str) -> None:
    owners = set(packages_distributions().get(name, ["medimgd"]))

    assert owners <= {"medimgd"}, f"{name} is also shipped by {owners - {'medimgd'}}"


@pytest.mark.parametrize("name", OURS)
def test_the_imported_package_is_the_one_of_this_checkout(name: str) -> None:
    package = __import__(name)

    assert Path(str(package.__file__)).resolve().is_relative_to(Path(__file__).parents[2])
