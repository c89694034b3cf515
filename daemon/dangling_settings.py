"""Settings that lead nowhere: names of packages and folders, and of environment variables.

Owns the sentences about them. They are warnings: a site may name a package before it installs it,
a cluster sets variables of its own that begin like ours, and what a misspelt name does not switch
off must not stop a hospital's reception.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path

from pydantic import BaseModel

from daemon.catalogue import installed_catalogue
from daemon.config import CONFIG_VARIABLE, Config, unread_variables, variable_of
from model.catalogue import InstalledPackage
from model.package import ModelPackage

NEAR = 0.85
"""How alike, by letters in common, a variable is to the setting that may have been meant."""


def dangling_settings(config: Config) -> tuple[str, ...]:
    """Return a sentence for each name and folder in ``[models]`` that leads nowhere.

    And for each environment variable that looks like a setting; none says what it holds.
    Packages are read only where one is named, but then whole: hashing large weights takes seconds.
    """
    models = config.models
    named = models.disabled or models.demonstrations or models.remote
    installed = installed_catalogue(config).installed if named else ()
    packages = [item.package for item in installed if item.package is not None]
    shipped = [item.package for item in installed if item.package is not None and item.bundled]
    return (
        *_absent_folders(models.folders),
        *_unknown_switches(models.disabled, installed),
        *_unknown_demonstrations(models.demonstrations, shipped),
        *_idle_servers([each.model for each in models.remote], packages),
        *_unread_variables(unread_variables()),
    )


def _absent_folders(folders: Iterable[Path]) -> Iterator[str]:
    for folder in folders:
        if not folder.is_dir():
            yield (
                f"models.folders: {folder.absolute()} is no folder, so no package is read from "
                "there: create it, or correct the path"
            )


def _unknown_switches(names: Iterable[str], installed: Iterable[InstalledPackage]) -> Iterator[str]:
    items = list(installed)
    # A package that cannot be read is switched off by the name of its folder.
    known = {name for item in items for name in _names(item.package) or {item.title}}
    for name in names:
        if name not in known:
            yield (
                f"models.disabled: {name!r} names no installed package, so nothing is switched "
                f"off by it: {_there_are(item.title for item in items)}"
            )


def _unknown_demonstrations(names: Iterable[str], shipped: Iterable[ModelPackage]) -> Iterator[str]:
    demonstrations = [package for package in shipped if package.identity.demonstration]
    known = {name for package in demonstrations for name in _names(package)}
    for name in names:
        if name not in known:
            yield (
                f"models.demonstrations: {name!r} names no demonstration that medimgd ships, so "
                f"none serves by it: {_there_are(p.at_version for p in demonstrations)}"
            )


def _idle_servers(names: Iterable[str], packages: Iterable[ModelPackage]) -> Iterator[str]:
    remote = [package for package in packages if package.runtime.kind == "remote"]
    known = {name for package in remote for name in _names(package)}
    for name in names:
        if name not in known:
            yield (
                f"models.remote: {name!r} names no installed package that a server computes, so "
                f"the block has no effect: {_there_are(p.at_version for p in remote)}"
            )


def _unread_variables(names: Iterable[str]) -> Iterator[str]:
    known = {_plain(each): each for each in (CONFIG_VARIABLE, *_variables_of(Config))}
    for name in names:
        near = get_close_matches(_plain(name), known, n=1, cutoff=NEAR)
        hint = f"did you mean {known[near[0]]}? " if near else ""
        yield (
            f"environment: nothing reads {name}: {hint}settings are MEDIMGD_<SECTION>__<SETTING>, "
            "with two underscores between"
        )


def _variables_of(section: type[BaseModel], *within: str) -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield variable_of(*within, name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _variables_of(field.annotation, *within, name)


def _plain(variable: str) -> str:
    return "".join(each for each in variable.upper() if each.isalnum())


def _names(package: ModelPackage | None) -> set[str]:
    return set() if package is None else {package.at_version, package.identity.name}


def _there_are(titles: Iterable[str]) -> str:
    return f"there are {', '.join(titles) or 'none'}"
