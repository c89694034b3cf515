"""The model packages of this installation, as every process sees them.

Owns the site's rule of which version serves, which runs as a shadow, and which may finish what
waits for it. Whether a version may be admitted is ``daemon.admission``'s question.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from daemon.config import Config
from model.catalogue import (
    Catalogue,
    InstalledPackage,
    VersionOrder,
    read_catalogue,
    version_order,
)
from model.package import ModelPackage
from storage.audit import AuditEntry, list_audit
from storage.comparison import answering_versions
from storage.database import Database, open_database
from storage.errors import DatabaseMissing
from storage.standings import Standing, VersionDigests, list_standings
from storage.states import ModelState

_DECIDED = (ModelState.ADMITTED, ModelState.SUPERSEDED, ModelState.RETIRED)


@dataclass(frozen=True, slots=True)
class Shadow:
    """A package that runs beside the one that serves, and since when."""

    package: ModelPackage
    standing: Standing


@dataclass(frozen=True, slots=True)
class Serving:
    """The catalogue at one moment, and what each usable package in it may do."""

    catalogue: Catalogue
    packages: tuple[ModelPackage, ...]
    """Studies are shown to these: at most one version of each name."""
    shadows: tuple[Shadow, ...] = ()
    """Studies are shown to these too, and what they say goes nowhere."""
    finishing: tuple[ModelPackage, ...] = ()
    """Other versions that nobody retired: they finish what waits for them, and no more."""
    out_of_order: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Versions that should serve or run and cannot, each with the reason."""


_cached: dict[tuple[object, ...], Serving] = {}


def package_folders(config: Config) -> tuple[Path, ...]:
    """Return where packages are looked for, the site's own folder first."""
    return (config.site_models_folder, *config.models.folders)


def installed_catalogue(config: Config) -> Catalogue:
    """Read the catalogue, whole: weights are hashed, broken packages listed."""
    return read_catalogue(
        package_folders(config), bundled=config.models.bundled, disabled=config.models.disabled
    )


def known_standings(config: Config) -> tuple[Standing, ...]:
    """Return what a person decided, read from outside; nothing before the first start."""
    try:
        database = open_database(config.database_path, read_only=True)
    except DatabaseMissing:
        return ()
    try:
        return list_standings(database)
    finally:
        database.close()


def known_versions(config: Config, database: Database) -> frozenset[str]:
    """Return ``name@version`` of all that is installed, was decided about or was asked here."""
    return frozenset(
        (
            *(item.title for item in installed_catalogue(config).installed),
            *(standing.at_version for standing in list_standings(database)),
            *(f"{name}@{version}" for name, version in answering_versions(database)),
        )
    )


def decisions_about(config: Config, at_version: str) -> tuple[AuditEntry, ...]:
    """Return what people decided about a version, refusals included, the latest first."""
    try:
        database = open_database(config.database_path, read_only=True)
    except DatabaseMissing:
        return ()
    try:
        return list_audit(database, subject=at_version)
    finally:
        database.close()


def serving(config: Config, standings: Sequence[Standing] = ()) -> Serving:
    """Return what serves; the very same object until a package folder or a standing has changed."""
    key = (*_state_of(config), *standings)
    if key not in _cached:
        catalogue = installed_catalogue(config)
        _cached.clear()
        _cached[key] = serving_of(
            catalogue, standings, admission_required=config.models.admission.required,
            demonstrations=config.models.demonstrations,
        )  # fmt: skip
    return _cached[key]


def serving_of(
    catalogue: Catalogue,
    standings: Iterable[Standing],
    *,
    admission_required: bool = False,
    demonstrations: Collection[str] = (),
) -> Serving:
    """Apply the site's rule; a pure function.

    The version that was admitted serves. Where a person has admitted or retired no version of a
    name, the highest serves by itself, unless `admission_required`; but never one that a person
    has put aside: as a shadow, or as one that was only installed. Nor does a shipped demonstration
    that is not named in `demonstrations`, by name or name@version: a hospital's studies are no
    place to find out that one is there.

    A standing is for the package a person looked at: one with another manifest under the same
    version neither serves nor runs.
    """
    known = {(each.name, each.version): each for each in standings}
    decided = {each.name for each in known.values() if each.state in _DECIDED}
    unchanged, faults = _as_decided(catalogue, known)
    unasked = {p.at_version for p in shipped_demonstrations(catalogue)}
    by_itself = [
        package
        for package in unchanged
        if package.identity.name not in decided
        and _key(package) not in known
        and not admission_required
        and (package.at_version not in unasked or _is_named(package, demonstrations))
    ]
    in_state = {state: [p for p in unchanged if _state(p, known) is state] for state in ModelState}
    packages = (*in_state[ModelState.ADMITTED], *highest_versions(by_itself))
    return Serving(
        catalogue=catalogue,
        packages=tuple(sorted(packages, key=lambda each: each.identity.name)),
        shadows=tuple(Shadow(p, known[_key(p)]) for p in in_state[ModelState.SHADOW]),
        finishing=tuple(
            package
            for package in unchanged
            if package not in packages
            and _state(package, known) in (None, ModelState.SUPERSEDED, ModelState.INSTALLED)
        ),
        out_of_order=MappingProxyType(faults),
    )


