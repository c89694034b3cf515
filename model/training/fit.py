"""The training loop: batches, schedule, the best weights on the validation split.

Owns optimiser, loss and stopping rule. Receives arrays and a network; knows nothing of files,
DICOM or packages.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from model.training.augment import AugmentationRanges, augment_batch
from model.training.films import FilmSet
from model.training.measures import roc_auc

logger = logging.getLogger(__name__)

FloatArray = npt.NDArray[np.float32]
_Batch = tuple[FloatArray, FloatArray]


@dataclass(frozen=True, slots=True)
class FitSettings:
    """What a run is made of besides data and network; written into the package."""

    epochs: int = 28
    batch_size: int = 32
    learning_rate: float = 2e-3
    """Peak of a one-cycle schedule: one epoch of linear rise, then half a cosine to zero."""
    weight_decay: float = 0.02
    label_smoothing: float = 0.05
    judged_share: float = 0.4
    """Only the last share of the epochs may become the result: early ones are unsettled."""
    seed: int = 20240611

    def as_mapping(self) -> dict[str, float | int]:
        """Return the settings for a manifest."""
        return asdict(self)


def batches(
    films: FilmSet, settings: FitSettings, ranges: AugmentationRanges, rng: np.random.Generator
) -> Iterator[_Batch]:
    """Yield one epoch of augmented batches, both classes drawn equally often."""
    labels = films.labels
    order = _balanced_order(labels, rng)
    for start in range(0, len(order) - settings.batch_size + 1, settings.batch_size):
        chosen = order[start : start + settings.batch_size]
        values, targets = augment_batch(films.values[chosen], labels[chosen], ranges, rng)
        smooth = settings.label_smoothing
        yield values, targets * (1 - smooth) + smooth / 2


def _read_ahead(source: Iterator[_Batch]) -> Iterator[_Batch]:
    """Yield the same batches, the next one being made while the current one is used."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="augment") as pool:
        pending = pool.submit(next, source, None)
        while (batch := pending.result()) is not None:
            pending = pool.submit(next, source, None)
            yield batch


def _balanced_order(labels: FloatArray, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return as many indices as films; half of them from each class, in random order."""
    half = len(labels) // 2
    chosen = [_repeated(np.flatnonzero(labels == label), half, rng) for label in (0, 1)]
    order = np.concatenate(chosen)
    rng.shuffle(order)
    return order


def _repeated(
    indices: npt.NDArray[np.int64], count: int, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Draw `count` indices so that none is used twice before all were used once."""
    rounds = math.ceil(count / len(indices))
    return np.concatenate([rng.permutation(indices) for _ in range(rounds)])[:count]


def fit(
    network: Any,
    train: FilmSet,
    validation: FilmSet,
    settings: FitSettings,
    ranges: AugmentationRanges,
) -> list[dict[str, float]]:
    """Train `network` in place; leave it with the weights that were best on validation.

    Best is the highest ROC AUC among the judged epochs, and the later one of equals.

    Returns
    -------
    list of dict
        Per epoch: ``epoch``, ``loss``, ``validation_auc``; ``chosen`` where the weights are
        the ones that were kept.
    """
    rng = np.random.default_rng(settings.seed)
    steps = len(train.films) // settings.batch_size
    step = _compiled_step(network, settings, steps)
    history: list[dict[str, float]] = []
    best_auc, best_epoch, best_weights = -1.0, 0, network.get_weights()
    first_judged = int(settings.epochs * (1 - settings.judged_share))
    for epoch in range(settings.epochs):
        epoch_batches = _read_ahead(batches(train, settings, ranges, rng))
        losses = [float(step(*batch)) for batch in epoch_batches]
        auc = roc_auc(validation.labels, predict_logits(network, validation.values))
        history.append({"epoch": epoch, "loss": float(np.mean(losses)), "validation_auc": auc})
        logger.info("epoch %d: loss %.4f, validation AUC %.4f", epoch, history[-1]["loss"], auc)
        if epoch >= first_judged and auc >= best_auc:
            best_auc, best_epoch, best_weights = auc, epoch, network.get_weights()
    network.set_weights(best_weights)
    history[best_epoch]["chosen"] = 1.0
    return history


def _compiled_step(network: Any, settings: FitSettings, steps_per_epoch: int) -> Any:
    """Return a compiled function (values, targets) -> loss that moves the weights once."""
    total = settings.epochs * steps_per_epoch
    schedule = keras.optimizers.schedules.CosineDecay(
        settings.learning_rate / 20,
        total - steps_per_epoch,
        warmup_target=settings.learning_rate,
        warmup_steps=steps_per_epoch,
    )
    optimizer = keras.optimizers.AdamW(
        schedule, weight_decay=settings.weight_decay, global_clipnorm=1.0
    )
    optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
    optimizer.build(network.trainable_variables)
    loss_of = keras.losses.BinaryCrossentropy(from_logits=True)

    @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]
    def step(values: Any, targets: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = loss_of(targets[:, None], network(values, training=True))
        variables = network.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)
        return loss

    return step


def predict_logits(network: Any, values: FloatArray, batch_size: int = 64) -> FloatArray:
    """Return the network's logit for each film, (film,)."""
    parts = [
        np.asarray(network(values[start : start + batch_size], training=False))[:, 0]
        for start in range(0, len(values), batch_size)
    ]
    return np.concatenate(parts).astype(np.float32)
