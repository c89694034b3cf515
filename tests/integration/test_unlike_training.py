"""A photograph in a perfectly fitting header is refused, in service and in an evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from sklearn.datasets import load_sample_images

from daemon.catalogue import digests_of, serving
from daemon.composing import Composer
from daemon.config import Config, SiteSection
from daemon.model_settings import ModelsSection
from daemon.preparer import Preparer
from daemon.role import now_utc
from daemon.shadow_preparing import ShadowPreparer
from dicom_io.errors import RefusalReason
from dicom_io.results.request import SRClassValues
from dicom_io.tensors import TensorRecipe, build_image_tensor, image_values_to_tensor, read_film
from model.catalogue import read_catalogue
from model.evaluation.scoring import OutcomeValues, score_images
from model.input_distribution import DISTRIBUTION_NAME, InputDistribution
from model.input_distribution_fitting import fit_distribution
from model.package_files import sha256_of
from model.training.sources import open_dataset
from storage.arrivals import Arrival
from storage.completion import complete_now
from storage.database import Database, migrate, open_database
from storage.dossier import read_dossier
from storage.installation import read_installation
from storage.recording import record_instances
from storage.results import results_awaiting_composition
from storage.shadow_runs import runs_of_study
from storage.spool import Spool
from storage.standings import Decision, admit_version, list_standings, shadow_version
from storage.states import JobState, ShadowState, StudyState
from tests.labelled_images import MeanPredictor
from tests.tiny_models import write_package
from tests.wrapped_films import FRAMES, WRAPS, eight_bit, lied_about, write_film

RECIPE = {
    "kind": "image", "rows": 64, "columns": 64, "channels": 1,
    "intensity": {"kind": "percentile", "low": 0.5, "high": 99.5},
}  # fmt: skip
SENTENCE = "This image does not look like the images the model was trained on (distance"


@pytest.fixture(scope="module")
def films(unpacked) -> dict[str, list[Path]]:
    """A share of the real films of both splits."""
    folder = unpacked("chest-xray-224")
    found = {
        split: sorted(path for path in folder.rglob("*.jpeg") if path.parts[-3] == split)
        for split in ("train", "val")
    }
    return {"train": found["train"][::18], "val": found["val"][::8]}


@pytest.fixture(scope="module")
def distribution(films) -> InputDistribution:
    recipe = TensorRecipe.from_mapping(RECIPE)
    tensors = {
        split: np.stack([image_values_to_tensor(read_film(path), recipe) for path in paths])
        for split, paths in films.items()
    }
    return fit_distribution(
        tensors["train"], tensors["val"], preprocessing_digest=recipe.digest, seed=1
    )


def photograph() -> np.ndarray:
    """A temple under the sky, (427, 640), grey values in 0..255."""
    colours = load_sample_images().images[0]
    return cv2.cvtColor(colours, cv2.COLOR_RGB2GRAY).astype(np.float32)


@pytest.fixture
def config(tmp_path: Path, distribution: InputDistribution) -> Config:
    for version in ("1.0.0", "2.0.0"):
        folder = tmp_path / "models" / f"tiny-{version}"
        folder.mkdir(parents=True)
        distribution.write(folder / DISTRIBUTION_NAME)
        table = {"file": DISTRIBUTION_NAME, "sha256": sha256_of(folder / DISTRIBUTION_NAME)}
        write_package(
            folder, version=version, rows=64, columns=64, intensity=RECIPE["intensity"],
            weights=b"never loaded", changes={"input_distribution": table},
        )  # fmt: skip
    return Config(
        site=SiteSection(data_folder=tmp_path / "data"),
        models=ModelsSection(folders=(tmp_path / "models",), bundled=False),
    )


@pytest.fixture
def database(config: Config) -> Iterator[Database]:
    migrate(config.database_path)
    opened = open_database(config.database_path)
    yield opened
    opened.close()


@pytest.fixture
def spool(config: Config) -> Spool:
    return Spool(config.spool_folder, 0)


def receive(database: Database, spool: Spool, path: Path, **header: str) -> str:
    """Take a file as if it had been sent, and complete its study."""
    study = str(header["StudyInstanceUID"])
    data = path.read_bytes()
    start = 144 + int.from_bytes(data[140:144], "little")
    stored = spool.store(data[:start], data[start:])
    record_instances(database, [Arrival(stored, None)], now_utc())
    complete_now(database, study, now_utc())
    return study


def sent(database: Database, spool: Spool, folder: Path, number: int, pixels: np.ndarray) -> str:
    header = {"StudyInstanceUID": f"2.25.{number}", "SeriesInstanceUID": f"2.25.{number}.1"}
    path = write_film(folder / f"{number}.dcm", eight_bit(pixels), **header)
    return receive(database, spool, path, **header)


def test_a_photograph_with_a_fitting_header_is_refused_and_a_film_is_not(
    config, database, spool, films, tmp_path
) -> None:
    # Given a film and a photograph with the same header,
    film = sent(database, spool, tmp_path, 1, read_film(films["val"][3]))
    photo = sent(database, spool, tmp_path, 2, photograph())
    preparer = Preparer(config, database, spool, "preparer-1")

    # when both are prepared,
    assert [preparer.prepare_next() for _ in range(3)] == [True, True, False]

    # then the film has a job, and the photograph a refusal that says why, everywhere.
    assert read_dossier(database, film).study.state is StudyState.ROUTED
    dossier = read_dossier(database, photo)
    assert dossier.study.state is StudyState.REFUSED
    assert [job.state for job in dossier.jobs] == [JobState.REFUSED]
    assert SENTENCE in str(dossier.decisions[0].evaluation["refusal"])
    (result,) = results_awaiting_composition(database)
    assert result.refusal_reason is RefusalReason.UNLIKE_TRAINING
    composer = Composer(config, database, spool, read_installation(database))
    report = composer.compose(result, SRClassValues.COMPREHENSIVE_3D)[-1]
    assert b"UNLIKE-TRAINING" in report.data
    assert SENTENCE.encode() in report.data
    assert b"No statement about any finding is made." in report.data


def test_a_shadow_refuses_a_photograph_too(config, database, spool, films, tmp_path) -> None:
    packages = list(read_catalogue(config.models.folders, bundled=False).packages)
    now = now_utc()
    admit_version(database, digests_of(packages[0]), Decision(now, "test"))
    shadow_version(database, digests_of(packages[1]), Decision(now, "test"))
    film = sent(database, spool, tmp_path, 1, read_film(films["val"][3]))
    photo = sent(database, spool, tmp_path, 2, photograph())
    preparer = Preparer(config, database, spool, "preparer-1")
    while preparer.prepare_next():
        pass
    shadows = serving(config, list_standings(database)).shadows
    shadow = ShadowPreparer(config, database, spool, "preparer-1")

    while shadow.prepare_next(shadows):
        pass

    (run,), (refused,) = (runs_of_study(database, uid) for uid in (film, photo))
    assert run.state is ShadowState.WAITING
    assert refused.state is ShadowState.REFUSED
    assert refused.reason.startswith(SENTENCE)


def test_a_film_passes_however_it_is_wrapped_but_not_lied_about(
    distribution, films, tmp_path
) -> None:
    recipe = TensorRecipe.from_mapping(RECIPE)

    def distance(path: Path, wrap) -> float:
        wrapped = write_film(tmp_path / "film.dcm", wrap(np.rint(read_film(path))))
        return distribution.distance(build_image_tensor(wrapped, recipe).values)

    for path in films["val"][::9]:
        told = {wrap.__name__: distance(path, wrap) for wrap in (*WRAPS, *FRAMES)}
        assert max(told.values()) <= distribution.limit, (path.name, told)
        assert distance(path, lied_about) > distribution.limit


def test_an_evaluation_counts_what_service_would_refuse(config, films, tmp_path) -> None:
    (package, _) = read_catalogue(config.models.folders, bundled=False).packages
    for name, image in (("film", read_film(films["val"][3])), ("photo", photograph())):
        path = tmp_path / "data" / "test" / "Bright" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), image)
    with open_dataset(tmp_path / "data") as dataset:
        scored = score_images(package, MeanPredictor((8.0, -4.0)), dataset.images)

    outcomes = {Path(each.image.name).stem: each for each in scored}
    assert outcomes["film"].outcome is OutcomeValues.SCORED
    assert outcomes["photo"].outcome is OutcomeValues.REFUSED
    assert outcomes["photo"].reason == RefusalReason.UNLIKE_TRAINING
