"""The trial of a package in a process of its own: it loads, it computes, the answer is sane.

Owns the trial. A runtime that crashes takes only the trial's process with it, and that too is a
fault with a sentence.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from model.errors import ModelError, PackageFault
from model.evaluation_report import contradictions, read_evaluation_report
from model.explain import explanation_in_words
from model.package import ModelPackage, load_package
from model.probes import read_probes
from model.regions import regions_in_words
from model.runtimes.batched import IMAGE_BATCH_SIZES, VOLUME_BATCH_SIZES
from model.runtimes.opening import RuntimeOptions, open_predictor
from model.runtimes.port import FloatArray, Predictor
from model.runtimes.remote.access import RemoteAccess
from model.runtimes.signature import probe_shape

CHECK_SECONDS = 300.0
"""Loading and two predictions take seconds; a model that takes this long hangs."""

SAME_SCORE = 1e-4
"""How far a score may differ between batch sizes: the order of additions differs."""


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What a trial found."""

    model: str
    """``name@version``, or the folder's name when the manifest cannot be read."""
    faults: tuple[str, ...]
    device: str = ""
    runtime: str = ""
    load_seconds: float = 0.0
    warm_up_seconds: float = 0.0
    image_seconds: float = 0.0
    """One prediction of one input, after warm-up."""
    probabilities: tuple[tuple[float, ...], ...] = ()
    """The answers for an input of zeros and for one of ones."""
    probe_scores: tuple[tuple[float, ...], ...] = ()
    """The answers for the package's probes, or for those that were handed over."""
    probe_difference: float | None = None
    """The largest distance from a recorded score; None where none is recorded."""
    explanation: str = ""
    """How positive findings are explained, or ``none`` and why."""
    regions: str = ""
    """Where regions are read from, or ``none`` and why."""

    @property
    def passed(self) -> bool:
        """True when nothing is wrong."""
        return not self.faults

    def as_mapping(self) -> dict[str, object]:
        """Return the record as plain data for JSON."""
        return {**asdict(self), "passed": self.passed}


def check_package(
    folder: Path,
    *,
    device: str = "auto",
    timeout_seconds: float = CHECK_SECONDS,
    probes: Path | None = None,
    remotes: Mapping[str, RemoteAccess] | None = None,
) -> CheckReport:
    """Load a package and let it compute, in a process of its own; never raises for it.

    It predicts zeros, ones and its probes, and has to reproduce the scores recorded for these.

    Parameters
    ----------
    folder : Path
        A package folder.
    device : str
        ``auto``, ``cpu`` or ``gpu``.
    timeout_seconds : float
        The trial is killed after that.
    probes : Path, optional
        A file of probes to score, for a package that has none yet.
    remotes : mapping, optional
        How the site reaches servers, as ``RuntimeOptions.remotes``.
    """
    command = [sys.executable, "-m", "model.runtimes.check", str(folder.resolve()), device]
    command += ["" if probes is None else str(probes.resolve()), _written(remotes or {})]
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
            env={**os.environ, "PYTHONPATH": path},
        )
    except subprocess.TimeoutExpired:
        return CheckReport(folder.name, (f"gave no answer within {timeout_seconds:g} s",))
    return _read_answer(folder, done)