def shipped_demonstrations(catalogue: Catalogue) -> tuple[ModelPackage, ...]:
    """Return the usable packages that come with medimgd and make no clinical claim."""
    return tuple(
        item.package
        for item in catalogue.installed
        if item.bundled and item.usable and item.package and item.package.identity.demonstration
    )


def _is_named(package: ModelPackage, names: Collection[str]) -> bool:
    return package.at_version in names or package.identity.name in names


def _as_decided(
    catalogue: Catalogue, known: Mapping[tuple[str, str], Standing]
) -> tuple[list[ModelPackage], dict[str, str]]:
    """Return the usable packages that are as a person saw them, and what is wrong with others."""
    faults = {item.title: "; ".join(item.faults) for item in catalogue.broken}
    unchanged = []
    for package in catalogue.packages:
        standing = known.get(_key(package))
        if standing is None or standing.manifest_sha256 == package.manifest_sha256:
            unchanged.append(package)
        elif standing.state in (ModelState.ADMITTED, ModelState.SHADOW):
            faults[package.at_version] = (
                f"its manifest was changed since it became {standing.state}: install the package "
                f"again as it was, or retire it and admit what is there now"
            )
    present = {item.title for item in catalogue.installed}
    for standing in known.values():
        wanted = standing.state in (ModelState.ADMITTED, ModelState.SHADOW)
        if wanted and standing.at_version not in present:
            faults[standing.at_version] = f"is {standing.state}, but no longer installed"
    return unchanged, faults


def _key(package: ModelPackage) -> tuple[str, str]:
    return package.identity.name, package.identity.version


def _state(package: ModelPackage, known: Mapping[tuple[str, str], Standing]) -> ModelState | None:
    standing = known.get(_key(package))
    return None if standing is None else standing.state


def digests_of(package: ModelPackage) -> VersionDigests:
    """Return what a decision about a package is about."""
    identity = package.identity
    return VersionDigests(
        identity.name, identity.version, package.manifest_sha256, identity.weights_sha256
    )


def highest_versions(packages: Iterable[ModelPackage]) -> tuple[ModelPackage, ...]:
    """Return of each name the highest version only."""
    highest: dict[str, ModelPackage] = {}
    for package in packages:
        name = package.identity.name
        known = highest.get(name)
        if known is None or _version(known) < _version(package):
            highest[name] = package
    return tuple(highest.values())


def state_of(item: InstalledPackage, now: Serving, standings: Iterable[Standing] = ()) -> str:
    """Return in one word where a package stands.

    ``broken``, ``disabled``, what a person decided (``admitted``, ``shadow``, ...), ``ready`` for
    what serves by itself, ``older`` where a higher version does, ``demonstration`` for a shipped
    one that nobody asked for, else ``waits for admission``.
    """
    package = item.package
    if package is None or not item.usable:
        return item.state
    if package.at_version in now.out_of_order:
        return "changed"
    for standing in standings:
        if standing.at_version == package.at_version:
            return str(standing.state)
    if package in now.packages:
        return "ready"
    name = package.identity.name
    if any(each.identity.name == name for each in now.packages) and not _is_higher(package, now):
        return "older"
    is_shipped_demonstration = item.bundled and package.identity.demonstration
    return "demonstration" if is_shipped_demonstration else "waits for admission"


def state_in_words(state: str) -> str:
    """Return a state of ``state_of`` with what a reader may not expect of it."""
    if state == "demonstration":
        return f"{state}: serves only where models.demonstrations names it, or once admitted"
    return state


def _is_higher(package: ModelPackage, now: Serving) -> bool:
    return all(
        _version(package) > _version(each)
        for each in now.packages
        if each.identity.name == package.identity.name
    )


def _version(package: ModelPackage) -> VersionOrder:
    return version_order(package.identity.version)


def _state_of(config: Config) -> tuple[object, ...]:
    """Return what changes when a package is added, removed or replaced, weights included."""
    entries: list[tuple[str, int]] = []
    for folder in package_folders(config):
        files = sorted(path for path in folder.glob("*/*") if path.is_file())
        entries.extend((str(path), path.stat().st_mtime_ns) for path in files)
    models = config.models
    rules = (models.bundled, models.disabled, models.demonstrations, models.admission.required)
    return (*rules, *entries)
