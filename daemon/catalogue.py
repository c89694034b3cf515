"""The model packages of this installation, as every process sees them.

Owns the site's rule of versions: of several versions of one model the highest serves, so that two
never answer for the same study. To go back, disable the newer one by ``name@version``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from daemon.config import Config
from model.catalogue import Catalogue, InstalledPackage, read_catalogue, version_order
from model.package import ModelPackage


@dataclass(frozen=True, slots=True)
class Serving:
    """The catalogue at one moment, and the packages in it that studies are shown to."""

    catalogue: Catalogue
    packages: tuple[ModelPackage, ...]


_cached: dict[tuple[object, ...], Serving] = {}


def package_folders(config: Config) -> tuple[Path, ...]:
    """Return where packages are looked for, the site's own folder first."""
    return (config.site_models_folder, *config.models.folders)


def installed_catalogue(config: Config) -> Catalogue:
    """Read the catalogue, whole: weights are hashed, broken packages listed."""
    return read_catalogue(
        package_folders(config), bundled=config.models.bundled, disabled=config.models.disabled
    )


def serving(config: Config) -> Serving:
    """Return what serves; the very same object until a package folder has changed."""
    key = _state_of(config)
    if key not in _cached:
        catalogue = installed_catalogue(config)
        _cached.clear()
        _cached[key] = Serving(catalogue, highest_versions(catalogue))
    return _cached[key]


def highest_versions(catalogue: Catalogue) -> tuple[ModelPackage, ...]:
    """Return the usable packages, of each name the highest version only."""
    highest: dict[str, ModelPackage] = {}
    for package in catalogue.packages:
        name = package.identity.name
        known = highest.get(name)
        if known is None or _version(known) < _version(package):
            highest[name] = package
    return tuple(highest.values())


def state_of(item: InstalledPackage, catalogue: Catalogue) -> str:
    """Return ``ready``, ``disabled``, ``broken``, or ``older`` where a higher version serves."""
    if item.usable and item.package not in highest_versions(catalogue):
        return "older"
    return item.state


def _version(package: ModelPackage) -> tuple[tuple[int, ...], bool, str]:
    return version_order(package.identity.version)


def _state_of(config: Config) -> tuple[object, ...]:
    """Return what changes when a package is added, removed or replaced, weights included."""
    entries: list[tuple[str, int]] = []
    for folder in package_folders(config):
        files = sorted(path for path in folder.glob("*/*") if path.is_file())
        entries.extend((str(path), path.stat().st_mtime_ns) for path in files)
    return (config.models.bundled, config.models.disabled, *entries)
