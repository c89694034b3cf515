"""Images per second of the bundled cxr-pneumonia by each runtime, beside a model.predict loop.

The same weights, converted by ``medimgd models optimise``; the same films' worth of numbers. Rounds
of all contenders take turns, so that a busy moment of the machine hits them alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model.catalogue import BUNDLED_FOLDER
from model.conversion import optimise
from model.package import load_package
from model.runtime_plan import RuntimeValues
from model.runtimes.keras_runtime import KerasPredictor
from model.runtimes.opening import RuntimeOptions, open_predictor
from model.runtimes.port import FloatArray, Predictor
from tests.benchmarks.figures import Table, median, timed
from tests.benchmarks.material import Workshop

MODEL = "cxr-pneumonia"
BATCHES = (1, 8, 32)
IMAGES_A_ROUND = 32
PLAIN = "model.predict, one call a batch"


@dataclass(frozen=True)
class Contender:
    """One way to compute."""

    name: str
    runtime: str
    compute: Callable[[FloatArray], object]


def measure(workshop: Workshop) -> Iterator[Table]:
    """Yield images per second and milliseconds a call; rows are runtimes, columns batch sizes."""
    source = sorted(BUNDLED_FOLDER.glob(f"{MODEL}-*"))[-1]
    contenders = list(_contenders(source, workshop.folder))
    package = load_package(source)
    random = np.random.default_rng(7)
    speeds: dict[tuple[str, int], list[float]] = {}
    for _ in range(workshop.rounds(11, 2)):
        for size in BATCHES:
            batch = random.random((size, *package.recipe.shape), dtype=np.float32)  # type: ignore[misc]
            calls = max(1, IMAGES_A_ROUND // size)
            for each in contenders:
                seconds = timed(lambda each=each, batch=batch, n=calls: _repeat(each, batch, n))  # type: ignore[misc]
                speeds.setdefault((each.name, size), []).append(calls * size / seconds)
    yield _speed_table(contenders, speeds)
    yield _cost_table(contenders, speeds)


def _contenders(source: Path, folder: Path) -> Iterator[Contender]:
    keras = KerasPredictor(load_package(source), device="cpu")
    _warm(keras)
    network = keras.network
    for size in BATCHES:
        network.predict(np.zeros((size, *network.inputs[0].shape[1:]), np.float32), verbose=0)
    versions = keras.description.runtime
    yield Contender(PLAIN, versions, lambda batch: network.predict(batch, verbose=0))
    yield Contender("Keras, compiled (default)", versions, keras.predict)
    for kind in (RuntimeValues.ONNX, RuntimeValues.OPENVINO):
        place = folder / f"serving-{kind}"
        optimise(source, place, runtime=kind)
        predictor = open_predictor(load_package(place), RuntimeOptions(device="cpu"))
        _warm(predictor)
        name = {RuntimeValues.ONNX: "ONNX Runtime", RuntimeValues.OPENVINO: "OpenVINO"}[kind]
        yield Contender(name, predictor.description.runtime, predictor.predict)


def _warm(predictor: Predictor) -> None:
    predictor.load()
    predictor.warm_up()


def _repeat(contender: Contender, batch: FloatArray, calls: int) -> None:
    for _ in range(calls):
        contender.compute(batch)


def _speed_table(contenders: list[Contender], speeds: dict[tuple[str, int], list[float]]) -> Table:
    columns = [f"batch {size}" for size in BATCHES]
    ratios = [f"x predict, {size}" for size in BATCHES]
    table = Table("Images per second, median of rounds", ["runtime", *columns, *ratios])
    for each in contenders:
        found = [median(speeds[each.name, size]) for size in BATCHES]
        plain = [median(speeds[PLAIN, size]) for size in BATCHES]
        table.rows.append(
            [each.name, *found, *(one / two for one, two in zip(found, plain, strict=True))]
        )
    table.samples = {f"{name}, batch {size}": values for (name, size), values in speeds.items()}
    table.notes = [
        f"{name}: {runtime}"
        for name, runtime in {each.name: each.runtime for each in contenders}.items()
    ]
    table.notes.append("from float32 tensors in memory to probabilities; float32 throughout")
    return table


def _cost_table(contenders: list[Contender], speeds: dict[tuple[str, int], list[float]]) -> Table:
    columns = [f"batch {size}" for size in BATCHES]
    table = Table("Milliseconds a call, median of rounds", ["runtime", *columns])
    for each in contenders:
        costs = [1000 * size / median(speeds[each.name, size]) for size in BATCHES]
        table.rows.append([each.name, *costs])
    return table