def _read_answer(folder: Path, done: subprocess.CompletedProcess[str]) -> CheckReport:
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        return CheckReport(folder.name, (f"the runtime was ended by {name} during the trial",))
    lines = done.stdout.strip().splitlines()
    try:
        plain = json.loads(lines[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        fault = f"the trial ended with status {done.returncode}: {last[:300]}"
        return CheckReport(folder.name, (fault,))
    plain.pop("passed")
    plain["faults"] = tuple(plain["faults"])
    for name in ("probabilities", "probe_scores"):
        plain[name] = tuple(tuple(row) for row in plain[name])
    return CheckReport(**plain)


def _written(remotes: Mapping[str, RemoteAccess]) -> str:
    """Return the settings as one argument; a token stays in its file."""
    return json.dumps({name: asdict(access) for name, access in remotes.items()}, default=str)


def _read_back(written: str) -> dict[str, RemoteAccess]:
    plain: dict[str, dict[str, Any]] = json.loads(written or "{}")
    return {
        name: RemoteAccess(
            url=fields["url"],
            token_file=Path(fields["token_file"]) if fields["token_file"] else None,
            ca_file=Path(fields["ca_file"]) if fields["ca_file"] else None,
            timeout_seconds=fields["timeout_seconds"],
        )
        for name, fields in plain.items()
    }


def try_package(
    folder: Path, device: str = "auto", probes: str = "", remotes: str = ""
) -> CheckReport:
    """Do the trial in this process."""
    try:
        package = load_package(folder)
    except PackageFault as error:
        return CheckReport(folder.name, error.faults)
    try:
        contradicted = _evaluation_faults(package)
        report = _try_predictor(
            package,
            open_predictor(package, RuntimeOptions(device, remotes=_read_back(remotes))),
            Path(probes) if probes else None,
        )
        return replace(report, faults=(*report.faults, *contradicted))
    except ModelError as error:
        return CheckReport(package.at_version, (str(error),))


def _evaluation_faults(package: ModelPackage) -> list[str]:
    """Return where the package's evaluation report contradicts it; a package may have none."""
    if package.evaluation is None:
        return []
    return contradictions(read_evaluation_report(package.evaluation.path), package)


def _try_predictor(
    package: ModelPackage, predictor: Predictor, handed_over: Path | None = None
) -> CheckReport:
    started = time.perf_counter()
    predictor.load()
    load_seconds = time.perf_counter() - started
    warm_up_seconds = predictor.warm_up()
    shape = probe_shape(package.recipe)
    probes = np.stack([np.zeros(shape, np.float32), np.ones(shape, np.float32)])
    started = time.perf_counter()
    alone = predictor.predict(probes[:1])
    image_seconds = time.perf_counter() - started
    # A batch of two goes where a single input does as a rule, one of the largest size does not: it
    # is computed in another size, and of what it is shared out in no part is larger.
    sizes = VOLUME_BATCH_SIZES if package.recipe.kind == "volume" else IMAGE_BATCH_SIZES
    full = np.concatenate([probes] * (sizes[-1] // 2))
    together = np.concatenate([predictor.predict(probes), predictor.predict(full)])
    scores = _probe_scores(package, predictor, handed_over)
    difference = _largest_difference(package, scores) if handed_over is None else None
    explanation = explanation_in_words(package, predictor)
    return CheckReport(
        model=package.at_version,
        faults=(
            *_score_faults(alone, together[::2]),
            *_probe_faults(package, difference),
            *_explanation_faults(package, explanation),
        ),
        device=predictor.device,
        runtime=predictor.description.runtime,
        load_seconds=round(load_seconds, 3),
        warm_up_seconds=round(warm_up_seconds, 3),
        image_seconds=round(image_seconds, 5),
        probabilities=tuple(tuple(float(v) for v in row) for row in together[:2]),
        probe_scores=scores,
        probe_difference=difference,
        explanation=explanation,
        regions=regions_in_words(package, predictor),
    )


def _explanation_faults(package: ModelPackage, explanation: str) -> list[str]:
    """A package that names layers must have them; one that names none may go without a map."""
    if package.explanation.layers and explanation.startswith("none"):
        return [f"[explanation] layers give no map: {explanation.removeprefix('none: ')}"]
    return []


def _probe_scores(
    package: ModelPackage, predictor: Predictor, handed_over: Path | None
) -> tuple[tuple[float, ...], ...]:
    path = handed_over or (package.probes.path if package.probes else None)
    if path is None:
        return ()
    probes = read_probes(path, package.recipe.shape)
    rows = [predictor.predict(np.stack([each]))[0] for each in probes]
    return tuple(tuple(float(value) for value in row) for row in rows)


def _largest_difference(
    package: ModelPackage, scores: tuple[tuple[float, ...], ...]
) -> float | None:
    """Return how far the scores are from the recorded ones; infinity when their number differs."""
    if package.probes is None:
        return None
    recorded = package.probes.scores
    if len(recorded) != len(scores):
        return math.inf
    return float(np.abs(np.array(recorded) - np.array(scores)).max())


def _probe_faults(package: ModelPackage, difference: float | None) -> list[str]:
    probes = package.probes
    if probes is None or difference is None or difference <= probes.tolerance:
        return []
    fault = (
        "the weights do not reproduce the scores recorded for the package's probes: "
        f"the largest difference is {difference:.3g}, the tolerance {probes.tolerance:g} "
        f"(recorded by {probes.runtime or 'an unknown runtime'}); this is not the model that was "
        "packed, or this runtime computes it wrongly"
    )
    return [fault]


def _score_faults(alone: FloatArray, together: FloatArray) -> list[str]:
    difference = float(np.abs(alone - together).max())
    if difference > SAME_SCORE:
        fault = f"the same input scores differently alone and in a batch, by {difference:g}"
        return [f"{fault}: the network depends on its neighbours"]
    return []


def main(arguments: Sequence[str]) -> int:
    """Try the package named on the command line; print the report as one line of JSON."""
    report = try_package(Path(arguments[0]), *arguments[1:4])
    sys.stdout.write(json.dumps(report.as_mapping()) + "\n")
    return 0 if report.passed else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
