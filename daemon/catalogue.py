"""The model packages of this installation, as every process sees them."""

from __future__ import annotations

from pathlib import Path

from daemon.config import Config
from model.catalogue import Catalogue, read_catalogue
from model.package import ModelPackage

_cached: dict[tuple[object, ...], Catalogue] = {}


def package_folders(config: Config) -> tuple[Path, ...]:
    """Return where packages are looked for, the site's own folder first."""
    return (config.site_models_folder, *config.models.folders)


def installed_catalogue(config: Config) -> Catalogue:
    """Read the catalogue, whole: weights are hashed, broken packages listed."""
    return read_catalogue(
        package_folders(config), bundled=config.models.bundled, disabled=config.models.disabled
    )


def installed_packages(config: Config) -> tuple[ModelPackage, ...]:
    """Return the usable packages; read again only when a package folder has changed."""
    key = _state_of(config)
    if key not in _cached:
        _cached.clear()
        _cached[key] = installed_catalogue(config)
    return _cached[key].packages


def _state_of(config: Config) -> tuple[object, ...]:
    """Return what changes when a package is added, removed or replaced."""
    entries: list[tuple[str, int]] = []
    for folder in package_folders(config):
        manifests = sorted(folder.glob("*/manifest.toml"))
        entries.extend((str(path), path.stat().st_mtime_ns) for path in manifests)
    return (config.models.bundled, config.models.disabled, *entries)
