"""A package as one file: folders packed into .zip or .tar, and unpacked again with suspicion.

Owns the form of the file. What it packs twice is the same bytes; what it unpacks can neither
leave the folder it is unpacked to nor grow beyond a package's limits.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Self

from model.catalogue import LARGEST_PACKAGE_BYTES, MOST_PACKAGE_FILES
from model.errors import PackageFault
from model.manifest import MANIFEST_NAME

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
_COPY_BYTES = 1 << 20
_FIRST_ZIP_DATE = (1980, 1, 1, 0, 0, 0)
_MODE = 0o644
_LARGEST_HEADER_BYTES = 1 << 20
"""Names and times beside an entry of a .tar; it is read into memory whole."""
_HEADERS = frozenset(
    {
        tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE,
        tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK,
    }
)  # fmt: skip


class _Entry(tarfile.TarInfo):
    """An entry whose headers are refused before they are read, where they are too large."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Read the block that announces an entry or a header."""
        found = super().frombuf(buf, encoding, errors)
        if found.type in _HEADERS and found.size > _LARGEST_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {found.size} bytes")
        return found


def is_archive_name(path: Path) -> bool:
    """True when a package is to be one file, by its name."""
    return path.name.endswith(SUFFIXES)


def write_archive(folder: Path, path: Path) -> None:
    """Pack a package folder into one file; the kind is told by the name."""
    files = sorted(each for each in folder.rglob("*") if each.is_file())
    if path.name.endswith(".zip"):
        _write_zip(folder, files, path)
        return
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for each in files:
            member = tarfile.TarInfo(_name(folder, each))
            member.size, member.mode = each.stat().st_size, _MODE
            with each.open("rb") as file:
                archive.addfile(member, file)
    data = plain.getvalue()
    # Without a time in its header, so that packing twice gives the same bytes.
    path.write_bytes(data if path.name.endswith(".tar") else gzip.compress(data, mtime=0))


def _write_zip(folder: Path, files: list[Path], path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for each in files:
            member = zipfile.ZipInfo(_name(folder, each), _FIRST_ZIP_DATE)
            member.external_attr, member.compress_type = _MODE << 16, zipfile.ZIP_DEFLATED
            archive.writestr(member, each.read_bytes())


def _name(folder: Path, file: Path) -> str:
    return f"{folder.name}/{file.relative_to(folder).as_posix()}"


@contextmanager
def package_folder(path: Path) -> Iterator[Path]:
    """Give the folder of a package: itself, or what its file unpacks to for the while.

    Raises
    ------
    PackageFault
        The file is no archive, is damaged, or holds what no package may.
    """
    if path.is_dir():
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="medimgd-package-") as temporary:
        folder = Path(temporary)
        try:
            _unpack(path, folder)
        except (
            OSError, EOFError, ValueError, RuntimeError, NotImplementedError, zlib.error,
            zipfile.BadZipFile, tarfile.TarError,
        ) as error:  # fmt: skip
            fault = f"is no package folder and no .zip or .tar of one, or is damaged: {error}"
            raise PackageFault(f"model package {path.name}", [fault]) from error
        yield _only_package(path, folder)


def _unpack(path: Path, folder: Path) -> None:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            members = [each for each in archive.infolist() if not each.is_dir()]
            _check(path, [(each.filename, each.file_size) for each in members])
            for each in members:
                with archive.open(each) as source:
                    _copy(source, folder / each.filename, each.file_size)
        return
    with tarfile.open(path, tarinfo=_Entry) as tar:
        entries = _entries(tar)
        strange = [each.name for each in entries if not each.isreg()]
        if strange:
            raise PackageFault(
                f"model package {path.name}",
                [f"{name}: links and devices are not allowed in a package" for name in strange],
            )
        _check(path, [(each.name, each.size) for each in entries])
        for entry in entries:
            opened = tar.extractfile(entry)
            assert opened is not None  # noqa: S101 - a regular file
            with opened:
                _copy(opened, folder / entry.name, entry.size)


def _entries(tar: tarfile.TarFile) -> list[tarfile.TarInfo]:
    """Return what is no folder; where that is too much, no more than shows it."""
    found: list[tarfile.TarInfo] = []
    size = 0
    # What an entry holds is unpacked to find the next one: what is too large is not passed over.
    for each in tar:
        found += [] if each.isdir() else [each]
        size += each.size
        if size > LARGEST_PACKAGE_BYTES or len(found) > MOST_PACKAGE_FILES:
            break
    return found


def _check(path: Path, members: list[tuple[str, int]]) -> None:
    faults = [
        f"{name}: names in a package must stay inside it" for name, _ in members if _leaves(name)
    ]
    size = sum(size for _, size in members)
    if len(members) > MOST_PACKAGE_FILES:
        faults.append(f"must hold at most {MOST_PACKAGE_FILES} files, received {len(members)}")
    if size > LARGEST_PACKAGE_BYTES:
        faults.append(f"must unpack to at most {LARGEST_PACKAGE_BYTES} bytes, received {size}")
    if faults:
        raise PackageFault(f"model package {path.name}", faults)


def _leaves(name: str) -> bool:
    pure = PurePosixPath(name)
    return pure.is_absolute() or ".." in pure.parts or "\\" in name or "\0" in name


def _copy(source: object, target: Path, size: int) -> None:
    """Copy what was announced, and not a byte more."""
    target.parent.mkdir(parents=True, exist_ok=True)
    left = size
    with target.open("xb") as file:
        while left > 0 and (chunk := source.read(min(left, _COPY_BYTES))):  # type: ignore[attr-defined]
            file.write(chunk)
            left -= len(chunk)
    if left:
        raise EOFError(f"{target.name} ends {left} bytes early")


def _only_package(path: Path, folder: Path) -> Path:
    found = [each.parent for each in folder.rglob(MANIFEST_NAME)]
    if len(found) != 1:
        fault = f"must hold exactly one {MANIFEST_NAME}, it holds {len(found)}"
        raise PackageFault(f"model package {path.name}", [fault])
    return found[0]
