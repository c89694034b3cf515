"""The catalogue lists what is there, names what is broken and never overwrites a version."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from model.catalogue import BUNDLED_FOLDER, add_package, read_catalogue, version_order
from model.errors import CatalogueFault, PackageFault
from tests.tiny_models import write_package


def put(site: Path, name: str = "tiny", version: str = "1.0.0", folder: str = "") -> Path:
    target = site / (folder or f"{name}-{version}")
    return write_package(target, name=name, version=version, weights=b"weights").folder


def test_packages_come_in_order_of_name_and_version(tmp_path):
    for name, version in (("b", "1.0.0"), ("a", "1.10.0"), ("a", "1.9.0"), ("a", "1.10.0-rc1")):
        put(tmp_path, name, version)

    packages = read_catalogue([tmp_path], bundled=False).packages

    assert [package.at_version for package in packages] == [
        "a@1.9.0", "a@1.10.0-rc1", "a@1.10.0", "b@1.0.0",
    ]  # fmt: skip


def test_release_comes_after_its_candidates():
    assert version_order("1.0.0-rc1") < version_order("1.0.0") < version_order("1.0.1-a")
    assert version_order("1.0.0") < version_order("1.0.0+onnx") < version_order("1.0.1")


@pytest.mark.parametrize(
    "ascending",
    [
        ("1.0.0-rc2", "1.0.0-rc9", "1.0.0-rc10", "1.0.0"),
        ("1.0.0-alpha.9", "1.0.0-alpha.10", "1.0.0-beta.1"),
        ("1.0.0-rc", "1.0.0-rc1", "1.0.0-rc1.onnx", "1.0.0-rc2", "1.0.0-rc10.onnx"),
        ("1.0.0-9", "1.0.0-10", "1.0.0-rc1"),
        ("1.0.0", "1.0.0+site2", "1.0.0+site10"),
    ],
)
def test_numbers_of_candidates_and_builds_count_as_numbers(ascending):
    descending = ascending[::-1]

    assert sorted(descending, key=version_order) == list(ascending)


def test_broken_package_is_listed_with_its_faults_and_stops_no_other(tmp_path):
    put(tmp_path, "sound")
    broken = put(tmp_path, "broken")
    (broken / "weights.keras").write_bytes(b"other")

    catalogue = read_catalogue([tmp_path], bundled=False)

    assert [package.at_version for package in catalogue.packages] == ["sound@1.0.0"]
    (item,) = catalogue.broken
    assert (item.title, item.state) == ("broken-1.0.0", "broken")
    assert item.faults[0].startswith("weights.sha256")


@pytest.mark.parametrize("switched_off", ["tiny", "tiny@1.0.0"])
def test_disabled_package_is_listed_and_not_used(tmp_path, switched_off):
    put(tmp_path)
    put(tmp_path, "other")

    catalogue = read_catalogue([tmp_path], bundled=False, disabled=[switched_off])

    assert [item.state for item in catalogue.installed] == ["ready", "disabled"]
    assert [package.identity.name for package in catalogue.packages] == ["other"]
    assert catalogue.broken == ()


def test_same_version_in_two_folders_is_used_once_and_reported(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    put(first)
    put(second)

    catalogue = read_catalogue([first, second], bundled=False)

    assert [package.folder.parent.name for package in catalogue.packages] == ["first"]
    assert "is also in" in catalogue.broken[0].faults[0]
    assert str(first) in catalogue.broken[0].faults[0]


def test_folder_named_twice_is_read_once(tmp_path):
    put(tmp_path)

    assert len(read_catalogue([tmp_path, tmp_path], bundled=False).installed) == 1


def test_folder_that_does_not_exist_holds_no_package(tmp_path):
    assert read_catalogue([tmp_path / "nowhere"], bundled=False).installed == ()


def test_every_bundled_package_is_sound():
    catalogue = read_catalogue([])

    assert [item.faults for item in catalogue.installed] == [()] * len(catalogue.installed)
    assert {item.folder.parent for item in catalogue.installed} == {BUNDLED_FOLDER}
    assert "cxr-pneumonia" in {package.identity.name for package in catalogue.packages}


def test_package_is_found_by_name_and_version_or_by_a_name_of_one_version(tmp_path):
    put(tmp_path, "one")
    put(tmp_path, "two", "1.0.0")
    put(tmp_path, "two", "2.0.0")
    catalogue = read_catalogue([tmp_path], bundled=False)

    assert catalogue.find("one").at_version == "one@1.0.0"
    assert catalogue.find("two@2.0.0").at_version == "two@2.0.0"
    with pytest.raises(CatalogueFault, match="several versions are usable"):
        catalogue.find("two")
    with pytest.raises(CatalogueFault, match=r"usable are one@1\.0\.0, two@1\.0\.0, two@2\.0\.0"):
        catalogue.find("three")


def test_name_of_several_packages_is_answered_with_those_and_no_others(tmp_path):
    for name, version in (("one", "1.0.0"), ("two", "1.0.0"), ("two", "2.0.0")):
        put(tmp_path, name, version)
    catalogue = read_catalogue([tmp_path], bundled=False)

    with pytest.raises(CatalogueFault, match=r"say which: two@1\.0\.0, two@2\.0\.0$"):
        catalogue.item("two")


def test_broken_package_is_found_by_its_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    catalogue = read_catalogue([tmp_path], bundled=False)

    assert catalogue.item("empty").state == "broken"
    with pytest.raises(CatalogueFault, match="no package has this name"):
        catalogue.item("full")


def test_added_package_is_a_complete_copy_under_its_own_name(tmp_path):
    source = put(tmp_path, folder="from-usb")

    package = add_package(source, tmp_path / "site")

    assert package.folder == tmp_path / "site" / "tiny-1.0.0"
    assert (package.folder / "weights.keras").read_bytes() == b"weights"
    assert [path.name for path in (tmp_path / "site").iterdir()] == ["tiny-1.0.0"]


def test_installed_version_is_never_overwritten(tmp_path):
    # Given an installed version and another package that claims to be the same one,
    site = tmp_path / "site"
    installed = put(site, folder="tiny-by-hand")
    other = put(tmp_path, folder="other")
    (installed / "NOTE").write_text("the one in use")

    # when it is added,
    with pytest.raises(CatalogueFault, match=r"is installed already in .*tiny-by-hand"):
        add_package(other, site)

    # then the folder is as it was.
    assert [path.name for path in site.iterdir()] == ["tiny-by-hand"]
    assert (installed / "NOTE").exists()


def test_versions_live_side_by_side(tmp_path):
    site = tmp_path / "site"
    add_package(put(tmp_path, version="1.0.0"), site)
    add_package(put(tmp_path, version="1.1.0"), site)

    assert len(read_catalogue([site], bundled=False).packages) == 2


def test_invalid_package_leaves_nothing_behind(tmp_path):
    source = put(tmp_path)
    (source / "weights.keras").write_bytes(b"other")

    with pytest.raises(PackageFault, match="sha256"):
        add_package(source, tmp_path / "site")

    assert not (tmp_path / "site").exists()


def test_folder_without_manifest_is_not_copied(tmp_path):
    with pytest.raises(PackageFault, match=r"holds no manifest\.toml"):
        add_package(tmp_path, tmp_path / "site")


def test_links_are_not_copied_in(tmp_path):
    source = put(tmp_path)
    (source / "extra").symlink_to("/etc/passwd")

    with pytest.raises(PackageFault, match="extra: links are not allowed"):
        add_package(source, tmp_path / "site")


def test_copy_that_was_cut_off_is_not_mistaken_for_a_package(tmp_path):
    # Given what a killed copy leaves behind,
    site = tmp_path / "site"
    shutil.copytree(put(tmp_path), site / ".adding-x" / "tiny-1.0.0")

    # when the catalogue is read and the package is added again,
    assert read_catalogue([site], bundled=False).installed == ()
    package = add_package(tmp_path / "tiny-1.0.0", site)

    # then it is there once.
    assert [p.folder for p in read_catalogue([site], bundled=False).packages] == [package.folder]


def test_folder_that_cannot_be_written_is_named(tmp_path):
    occupied = tmp_path / "site"
    occupied.write_text("a file where the folder should be")

    with pytest.raises(CatalogueFault, match="cannot be copied to"):
        add_package(put(tmp_path), occupied)
