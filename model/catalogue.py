"""The installed model packages: what is there, what is broken, what is switched off.

Owns the folders packages live in and how one gets there. A broken package is listed with its
faults and never stops the others. Knows nothing of the database: which packages are disabled is
told by the caller.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from model.durable import publish
from model.errors import CatalogueFault, PackageFault
from model.manifest import MANIFEST_NAME
from model.package import ModelPackage, load_package

BUNDLED_FOLDER = Path(__file__).resolve().parent / "packages"
"""The packages that come with medimgd."""

_Name = tuple[tuple[str, int], ...]
"""A text and the number behind it, as often as they follow each other; -1 for no number."""
VersionOrder = tuple[tuple[int, ...], bool, _Name, _Name]
"""Numbers, whether it is no candidate, the candidate's name, the build's name."""

LARGEST_PACKAGE_BYTES = 4 << 30
MOST_PACKAGE_FILES = 1000
_TEMPORARY_PREFIX = ".adding-"


@dataclass(frozen=True, slots=True)
class InstalledPackage:
    """A folder in the catalogue, whether or not it can be used."""

    folder: Path
    bundled: bool
    package: ModelPackage | None
    """None when the folder is broken."""
    enabled: bool
    """False when the site switched it off by name or by name@version."""
    faults: tuple[str, ...] = ()

    @property
    def usable(self) -> bool:
        """True when studies may be shown to it."""
        return self.package is not None and self.enabled and not self.faults

    @property
    def title(self) -> str:
        """``name@version``, or the folder's name when the manifest cannot be read."""
        return self.package.at_version if self.package else self.folder.name

    @property
    def state(self) -> str:
        """``ready``, ``disabled`` or ``broken``."""
        if self.faults:
            return "broken"
        return "ready" if self.enabled else "disabled"


@dataclass(frozen=True, slots=True)
class Catalogue:
    """What was found in the folders, in the order of names and versions."""

    installed: tuple[InstalledPackage, ...]

    @property
    def packages(self) -> tuple[ModelPackage, ...]:
        """The packages that studies are shown to."""
        return tuple(item.package for item in self.installed if item.usable and item.package)

    @property
    def broken(self) -> tuple[InstalledPackage, ...]:
        """The folders that need a person."""
        return tuple(item for item in self.installed if item.faults)

    def find(self, at_version: str) -> ModelPackage:
        """Return a usable package by ``name@version``, or by a name that has one version only.

        Raises
        ------
        CatalogueFault
            None or several are usable under that name.
        """
        found = [p for p in self.packages if at_version in {p.at_version, p.identity.name}]
        if len(found) == 1:
            return found[0]
        known = ", ".join(p.at_version for p in self.packages) or "none"
        what = "no usable package has this name" if not found else "several versions are usable"
        raise CatalogueFault(at_version, [f"{what}; usable are {known}"])

    def item(self, at_version: str) -> InstalledPackage:
        """Return what is installed as ``name@version``, a name, or a folder's name; usable or not.

        Raises
        ------
        CatalogueFault
            None or several fit.
        """
        found = [item for item in self.installed if at_version in _names_of(item)]
        if len(found) == 1:
            return found[0]
        if found:
            which = ", ".join(item.title for item in found)
            raise CatalogueFault(
                at_version, [f"several packages have this name; say which: {which}"]
            )
        known = ", ".join(item.title for item in self.installed) or "none"
        raise CatalogueFault(at_version, [f"no package has this name; installed are {known}"])


def _names_of(item: InstalledPackage) -> set[str]:
    names = {item.folder.name}
    if item.package is not None:
        names |= {item.package.at_version, item.package.identity.name}
    return names


def read_catalogue(
    folders: Iterable[Path], *, bundled: bool = True, disabled: Collection[str] = ()
) -> Catalogue:
    """Read every package in the folders; a folder that does not exist holds none.

    Parameters
    ----------
    folders : iterable of Path
        The site's folders, each holding one folder per package version.
    bundled : bool
        Whether the packages that come with medimgd are included.
    disabled : collection of str
        Names, or ``name@version``, that the site switched off.
    """
    places = [*folders, BUNDLED_FOLDER] if bundled else list(folders)
    # The same folder may be named twice in a configuration; it is read once.
    unique = dict.fromkeys(place.resolve() for place in places)
    items = [
        _read_item(folder, place == BUNDLED_FOLDER, disabled)
        for place in unique
        for folder in _package_folders(place)
    ]
    return Catalogue(tuple(sorted(_without_twins(items), key=_order)))


def _package_folders(place: Path) -> list[Path]:
    if not place.is_dir():
        return []
    return sorted(
        path for path in place.iterdir() if path.is_dir() and not path.name.startswith((".", "_"))
    )


