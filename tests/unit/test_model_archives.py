"""A package as one file, and its probes: what goes in comes out, and nothing else gets anywhere."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from model.archives import package_folder, write_archive
from model.catalogue import LARGEST_PACKAGE_BYTES
from model.errors import PackageFault
from model.package import load_package
from model.probes import read_probes, write_probes
from tests.tiny_models import write_package

SHAPE = (4, 4, 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_package(tmp_path / "tiny-1.0.0", weights=b"weights")
    return tmp_path / "tiny-1.0.0"


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tgz"])
def test_a_package_survives_being_one_file(folder: Path, tmp_path: Path, name: str) -> None:
    write_archive(folder, tmp_path / name)

    with package_folder(tmp_path / name) as unpacked:
        assert load_package(unpacked).manifest_sha256 == load_package(folder).manifest_sha256
        assert sorted(each.name for each in unpacked.iterdir()) == [
            "manifest.toml",
            "weights.keras",
        ]
    assert not unpacked.exists()


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz"])
def test_packing_twice_gives_the_same_bytes(folder: Path, tmp_path: Path, suffix: str) -> None:
    for name in ("a", "b"):
        write_archive(folder, tmp_path / f"{name}{suffix}")
        for each in folder.iterdir():
            each.touch()

    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def zip_of(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def tar_of(path: Path, *members: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w") as archive:
        for member in members:
            archive.addfile(member, io.BytesIO(b"x" * member.size))
    return path


@pytest.mark.parametrize("name", ["../evil", "/tmp/medimgd-evil", "a/../../evil", "a\\..\\evil"])
def test_a_name_that_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    member = tarfile.TarInfo(name)
    member.size = 1
    for path in (
        zip_of(tmp_path / "a.zip", {"manifest.toml": b"", name: b"x"}),
        tar_of(tmp_path / "a.tar", member),
    ):
        with pytest.raises(PackageFault, match="stay inside"), package_folder(path):
            pass
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    member = tarfile.TarInfo("manifest.toml")
    member.type, member.linkname = kind, "/etc/passwd"

    with (
        pytest.raises(PackageFault, match="links and devices"),
        package_folder(tar_of(tmp_path / "a.tar", member)),
    ):
        pass


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
@pytest.mark.parametrize("place", [0, 1])
def test_a_header_that_would_fill_the_memory_is_not_read(
    tmp_path: Path, kind: bytes, place: int
) -> None:
    # Given three kilobytes that unpack to a header of three megabytes,
    announced = tarfile.TarInfo("header")
    announced.type, announced.size = kind, 3 << 20
    header = announced.tobuf(tarfile.USTAR_FORMAT) + bytes(announced.size)
    parts = [tarfile.TarInfo("manifest.toml").tobuf(), tarfile.TarInfo("weights").tobuf()]
    parts.insert(place, header)
    (tmp_path / "a.tgz").write_bytes(gzip.compress(b"".join(parts) + bytes(1024)))

    with (
        pytest.raises(PackageFault, match="a header of 3145728 bytes"),
        package_folder(tmp_path / "a.tgz"),
    ):
        pass


def test_an_entry_that_is_too_large_is_not_passed_over_to_find_the_next(tmp_path: Path) -> None:
    # Given an archive that announces more than a package holds, and ends there,
    member = tarfile.TarInfo("weights")
    member.size = LARGEST_PACKAGE_BYTES + 1
    (tmp_path / "a.tar").write_bytes(member.tobuf() + bytes(512))

    with (
        pytest.raises(PackageFault, match=f"received {member.size}"),
        package_folder(tmp_path / "a.tar"),
    ):
        pass


def test_what_is_no_package_is_named(tmp_path: Path) -> None:
    rubbish = tmp_path / "a.zip"
    rubbish.write_bytes(b"PK\3\4 is no archive")
    two = zip_of(tmp_path / "b.zip", {"a/manifest.toml": b"", "b/manifest.toml": b""})
    many = zip_of(tmp_path / "c.zip", {f"{n}": b"" for n in range(1001)})

    for path, said in ((rubbish, "damaged"), (two, "exactly one"), (many, "at most 1000")):
        with pytest.raises(PackageFault, match=said), package_folder(path):
            pass


def test_probes_are_read_back_as_the_very_numbers_that_were_scored(tmp_path: Path) -> None:
    real = np.random.default_rng(1).random(SHAPE).astype(np.float32)

    (written,) = write_probes(tmp_path / "probes.npz", [real])
    (read,) = read_probes(tmp_path / "probes.npz", SHAPE)

    assert read.tobytes() == written.tobytes()
    assert read.dtype == np.float32
    assert np.abs(read - real).max() <= 1 / 510 + 1e-7


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"a": np.zeros((4, 5, 1), np.uint8)}, r"shape \(4, 4, 1\)"),
        ({"a": np.zeros(SHAPE, np.float32)}, "must be bytes"),
        ({f"p{n}": np.zeros(SHAPE, np.uint8) for n in range(65)}, "1 to 64 probes"),
        ({"a": np.array([{"code": 1}], dtype=object)}, "no file of probes"),
    ],
)
def test_a_file_that_holds_no_probes_of_the_model_is_refused(tmp_path: Path, arrays, said) -> None:
    np.savez_compressed(tmp_path / "probes.npz", **arrays)

    with pytest.raises(PackageFault, match=said):
        read_probes(tmp_path / "probes.npz", SHAPE)


def test_a_file_of_probes_that_would_fill_the_memory_is_not_unpacked(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "probes.npz", a=np.zeros(65 << 20, np.uint8))

    with pytest.raises(PackageFault, match="at most 67108864 bytes"):
        read_probes(tmp_path / "probes.npz", SHAPE)


def test_probes_that_nobody_here_can_unpack_are_damaged(tmp_path: Path) -> None:
    path = tmp_path / "probes.npz"
    np.savez_compressed(path, a=np.zeros(SHAPE, np.uint8))
    content = bytearray(path.read_bytes())
    # PPMd, which Python's zipfile does not know.
    content[content.index(b"PK\1\2") + 10] = 98
    path.write_bytes(content)

    with pytest.raises(PackageFault, match="no file of probes, or is damaged"):
        read_probes(path, SHAPE)


def test_slices_that_the_series_decides_may_be_any_number(tmp_path: Path) -> None:
    write_probes(tmp_path / "probes.npz", [np.zeros((n, 4, 4, 1), np.float32) for n in (2, 5)])

    found = read_probes(tmp_path / "probes.npz", (None, 4, 4, 1))

    assert [len(each) for each in found] == [2, 5]
