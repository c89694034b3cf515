"""Which version serves, which is a shadow, which may only finish: the site's rule, case by case."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from daemon.catalogue import serving_of, state_of
from model.catalogue import Catalogue, read_catalogue
from storage.standings import Standing
from storage.states import ModelState
from tests.storage_hospital import NOON
from tests.tiny_models import write_package


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    folder = tmp_path_factory.mktemp("models")
    for version in ("1.0.0", "1.1.0", "2.0.0"):
        write_package(folder / f"tiny-{version}", version=version, weights=b"x")
    write_package(folder / "other-1.0.0", name="other", weights=b"x")
    return read_catalogue([folder], bundled=False)


def standings(catalogue: Catalogue, states: Mapping[str, str], **changes: str) -> list[Standing]:
    known = {p.at_version: p for p in catalogue.packages}
    return [
        Standing(
            name, version, ModelState(state), NOON,
            changes.get("manifest", known[at].manifest_sha256 if at in known else "00" * 32),
            "ab" * 32, "root", "",
        )
        for at, state in states.items()
        for name, _, version in [at.partition("@")]
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("states", "serves", "shadows", "finishing"),
    [
        ({}, "2.0.0", [], ["1.0.0", "1.1.0"]),
        ({"tiny@1.0.0": "admitted"}, "1.0.0", [], ["1.1.0", "2.0.0"]),
        ({"tiny@1.0.0": "superseded", "tiny@1.1.0": "admitted"}, "1.1.0", [], ["1.0.0", "2.0.0"]),
        # Put aside, it does not serve by itself although it is the highest.
        ({"tiny@2.0.0": "installed"}, "1.1.0", [], ["1.0.0", "2.0.0"]),
        ({"tiny@2.0.0": "shadow"}, "1.1.0", ["2.0.0"], ["1.0.0"]),
        ({"tiny@1.0.0": "admitted", "tiny@2.0.0": "shadow"}, "1.0.0", ["2.0.0"], ["1.1.0"]),
        # To silence one version never gives its place to another by itself.
        ({"tiny@2.0.0": "retired"}, None, [], ["1.0.0", "1.1.0"]),
        ({"tiny@1.0.0": "retired"}, None, [], ["1.1.0", "2.0.0"]),
        ({"tiny@3.0.0": "admitted"}, None, [], ["1.0.0", "1.1.0", "2.0.0"]),
    ],
)
def test_the_rule_of_versions(catalogue, states, serves, shadows, finishing) -> None:
    now = serving_of(catalogue, standings(catalogue, states))

    served = [p.identity.version for p in now.packages if p.identity.name == "tiny"]
    assert served == ([serves] if serves else [])
    assert [each.package.identity.version for each in now.shadows] == shadows
    assert [p.identity.version for p in now.finishing] == finishing
    # Another name is nobody's business.
    assert "other@1.0.0" in [p.at_version for p in now.packages]


def test_where_admission_is_required_nothing_serves_without(catalogue) -> None:
    decided = standings(catalogue, {"tiny@1.0.0": "admitted"})

    now = serving_of(catalogue, decided, admission_required=True)

    assert [p.at_version for p in now.packages] == ["tiny@1.0.0"]
    other = next(item for item in catalogue.installed if item.title == "other@1.0.0")
    assert state_of(other, now, decided) == "waits for admission"


@pytest.mark.parametrize("state", ["admitted", "shadow"])
def test_a_package_changed_since_the_decision_neither_serves_nor_runs(catalogue, state) -> None:
    decided = standings(catalogue, {"tiny@2.0.0": state}, manifest="ff" * 32)

    now = serving_of(catalogue, decided)

    assert "tiny@2.0.0" not in [p.at_version for p in now.packages]
    assert now.shadows == ()
    assert "was changed" in now.out_of_order["tiny@2.0.0"]


def test_an_admitted_version_that_is_gone_is_named(catalogue) -> None:
    now = serving_of(catalogue, standings(catalogue, {"tiny@3.0.0": "admitted"}))

    assert "no longer installed" in now.out_of_order["tiny@3.0.0"]


def test_a_bundled_package_serves_by_itself_until_somebody_decides(tmp_path: Path) -> None:
    bundled = read_catalogue([tmp_path], bundled=True)

    assert "cxr-pneumonia" in [p.identity.name for p in serving_of(bundled, ()).packages]
    assert serving_of(bundled, (), admission_required=True).packages == ()


def shipped(catalogue: Catalogue) -> Catalogue:
    """Return the same packages as if they came with medimgd; all of them are demonstrations."""
    return Catalogue(tuple(replace(item, bundled=True) for item in catalogue.installed))


def test_a_shipped_demonstration_serves_only_where_it_is_named(catalogue) -> None:
    found = shipped(catalogue)

    nobody = serving_of(found, ())
    named = serving_of(found, (), demonstrations=["tiny"])
    one_version = serving_of(found, (), demonstrations=["tiny@1.1.0", "unknown"])

    assert nobody.packages == ()
    assert {state_of(item, nobody) for item in found.installed} == {"demonstration"}
    assert [p.at_version for p in named.packages] == ["tiny@2.0.0"]
    assert [p.at_version for p in one_version.packages] == ["tiny@1.1.0"]


def test_a_shipped_demonstration_serves_once_a_person_admitted_it(catalogue) -> None:
    decided = standings(catalogue, {"tiny@1.0.0": "admitted", "other@1.0.0": "shadow"})

    now = serving_of(shipped(catalogue), decided)

    assert [p.at_version for p in now.packages] == ["tiny@1.0.0"]
    assert [each.package.at_version for each in now.shadows] == ["other@1.0.0"]


def test_to_name_a_demonstration_does_not_replace_a_required_admission(catalogue) -> None:
    now = serving_of(shipped(catalogue), (), admission_required=True, demonstrations=["tiny"])

    assert now.packages == ()


def test_a_demonstration_that_the_site_laid_into_its_folder_serves(catalogue) -> None:
    assert [p.at_version for p in serving_of(catalogue, ()).packages] == [
        "other@1.0.0",
        "tiny@2.0.0",
    ]