def _read_item(folder: Path, bundled: bool, disabled: Collection[str]) -> InstalledPackage:
    try:
        package = load_package(folder)
    except PackageFault as error:
        return InstalledPackage(folder, bundled, None, folder.name not in disabled, error.faults)
    names = {package.at_version, package.identity.name}
    return InstalledPackage(folder, bundled, package, names.isdisjoint(disabled))


def _without_twins(items: Sequence[InstalledPackage]) -> list[InstalledPackage]:
    """Mark packages that carry the same name@version: none of the later ones is used."""
    first: dict[str, Path] = {}
    result = []
    for item in items:
        known = first.setdefault(item.package.at_version, item.folder) if item.package else None
        if item.package is not None and known is not None and known != item.folder:
            fault = f"{item.package.at_version} is also in {known}, which is used; remove one"
            item = InstalledPackage(  # noqa: PLW2901
                item.folder, item.bundled, item.package, item.enabled, (fault,)
            )
        result.append(item)
    return result


def _order(item: InstalledPackage) -> tuple[str, VersionOrder, str]:
    if item.package is None:
        return (item.folder.name, ((), False, (), ()), str(item.folder))
    identity = item.package.identity
    return (identity.name, version_order(identity.version), str(item.folder))


def version_order(version: str) -> VersionOrder:
    """Return what sorts versions: ``1.10.0-rc1`` before ``1.10.0`` before ``1.10.0+onnx``.

    Numbers in the names of candidates and builds count as such: ``rc9`` before ``rc10``. What
    follows a plus says how the same weights were converted; the converted form comes later.
    """
    numbers, mark, suffix = re.fullmatch(r"([\d.]+)([-+]?)(.*)", version, re.DOTALL).groups()  # type: ignore[union-attr]
    early, build = (suffix, "") if mark == "-" else ("", suffix)
    return (
        tuple(int(part) for part in numbers.split(".")), mark != "-", _named(early), _named(build)
    )  # fmt: skip


def _named(name: str) -> _Name:
    parts = re.findall(r"(\D*)(\d+)|(\D+)", name)
    return tuple((text or last, int(number or -1)) for text, number, last in parts)


def add_package(source: Path, folder: Path) -> ModelPackage:
    """Copy a package folder into a site folder, after checking it there.

    The copy appears under its final name complete or not at all: it is made beside it, checked,
    synced and renamed. A version that is installed is never overwritten.

    Parameters
    ----------
    source : Path
        A package folder.
    folder : Path
        The site's folder; made when absent.

    Returns
    -------
    ModelPackage
        The installed copy.

    Raises
    ------
    PackageFault
        The folder is not a valid package.
    CatalogueFault
        The version is installed already, or the folder cannot be written.
    """
    _check_extent(source)
    package = load_package(source)
    name = f"{package.identity.name}-{package.identity.version}"
    target = folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _refuse_installed(package, folder, target)
        _copy_in(source, target)
    except OSError as error:
        raise CatalogueFault(
            f"{package.at_version}", [f"cannot be copied to {folder}: {error.strerror or error}"]
        ) from error
    return load_package(target)


def _check_extent(source: Path) -> None:
    """Refuse what is no package before anything of it is copied."""
    if not (source / MANIFEST_NAME).is_file():
        raise PackageFault(f"model package {source.name}", [f"{source} holds no {MANIFEST_NAME}"])
    faults = extent_faults(source)
    if faults:
        raise PackageFault(f"model package {source.name}", faults)


def extent_faults(source: Path) -> list[str]:
    """Return what is too much in a package folder: files, bytes, links."""
    paths = list(source.rglob("*"))
    faults = [
        f"{path.relative_to(source)}: links are not allowed in a package"
        for path in paths
        if path.is_symlink()
    ]
    if len(paths) > MOST_PACKAGE_FILES:
        faults.append(f"must hold at most {MOST_PACKAGE_FILES} files, received {len(paths)}")
    size = sum(path.lstat().st_size for path in paths)
    if size > LARGEST_PACKAGE_BYTES:
        faults.append(f"must be at most {LARGEST_PACKAGE_BYTES} bytes, received {size}")
    return faults


def _refuse_installed(package: ModelPackage, folder: Path, target: Path) -> None:
    installed = read_catalogue([folder]).installed
    twins = [
        item.folder
        for item in installed
        if item.package is not None and item.package.at_version == package.at_version
    ]
    if twins or target.exists():
        place = twins[0] if twins else target
        raise CatalogueFault(
            package.at_version,
            [f"is installed already in {place}; give a changed model another version"],
        )


def _copy_in(source: Path, target: Path) -> None:
    """Copy beside the target, check the copy, sync it, rename it, sync the folder."""
    temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY_PREFIX, dir=target.parent))
    try:
        copy = temporary / target.name
        shutil.copytree(source, copy)
        load_package(copy)
        publish(copy, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
