"""Images per second of the whole worker, queue included, beside the runtimes' own loops.

A quick network that is shipped, beside which the queue weighs much, and one of ordinary size. The
same weights and tensors; plain ``model.predict``, the runtime's own loop and the worker
take turns, so that a busy moment of the machine hits them alike.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import numpy as np
from sqlalchemy import func, select, update

from daemon.computing import Worker
from daemon.config import Config, SiteSection
from daemon.model_settings import ModelsSection, WorkerSection
from daemon.served_models import ServedModels
from daemon.worker import SWITCH_SECONDS
from dicom_io.vocabulary import ImageTensor
from model.catalogue import BUNDLED_FOLDER
from model.conversion import optimise
from model.package import MANIFEST_NAME, ModelPackage, load_package
from model.runtime_plan import RuntimeValues
from model.runtimes.keras_runtime import KerasPredictor
from model.runtimes.opening import RuntimeOptions, open_predictor
from model.runtimes.port import FloatArray, Predictor
from storage import schema
from storage.completion import complete_now
from storage.database import Database, migrate, open_database
from storage.encoding import identity_to_json
from storage.preparation import Preparation, finish_preparation
from storage.spool import Spool
from storage.states import JobState, StudyState
from tests.benchmarks.figures import Table, median
from tests.benchmarks.material import Workshop
from tests.storage_hospital import NOON, STUDY, Hospital
from tests.tiny_models import write_package

SMALL, ORDINARY = "cxr-pneumonia", "DenseNet-121"
ORDINARY_SHAPE = (224, 224, 3)
BATCHES = (1, 8, 32)
PLAIN_IMAGES = 32
"""Of the plain loop, which is slow."""
SECONDS_TO_WAIT = 120.0


@dataclass(frozen=True)
class Contender:
    """One runtime, with the package it serves and a queue of studies for it."""

    name: str
    package: ModelPackage
    predictor: Predictor
    queue: Path


def measure(workshop: Workshop) -> Iterator[Table]:
    """Yield a table for each network; rows are runtimes, columns ways and batch sizes."""
    yield _measure(workshop, SMALL, _small(workshop), workshop.rounds(256, 64))
    yield _measure(workshop, ORDINARY, _ordinary(workshop), workshop.rounds(96, 32))


def _measure(workshop: Workshop, network: str, source: Path, images: int) -> Table:
    keras, *others = _contenders(source, workshop, images)
    plain = keras.predictor.network  # type: ignore[attr-defined]
    inputs = _inputs(keras.package, images)
    speeds: dict[tuple[str, str, int], list[float]] = {}

    def note(name: str, way: str, size: int, count: int, seconds: float) -> None:
        speeds.setdefault((name, way, size), []).append(count / seconds)

    before = sys.getswitchinterval()
    for _ in range(workshop.rounds(5, 1)):
        for size in BATCHES:
            seconds = _loop(
                lambda batch: plain.predict(batch, verbose=0), inputs[:PLAIN_IMAGES], size
            )
            note("plain", "plain", size, PLAIN_IMAGES, seconds)
            for each in (keras, *others):
                note(each.name, "loop", size, images, _loop(each.predictor.predict, inputs, size))
                sys.setswitchinterval(SWITCH_SECONDS)
                note(each.name, "worker", size, images, _serve(workshop, each, size))
                sys.setswitchinterval(before)
    return _table(network, (keras, *others), speeds, images)


def _contenders(source: Path, workshop: Workshop, images: int) -> Iterator[Contender]:
    queue: Path | None = None
    for kind in (RuntimeValues.KERAS, RuntimeValues.ONNX, RuntimeValues.OPENVINO):
        models = workshop.room("models")
        place = models / f"serving-{kind}"
        if kind is RuntimeValues.KERAS:
            shutil.copytree(source, place)
        else:
            optimise(source, place, runtime=kind)
        package = load_package(place)
        predictor: Predictor = (
            KerasPredictor(package, device="cpu")
            if kind is RuntimeValues.KERAS
            else open_predictor(package, RuntimeOptions(device="cpu"))
        )
        predictor.load()
        predictor.warm_up()
        if kind is RuntimeValues.KERAS:
            for size in BATCHES:
                blank = np.zeros((size, *_shape(package)), np.float32)
                predictor.network.predict(blank, verbose=0)  # type: ignore[attr-defined]
        inputs = _inputs(package, images)
        queue = queue or _queue(workshop, package, inputs)
        yield Contender(str(kind), package, predictor, _for_package(workshop, queue, package))


def _shape(package: ModelPackage) -> tuple[int, ...]:
    return tuple(int(edge) for edge in package.recipe.shape if edge)


def _ordinary(workshop: Workshop) -> Path:
    """Return a package of an untrained DenseNet-121 with one logit."""
    import keras  # noqa: PLC0415 - takes seconds

    weights = workshop.room("untrained") / "weights.keras"
    keras.applications.DenseNet121(
        weights=None, input_shape=ORDINARY_SHAPE, classes=1, classifier_activation=None
    ).save(weights)
    rows, columns, channels = ORDINARY_SHAPE
    folder = workshop.room("source") / "densenet-1.0.0"
    write_package(
        folder, name="densenet", rows=rows, columns=columns, channels=channels,
        weights=weights.read_bytes(), changes={"explanation": {"method": "none"}},
    )  # fmt: skip
    return folder


def _small(workshop: Workshop) -> Path:
    """Return a copy of the shipped package that explains nothing: the loop explains nothing too."""
    source = sorted(BUNDLED_FOLDER.glob(f"{SMALL}-*"))[-1]
    copy = workshop.room("source") / source.name
    shutil.copytree(source, copy)
    with (copy / MANIFEST_NAME).open("a") as manifest:
        manifest.write('\n[explanation]\nmethod = "none"\n')
    return copy


def _inputs(package: ModelPackage, images: int) -> FloatArray:
    random = np.random.default_rng(7)
    return random.random((images, *_shape(package)), dtype=np.float32)


def _queue(workshop: Workshop, package: ModelPackage, inputs: FloatArray) -> Path:
    """Return a database in which one study for each input waits."""
    folder = workshop.room("queue")
    path = folder / "medimgd.sqlite3"
    migrate(path)
    database = open_database(path)
    hospital = Hospital(database, Spool(folder / "spool", 0))
    for number, values in enumerate(inputs):
        study, now = f"{STUDY}.{number}", NOON + timedelta(seconds=number)
        hospital.arrive(1, study=study, now=now)
        complete_now(database, study, now)
        task = hospital.claim_study(now)
        sops = tuple(each.sop_instance_uid for each in task.series[0].instances)
        tensor = ImageTensor(
            values, ("rows", "columns", "channels"), None, sops, package.preprocessing_digest
        )
        job = replace(hospital.new_job(task, tensor=tensor), model=package.identity)
        finish_preparation(database, task, Preparation(StudyState.ROUTED, "", jobs=[job]), now)
    database.close()  # the last connection writes the log back into the one file that is copied
    return path


def _for_package(workshop: Workshop, queue: Path, package: ModelPackage) -> Path:
    """Return a copy of the queue in which the same studies wait for this package."""
    copy = workshop.room("queue") / queue.name
    shutil.copyfile(queue, copy)
    database = open_database(copy)
    identity = package.identity
    with database.write() as connection:
        connection.execute(
            update(schema.job).values(
                model_name=identity.name, model_version=identity.version,
                model_identity=identity_to_json(identity),
            )
        )  # fmt: skip
    database.close()
    return copy


def _loop(compute: object, inputs: FloatArray, size: int) -> float:
    started = time.perf_counter()
    for first in range(0, len(inputs), size):
        compute(inputs[first : first + size])  # type: ignore[operator]
    return time.perf_counter() - started


def _serve(workshop: Workshop, contender: Contender, size: int) -> float:
    """Return the seconds in which a worker empties a copy of the queue, all findings durable."""
    with workshop.passing_room("served") as folder:
        config = Config(
            site=SiteSection(data_folder=folder),
            models=ModelsSection(folders=(contender.package.folder.parent,), bundled=False),
            worker=WorkerSection(maximum_batch=size, device="cpu"),
        )
        shutil.copyfile(contender.queue, config.database_path)
        database = open_database(config.database_path)
        try:
            return _empty(config, database, contender)
        finally:
            database.close()


def _empty(config: Config, database: Database, contender: Contender) -> float:
    models = ServedModels(config, lambda package: _AlreadyLoaded(contender.predictor))
    models.refresh()
    worker = Worker(config, database, models, "worker-1")
    waiting = _count(database, JobState.WAITING)
    started = time.perf_counter()
    worker.start()
    # Nothing at hand for a moment is no end: the first claim may take longer than that.
    while worker.figures.images < waiting:
        worker.work(0.05)
        if time.perf_counter() - started > SECONDS_TO_WAIT:
            raise RuntimeError("the queue does not become empty")
    worker.recorder.drain(SECONDS_TO_WAIT)
    seconds = time.perf_counter() - started
    worker.stop()
    if _count(database, JobState.DONE) != waiting:
        raise RuntimeError("the clock was stopped before every result was durable")
    return seconds


def _count(database: Database, state: JobState) -> int:
    query = select(func.count()).where(schema.job.c.state == state)
    with database.read() as connection:
        return int(connection.execute(query).scalar_one())


class _AlreadyLoaded:
    """A predictor that was loaded and warmed before."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self.device = predictor.device
        self.description = predictor.description
        self.predict = predictor.predict

    def load(self) -> None:
        """Do nothing."""

    def warm_up(self) -> float:
        return 0.0


def _table(
    network: str,
    contenders: tuple[Contender, ...],
    speeds: dict[tuple[str, str, int], list[float]],
    images: int,
) -> Table:
    columns = [f"{way}, {size}" for size in BATCHES for way in ("predict", "loop", "worker")]
    shares = [f"worker/loop, {size}" for size in BATCHES]
    title = f"{network}: images per second, median of rounds"
    table = Table(title, ["runtime", *columns, *shares])
    for each in contenders:
        row: list[float] = []
        for size in BATCHES:
            row.append(median(speeds["plain", "plain", size]))
            row += [median(speeds[each.name, way, size]) for way in ("loop", "worker")]
        ratios = [row[3 * place + 2] / row[3 * place + 1] for place in range(len(BATCHES))]
        table.rows.append([each.name, *row, *ratios])
    table.samples = {f"{name} {way} {size}": found for (name, way, size), found in speeds.items()}
    table.notes = [f"{each.name}: {each.predictor.description.runtime}" for each in contenders] + [
        f"{images} studies wait; the clock runs from the first claim until all results are durable",
        "predict: Keras' own model.predict, one call a batch, the same tensors",
        "loop: the runtime behind the same port, from tensors in memory to probabilities",
    ]
    return table
