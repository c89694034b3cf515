"""A stored result computed once more from the stored images, and what comes out differently.

Owns the comparison and its tolerances. Reads the database and the spool and writes neither.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from daemon.catalogue import installed_catalogue
from daemon.config import Config
from daemon.errors import CannotReplay, PackageGone
from dicom_io.errors import MedimgdError
from dicom_io.tensors import build_tensor
from dicom_io.vocabulary import (
    Detection,
    Explanation,
    Finding,
    ImageTensor,
    PresenceValues,
    Region,
)
from dicom_io.wording import number_of
from model.explain import Explicable, explain
from model.findings import judge
from model.package import ModelPackage
from model.regions import detect, was_looked_for
from model.runtimes.port import Predictor
from storage.contents import algorithm_of, content_digest
from storage.database import Database
from storage.dossier import read_dossier
from storage.explanations import read_explanations, stored_values
from storage.results import ResultKind, ResultRecord, get_result
from storage.spool import Spool
from storage.studies import require_images

PROBABILITY_TOLERANCE = 1e-3
"""How far a probability may be: other devices and batch sizes add in another order."""

MAP_TOLERANCE = 0.05
"""How far a map may be anywhere, on its scale from 0 to 1; it is stored in steps of 1/255."""

EDGE_TOLERANCE = 0.5
"""How far an edge of a region may be, in pixels of the source."""

PredictorMaker = Callable[[ModelPackage], Predictor]


@dataclass(frozen=True, slots=True)
class ReplayedFinding:
    """One finding, as stored and as computed again."""

    label: str
    stored_probability: float
    probability: float
    stored_presence: PresenceValues
    presence: PresenceValues
    same_operating_point: bool
    """False when the manifest's threshold or band was changed under the same version."""
    is_same: bool


@dataclass(frozen=True, slots=True)
class ReplayedMap:
    """The explanation of one finding, as stored and as computed again."""

    label: str
    largest_difference: float | None
    """On the map's scale from 0 to 1; None when there are not two maps to compare."""
    is_same: bool
    words: str
    """What was compared, or why nothing was."""


@dataclass(frozen=True, slots=True)
class ReplayedRegions:
    """The regions of a result, as stored and as computed again."""

    stored: int
    computed: int
    largest_difference: float | None
    """Of an edge, in pixels of the source; None when there are not the same ones to compare."""
    is_same: bool
    words: str
    """What was compared, or what differs."""


@dataclass(frozen=True, slots=True)
class Replay:
    """What came out."""

    result_id: int
    study_instance_uid: str
    model: str
    runtime: str
    device: str
    tolerance: float
    findings: tuple[ReplayedFinding, ...]
    maps: tuple[ReplayedMap, ...]
    regions: ReplayedRegions | None
    """None where neither then nor now anything was said of places."""
    seconds: float
    """Decoding, loading and computing."""

    @property
    def is_same(self) -> bool:
        """True when every finding, every map and every region came out as stored."""
        found = [each.is_same for each in self.findings]
        mapped = [each.is_same for each in self.maps]
        return all([*found, *mapped]) and (self.regions is None or self.regions.is_same)


def replay(
    config: Config,
    database: Database,
    spool: Spool,
    result_id: int,
    make_predictor: PredictorMaker,
    tolerance: float = PROBABILITY_TOLERANCE,
) -> Replay:
    """Compute a result again and compare.

    Parameters
    ----------
    config : Config
        Where packages are installed.
    database : Database
        Read only will do.
    spool : Spool
        Where the analysed instances lie.
    result_id : int
        As ``medimgd show`` prints it.
    make_predictor : callable
        Makes what computes a package, as the worker's does.
    tolerance : float
        How far a probability may be.

    Raises
    ------
    storage.errors.NotFound
        There is no such result.
    CannotReplay
        Nothing was computed then, or the images were removed or changed since.
    PackageGone
        No installed package has the weights that the result names.
    """
    started = time.monotonic()
    result = get_result(database, result_id)
    _require_findings(result)
    paths = analysed_files(database, spool, result)
    package = find_package(config, result)
    tensor = _tensor(result, package, paths)
    predictor = make_predictor(package)
    predictor.load()
    scores = predictor.predict(tensor.values[np.newaxis])
    findings = judge(scores[0], package.labels)
    explicable = Explicable(tensor, findings)
    (maps,) = explain(package, predictor, [explicable])
    (detection,) = detect(package, predictor, [explicable])
    return Replay(
        result_id=result.id,
        study_instance_uid=result.study_instance_uid,
        model=result.model.at_version,
        runtime=predictor.description.runtime,
        device=predictor.device,
        tolerance=tolerance,
        findings=compared_findings(result.findings, findings, tolerance),
        maps=compared_maps(read_explanations(database, result.id), maps),
        regions=compared_regions(result.detection, detection, tolerance),
        seconds=round(time.monotonic() - started, 3),
    )


