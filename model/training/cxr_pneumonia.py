"""Train the bundled model ``cxr-pneumonia`` and write it as a package.

Run as ``python -m model.training.cxr_pneumonia --data FOLDER_OR_ZIP --out FOLDER``. Owns the order
of the steps and how the threshold is chosen; the words are in ``cxr_pneumonia_card``. The test
split of the source is never looked at; what is chosen is chosen on validation.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dicom_io.tensors import TensorRecipe
from model.errors import TrainingDataFault
from model.findings import FloatArray
from model.manifest_writing import write_manifest
from model.package import MANIFEST_FORMAT
from model.package_files import sha256_of
from model.training.augment import AugmentationRanges
from model.training.cxr_pneumonia_card import (
    CLASSES,
    CONTRACT,
    INPUT,
    INPUT_COLUMNS,
    INPUT_ROWS,
    INTENDED_USE,
    LIMITS,
    NAME,
    README,
    SELECTION,
    SOURCE,
    TITLE,
    VERSION,
    WEIGHTS_NAME,
    label_table,
)
from model.training.films import FilmSet, check_splits, list_films, opened, read_films
from model.training.fit import FitSettings, fit, predict_logits
from model.training.measures import (
    BOOTSTRAP_ROUNDS,
    Measure,
    fitted_calibration,
    highest_threshold,
    measured,
)
from model.training.networks import calibrate, compact_network, mean_of

logger = logging.getLogger(__name__)

DROPOUT = 0.4
MEMBERS = 2
"""Networks trained from different seeds whose logits are averaged in one file."""

HIGHEST_SCALE = 2.0
"""Of the calibration. Validation alone would ask for more, but comes from the training films'
hospital: certainty would be overstated elsewhere, and scores would swing with the rounding of
grey values between 8 and 12 bit."""

THRESHOLD_SENSITIVITY = 0.96
"""The threshold is the highest that keeps this sensitivity on validation: films of another
origin tend to score too high, so every bit of specificity that sensitivity allows is taken."""

BAND_SENSITIVITY = 0.985
"""The undetermined band reaches down to the highest score that keeps this sensitivity."""


def train(data: Path, out: Path, settings: FitSettings, ranges: AugmentationRanges) -> Path:
    """Train, calibrate, choose the threshold and write the package folder.

    Parameters
    ----------
    data : Path
        A folder or zip with ``train/<CLASS>/`` and ``val/<CLASS>/``.
    out : Path
        The package appears in here as ``cxr-pneumonia-<version>``.

    Returns
    -------
    Path
        The package folder.
    """
    started = time.monotonic()
    recipe = TensorRecipe.from_mapping(INPUT)
    with opened(data) as folder:
        listed = [list_films(folder, split, CLASSES) for split in ("train", "val")]
        check_splits(*listed)
        training, validation = (read_films(films, recipe) for films in listed)
    members, histories = _fitted_members(training, validation, settings, ranges)
    network = mean_of(members)
    scale, offset = fitted_calibration(
        validation.labels, predict_logits(network, validation.values), HIGHEST_SCALE
    )
    calibrate(members, scale, offset)
    target = out / f"{NAME}-{VERSION}"
    target.mkdir(parents=True, exist_ok=True)
    network.save(target / WEIGHTS_NAME)
    facts: dict[str, object] = {
        "source": SOURCE,
        "licence": "CC BY 4.0",
        "command": "python -m model.training.cxr_pneumonia",
        "films": f"train: {_counts(training)}; validation: {_counts(validation)}",
        "split": "by patient; no patient and no identical film is in both",
        "members": len(members),
        "parameters": int(network.count_params()),
        "dropout": DROPOUT,
        "calibration": f"logit * {scale:.4f} + {offset:.4f}, fitted on validation, both classes "
        f"weighing the same, the scale at most {HIGHEST_SCALE:g}",
        "seconds": round(time.monotonic() - started),
        "chosen_epochs": [_chosen_epoch(history) for history in histories],
        "settings": settings.as_mapping(),
        "augmentation": ranges.as_mapping(),
    }
    _write_package(target, recipe, validation, network, facts, settings.seed)
    return target


def _fitted_members(
    training: FilmSet, validation: FilmSet, settings: FitSettings, ranges: AugmentationRanges
) -> tuple[list[Any], list[list[dict[str, float]]]]:
    """Train the members one after the other, each from its own seed."""
    members, histories = [], []
    for number in range(MEMBERS):
        seed = settings.seed + number
        keras.utils.set_random_seed(seed)
        member = compact_network(INPUT_ROWS, INPUT_COLUMNS, dropout=DROPOUT)
        logger.info("member %d of %d, seed %d", number + 1, MEMBERS, seed)
        histories.append(fit(member, training, validation, replace(settings, seed=seed), ranges))
        members.append(member)
    return members, histories


def _chosen_epoch(history: list[dict[str, float]]) -> int:
    return next(int(entry["epoch"]) for entry in history if entry.get("chosen"))


def _counts(films: FilmSet) -> str:
    positive = int(films.labels.sum())
    return f"{len(films.films) - positive} {CLASSES[0]}, {positive} {CLASSES[1]}"


def _write_package(
    target: Path,
    recipe: TensorRecipe,
    validation: FilmSet,
    network: Any,
    facts: dict[str, object],
    seed: int,
) -> None:
    """Choose threshold and band on validation and write manifest and README."""
    labels = validation.labels
    scores = _sigmoid(predict_logits(network, validation.values))
    threshold = _shortened(highest_threshold(labels, scores, THRESHOLD_SENSITIVITY))
    low = _shortened(highest_threshold(labels, scores, BAND_SENSITIVITY))
    figures = measured(labels, scores, threshold, seed)
    for name, figure in figures.items():
        logger.info("%s %.4f (%.4f to %.4f)", name, figure.value, figure.low, figure.high)
    write_manifest(
        target,
        {
            "format": MANIFEST_FORMAT,
            "name": NAME,
            "version": VERSION,
            "title": TITLE,
            "intended_use": INTENDED_USE,
            "limits": LIMITS,
            "demonstration": False,
            "preprocessing_digest": recipe.digest,
            "weights": {
                "file": WEIGHTS_NAME,
                "sha256": sha256_of(target / WEIGHTS_NAME),
                "runtime": "keras",
            },
            "output": {"kind": "logit", "size": 1},
            "input": INPUT,
            "selection": SELECTION,
            "contract": CONTRACT,
            "labels": [label_table(threshold, low)],
            "metrics": _metrics(figures, validation),
            "training": facts,
        },
    )
    (target / "README.md").write_text(README.format(version=VERSION), encoding="utf-8")


def _metrics(figures: dict[str, Measure], validation: FilmSet) -> dict[str, object]:
    return {
        "split": f"validation: {_counts(validation)}; a development figure, no test claim",
        "threshold_rule": f"highest threshold with a sensitivity of at least "
        f"{THRESHOLD_SENSITIVITY} on validation; undetermined down to {BAND_SENSITIVITY}",
        "interval": f"95 % percentile bootstrap over films, {BOOTSTRAP_ROUNDS} rounds",
        **{name: figure.as_mapping() for name, figure in figures.items()},
    }


def _shortened(value: float) -> float:
    """Round a threshold so that a person can read it and nothing changes."""
    return round(value, 5)


def _sigmoid(logits: FloatArray) -> FloatArray:
    return (1 / (1 + np.exp(-logits.astype(np.float64)))).astype(np.float32)


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m model.training.cxr_pneumonia")
    parser.add_argument("--data", type=Path, required=True, help="folder or zip of the films")
    parser.add_argument("--out", type=Path, required=True, help="where the package appears")
    parser.add_argument("--epochs", type=int, default=FitSettings().epochs)
    parser.add_argument("--seed", type=int, default=FitSettings().seed)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train from the command line; log one line per epoch."""
    options = _parsed(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    tf.config.threading.set_inter_op_parallelism_threads(options.threads)
    settings = FitSettings(epochs=options.epochs, seed=options.seed)
    try:
        target = train(options.data, options.out, settings, AugmentationRanges())
    except TrainingDataFault as fault:
        logger.error("%s", fault)
        return 1
    logger.info("package written to %s", target)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
