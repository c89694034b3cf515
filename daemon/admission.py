"""Promotion and retirement of model versions: checked, decided, audited.

Owns what ``medimgd models admit``, ``retire`` and ``shadow`` do. The judgement is
``model.admission``'s, the record ``storage.standings``'.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from daemon.catalogue import digests_of, installed_catalogue, known_standings, serving
from daemon.config import Config
from daemon.errors import AdmissionRefused
from daemon.runtimes import runtime_options
from model.admission import AdmissionLimits, Criterion, judge_admission
from model.archives import package_folder
from model.catalogue import add_package
from model.errors import CatalogueFault, PackageFault
from model.package import ModelPackage, load_package
from model.runtimes.check import check_package
from storage.database import Database, migrate, open_database
from storage.errors import IllegalMove
from storage.standings import (
    Decision,
    Moved,
    VersionDigests,
    admit_version,
    check_decision,
    end_shadow,
    list_standings,
    note_installed,
    note_refused_admission,
    retire_version,
    shadow_version,
)
from storage.states import ModelState


@dataclass(frozen=True, slots=True)
class Admitted:
    """A version that serves now."""

    package: ModelPackage
    criteria: tuple[Criterion, ...]
    moved: Moved


def limits_of(config: Config) -> AdmissionLimits:
    """Return the site's limits as the judgement takes them."""
    section = config.models.admission
    return AdmissionLimits(
        evaluation_required=section.evaluation_required,
        minimum_auc=section.minimum_auc,
        minimum_sensitivity=section.minimum_sensitivity,
        minimum_specificity=section.minimum_specificity,
        maximum_subgroup_gap=section.maximum_subgroup_gap,
        lower_bounds_count=section.lower_bounds_count,
    )


def judge(config: Config, package: ModelPackage) -> tuple[Criterion, ...]:
    """Try a package with its probes and hold it against the site's limits."""
    trial = check_package(
        package.folder, device=config.worker.device, remotes=runtime_options(config).remotes
    )
    return judge_admission(package, trial, limits_of(config))


def admit(config: Config, named: str, decision: Decision) -> Admitted:
    """Let a version serve, if it is what the site asks for.

    Parameters
    ----------
    config : Config
        The site's limits.
    named : str
        ``name@version`` of an installed package, or a folder or file of one that is not: it is
        installed when it passes, and not before.
    decision : Decision
        Who, when, why.

    Raises
    ------
    AdmissionRefused
        With every criterion that is not met; the refusal is in the audit trail.
    PackageFault, CatalogueFault, IllegalMove
        It is no package, is not installed, or is admitted already.
    """
    if Path(named).exists():
        with package_folder(Path(named)) as folder:
            package = load_package(folder)
            criteria = _require_met(config, package, decision)
            before = _serving_by_itself(config, package)
            package = install(config, folder, decision, waits=True)
    else:
        package = usable_package(config, named)
        criteria = _require_met(config, package, decision)
        before = _serving_by_itself(config, package)
    with _opened(config) as database:
        moved = admit_version(
            database,
            digests_of(package),
            decision,
            in_place_of=before,
            findings=[criterion.sentence for criterion in criteria],
        )
    return Admitted(package, criteria, moved)


def _require_met(
    config: Config, package: ModelPackage, decision: Decision
) -> tuple[Criterion, ...]:
    # Asked before the trial, which takes seconds; asked again when it is written.
    for standing in known_standings(config):
        if standing.at_version == package.at_version:
            check_decision(package.at_version, standing.state, ModelState.ADMITTED)
    criteria = judge(config, package)
    unmet = [criterion.sentence for criterion in criteria if not criterion.met]
    if unmet:
        with _opened(config) as database:
            note_refused_admission(database, digests_of(package), decision, unmet)
        raise AdmissionRefused(package.at_version, criteria)
    return criteria


def retire(config: Config, named: str, decision: Decision) -> Moved:
    """Silence a version until it is admitted again, also where its folder is broken or gone."""
    with _opened(config) as database:
        return retire_version(database, _digests(config, database, named), decision)


def begin_shadow(config: Config, named: str, decision: Decision) -> Moved:
    """Let an installed version run beside the one that serves.

    Raises
    ------
    CatalogueFault
        No such version is installed.
    IllegalMove
        It serves: to make it a shadow would leave nothing in its place. Or it is one already.
    """
    package = usable_package(config, named)
    with _opened(config) as database:
        now = serving(config, list_standings(database))
        if package in now.packages:
            raise IllegalMove(
                f"{package.at_version} serves: admit another version first, or retire this one"
            )
        return shadow_version(database, digests_of(package), decision)


def stop_shadow(config: Config, named: str, decision: Decision) -> Moved:
    """End a shadow; the version stays installed."""
    with _opened(config) as database:
        return end_shadow(database, _digests(config, database, named), decision)


def waits_for_admission(config: Config, package: ModelPackage) -> bool:
    """True when a package that is added now must not serve by itself.

    The first version of a name may, where the site does not ask for admission. One that comes
    beside others waits for a person.
    """
    standings = known_standings(config)
    others = serving(config, standings).catalogue.packages
    names = {each.identity.name for each in others} | {each.name for each in standings}
    return config.models.admission.required or package.identity.name in names


def install(config: Config, folder: Path, decision: Decision, *, waits: bool) -> ModelPackage:
    """Copy a package into the site's folder; one that `waits` never serves by itself.

    Raises
    ------
    PackageFault, CatalogueFault
        It is no valid package, or its version is installed already.
    """
    package = load_package(folder)
    known = {item.title for item in installed_catalogue(config).installed}
    if waits and package.at_version not in known:
        # Noted before it is there: no process may see it for a moment as one that serves.
        with _opened(config) as database:
            note_installed(database, digests_of(package), decision)
    return add_package(folder, config.site_models_folder)


def usable_package(config: Config, named: str) -> ModelPackage:
    """Return an installed package by ``name@version``, whether or not it serves.

    Raises
    ------
    CatalogueFault
        None or several are installed under that name, or it is switched off.
    PackageFault
        It is broken; every fault is named.
    """
    item = installed_catalogue(config).item(named)
    if item.package is None or item.faults:
        raise PackageFault(f"model package {item.title}", item.faults)
    if not item.enabled:
        raise CatalogueFault(item.title, ["is switched off by models.disabled; remove it there"])
    return item.package


def _digests(config: Config, database: Database, named: str) -> VersionDigests:
    """Return which version is meant: an installed one, or one a person decided about before."""
    try:
        return digests_of(usable_package(config, named))
    except (CatalogueFault, PackageFault):
        for standing in list_standings(database):
            if standing.at_version == named:
                return standing.digests
        raise


def _serving_by_itself(config: Config, package: ModelPackage) -> Sequence[VersionDigests]:
    """Return what serves under the same name without a person's decision."""
    standings = known_standings(config)
    decided = {each.at_version for each in standings}
    return [
        digests_of(each)
        for each in serving(config, standings).packages
        if each.identity.name == package.identity.name
        and each.at_version not in {*decided, package.at_version}
    ]


@contextmanager
def _opened(config: Config) -> Iterator[Database]:
    """Open the database, made where there is none yet: a model may come before the first study."""
    migrate(config.database_path)
    database = open_database(config.database_path)
    try:
        yield database
    finally:
        database.close()