def _require_findings(result: ResultRecord) -> None:
    if result.kind is not ResultKind.FINDING:
        raise CannotReplay(
            f"result {result.id} is a {result.kind}: no probabilities were computed that could be "
            "compared; 'medimgd explain' says why, 'medimgd retry' asks the model again"
        )


def analysed_files(database: Database, spool: Spool, result: ResultRecord) -> tuple[Path, ...]:
    """Return the files a result was computed from, in its order, their content checked.

    Raises
    ------
    CannotReplay
        Some were removed, or hold something else now.
    """
    dossier = read_dossier(database, result.study_instance_uid)
    try:
        require_images(dossier.study)
    except MedimgdError as error:
        raise CannotReplay(str(error)) from error
    known = {each.sop_instance_uid: each for one in dossier.series for each in one.instances}
    paths = []
    for uid in result.sop_instance_uids:
        if uid not in known:
            raise CannotReplay(
                f"result {result.id}: instance {uid} is no longer stored; send the study again"
            )
        path = spool.absolute(known[uid].path)
        _require_content(result, uid, path, known[uid].content_digest)
        paths.append(path)
    return tuple(paths)


def _require_content(result: ResultRecord, uid: str, path: Path, recorded: str) -> None:
    try:
        found = content_digest(path, algorithm_of(recorded))
    except (OSError, MedimgdError) as error:
        raise CannotReplay(
            f"result {result.id}: the file of instance {uid} cannot be read "
            f"({type(error).__name__}); 'medimgd doctor' checks the disk"
        ) from error
    if found != recorded:
        raise CannotReplay(
            f"result {result.id}: the file of instance {uid} was changed since it was received: "
            f"its digest is {found}, {recorded} was stored"
        )


def find_package(config: Config, result: ResultRecord) -> ModelPackage:
    """Return the installed package with the very weights of a result, serving or not.

    Raises
    ------
    PackageGone
        None is installed, or it cannot be used.
    """
    items = installed_catalogue(config).installed
    packages = [item.package for item in items if item.package is not None]
    same_version = [each for each in packages if each.at_version == result.model.at_version]
    for package in same_version:
        if package.identity.weights_sha256 == result.model.weights_sha256:
            return package
    if same_version:
        raise PackageGone(
            f"result {result.id}: {result.model.at_version} is installed with other weights "
            f"({same_version[0].identity.weights_sha256[:12]}…, the result names "
            f"{result.model.weights_sha256[:12]}…); install the package it was computed with"
        )
    raise PackageGone(
        f"result {result.id}: {result.model.at_version} is not installed, or broken; "
        "'medimgd models list' shows what is, 'medimgd models add' installs it"
    )


def _tensor(result: ResultRecord, package: ModelPackage, paths: Sequence[Path]) -> ImageTensor:
    if package.preprocessing_digest != result.preprocessing_digest:
        raise CannotReplay(
            f"result {result.id}: {package.at_version} prepares images otherwise now "
            f"({package.preprocessing_digest[:12]}…, then {result.preprocessing_digest[:12]}…)"
        )
    try:
        return build_tensor(paths, package.recipe)
    except MedimgdError as error:
        raise CannotReplay(f"result {result.id}: its images give no input now: {error}") from error


def compared_findings(
    stored: Sequence[Finding], computed: Sequence[Finding], tolerance: float
) -> tuple[ReplayedFinding, ...]:
    """Return one entry for each label that was stored or is computed now."""
    now = {each.label: each for each in computed}
    missing = [each for each in stored if each.label not in now]
    added = [each for each in computed if each.label not in {one.label for one in stored}]
    if missing or added:
        labels = ", ".join(each.label for each in (*missing, *added))
        raise CannotReplay(f"the manifest's labels were changed under the same version: {labels}")
    return tuple(_compared(each, now[each.label], tolerance) for each in stored)


def _compared(stored: Finding, computed: Finding, tolerance: float) -> ReplayedFinding:
    same_point = (
        replace(computed, probability=stored.probability, presence=stored.presence) == stored
    )
    close = abs(stored.probability - computed.probability) <= tolerance
    return ReplayedFinding(
        stored.label,
        stored.probability,
        computed.probability,
        stored.presence,
        computed.presence,
        same_point,
        is_same=close and same_point and stored.presence is computed.presence,
    )


def compared_maps(
    stored: Sequence[Explanation], computed: Sequence[Explanation]
) -> tuple[ReplayedMap, ...]:
    """Return one entry for each finding that is explained, then or now."""
    then = {each.label: each for each in stored}
    now = {each.label: each for each in computed}
    return tuple(
        _compared_map(label, then.get(label), now.get(label)) for label in sorted({*then, *now})
    )


def _compared_map(label: str, then: Explanation | None, now: Explanation | None) -> ReplayedMap:
    if then is None or then.values is None:
        reason = "none was kept" if then is None else then.reason
        return ReplayedMap(label, None, is_same=True, words=f"nothing to compare with: {reason}")
    if now is None or now.values is None:
        reason = "the finding is no longer present" if now is None else now.reason
        return ReplayedMap(label, None, is_same=False, words=f"no map now: {reason}")
    if now.values.shape != then.values.shape or now.region != then.region:
        words = f"{now.values.shape} cells of {now.region}, then {then.values.shape} {then.region}"
        return ReplayedMap(label, None, is_same=False, words=words)
    difference = float(np.abs(stored_values(now.values) - then.values).max())
    words = f"{now.method}, largest difference {difference:.3f} of 1"
    return ReplayedMap(label, difference, difference <= MAP_TOLERANCE, words)


def compared_regions(
    stored: Detection | None, computed: Detection | None, tolerance: float
) -> ReplayedRegions | None:
    """Compare where a model marked something, then and now.

    Regions are the same when they lie on the same images, their edges are within
    ``EDGE_TOLERANCE`` and their certainties within `tolerance`; so are those of a result for
    which no map was looked at then.
    """
    if stored is None and computed is None:
        return None
    if stored is None or not was_looked_for(stored):
        reason = "none were kept" if stored is None else stored.note
        found = 0 if computed is None else len(computed.regions)
        words = f"nothing to compare with: {reason}"
        return ReplayedRegions(0, found, None, is_same=True, words=words)
    then = stored.regions
    now = () if computed is None else computed.regions
    if [_images_of(each) for each in then] != [_images_of(each) for each in now]:
        words = f"{number_of(len(now), 'region')} now, {len(then)} then, not on the same images"
        return ReplayedRegions(len(then), len(now), None, is_same=False, words=words)
    pairs = list(zip(then, now, strict=True))
    certain = max((abs(a.certainty - b.certainty) for a, b in pairs), default=0.0)
    moved = max((_moved(a, b) for a, b in pairs), default=0.0)
    how_many = number_of(len(now), "region")
    words = f"{how_many}, largest difference {moved:.2f} pixels, certainty {certain:.4f}"
    is_same = moved <= EDGE_TOLERANCE and certain <= tolerance
    return ReplayedRegions(len(then), len(now), moved, is_same, words)


def _images_of(region: Region) -> list[tuple[str, int | None]]:
    return [(each.sop_instance_uid, each.frame_number) for each in region.outlines]


def _moved(then: Region, now: Region) -> float:
    """Return the largest distance of two edges, in pixels of the source."""
    pairs = zip(then.outlines, now.outlines, strict=True)
    return max(float(np.abs(np.subtract(one.points, other.points)).max()) for one, other in pairs)
