"""Explanations from the worker to the card, and results computed again; without TensorFlow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pydicom
import pytest

from daemon.composing import Composer
from daemon.config import Config, SiteSection
from daemon.errors import CannotReplay, PackageGone
from daemon.explaining import with_explanations
from daemon.model_settings import ModelsSection
from daemon.picturing import pictured_explanations
from daemon.preparer import Preparer
from daemon.replaying import MAP_TOLERANCE, replay
from daemon.role import now_utc
from daemon.worker import ServedModels, Worker
from dicom_io.results.capture import compose_capture
from dicom_io.results.lettering import CELL_SIDE
from dicom_io.results.request import SRClassValues
from dicom_io.results.study_report import compose_study_report
from dicom_io.tensors import TensorRecipe, build_tensor
from dicom_io.vocabulary import Explanation, ImageTensor
from model.errors import CannotExplain
from model.findings import judge
from model.package import ModelPackage, load_package
from model.runtimes.port import Attention, PredictorDescription
from storage.arrivals import Arrival
from storage.claims import claim_batch
from storage.completion import complete_now
from storage.database import Database, migrate, open_database
from storage.endings import Analysed
from storage.errors import NotFound
from storage.explanations import read_explanations
from storage.installation import read_installation
from storage.recording import record_instances
from storage.results import ResultRecord, results_awaiting_composition, withhold_result
from storage.retention import purge_finished_studies
from storage.spool import Spool
from tests.earlier_version import set_back
from tests.results_judges import judge_together
from tests.results_material import POSITIVE, make_film_header, make_request, write_film
from tests.tiny_models import write_package

SIDE = 64


@dataclass
class Seer:
    """Says 0.9 of every input and points at its brightest quarter."""

    package: ModelPackage
    answer: float = 0.9
    shift: float = 0.0
    fault: Exception | None = None
    batches: list[int] = field(default_factory=list)
    device: str = "stub"

    def load(self) -> None: ...

    def warm_up(self) -> float:
        return 0.0

    def predict(self, batch: np.ndarray) -> np.ndarray:
        self.batches.append(len(batch))
        dark = batch.reshape(len(batch), -1).mean(axis=1) < 0.02
        return np.where(dark, 0.1, self.answer).astype(np.float32)[:, None]

    def explain(self, batch: np.ndarray, outputs: Sequence[int]) -> Attention:
        if self.fault is not None:
            raise self.fault
        if batch.ndim == 5:
            values = np.zeros((len(batch), 4, 4, 4), np.float32)
            values[:, 3, 1, 1] = 1.0
            return Attention(values, "Grad-CAM", ("eye",))
        sums = batch.reshape(len(batch), 2, batch.shape[1] // 2, 2, -1).mean(axis=(2, 4))
        values = (sums == sums.max(axis=(1, 2), keepdims=True)).astype(np.float32)
        return Attention(values + np.float32(self.shift), "Grad-CAM", ("eye",))

    @property
    def description(self) -> PredictorDescription:
        return PredictorDescription("tiny@1.0.0", "stub", "stub", "float32", 1)


@dataclass
class Site:
    """An installation without processes: everything is called by hand."""

    config: Config
    database: Database
    spool: Spool
    folder: Path
    made: list[Seer] = field(default_factory=list)

    def receive(self, number: int = 1, corner: tuple[int, int] = (0, 1), **header: Any) -> str:
        """Store a film of which one quarter is bright."""
        study = f"2.25.{1000 + number}"
        pixels = np.full((SIDE, SIDE), 0, np.uint8)
        row, column = corner
        pixels[32 * row : 32 * row + 32, 32 * column : 32 * column + 32] = 255
        fields = {
            "SOPInstanceUID": f"{study}.9", "StudyInstanceUID": study,
            "SeriesInstanceUID": f"{study}.1", "Rows": SIDE, "Columns": SIDE,
            "PixelData": pixels.tobytes(),
        }  # fmt: skip
        path = write_film(self.folder, make_film_header(**{**fields, **header}))
        pydicom.dcmread(path).save_as(path, enforce_file_format=True)
        self.take([path], study)
        return study

    def take(self, paths: Sequence[Path], study: str) -> None:
        """Store files, index them and let a preparer see the study."""
        for path in paths:
            data = path.read_bytes()
            start = 144 + int.from_bytes(data[140:144], "little")
            stored = self.spool.store(data[:start], data[start:])
            record_instances(self.database, [Arrival(stored, None)], now_utc())
        complete_now(self.database, study, now_utc())
        assert Preparer(self.config, self.database, self.spool, "preparer-1").prepare_next()

    def maker(self, **how: Any) -> Callable[[ModelPackage], Seer]:
        def make(package: ModelPackage) -> Seer:
            self.made.append(Seer(package, **how))
            return self.made[-1]

        return make

    def analyse(self, **how: Any) -> ResultRecord:
        """Let a worker do what waits; return the newest result."""
        models = ServedModels(self.config, self.maker(**how))
        models.refresh()
        assert Worker(self.config, self.database, models, "worker-1").work()
        return results_awaiting_composition(self.database)[-1]

    def compose(self, result: ResultRecord) -> tuple[pydicom.Dataset, pydicom.Dataset]:
        installation = read_installation(self.database)
        composer = Composer(self.config, self.database, self.spool, installation)
        documents = composer.compose(result, SRClassValues.COMPREHENSIVE_3D)
        again = composer.compose(result, SRClassValues.COMPREHENSIVE_3D)
        assert [each.data for each in again] == [each.data for each in documents]
        card, report = (pydicom.dcmread(BytesIO(each.data)) for each in documents)
        return card, report

    def replay(self, result: ResultRecord, **how: Any) -> Any:
        return replay(self.config, self.database, self.spool, result.id, self.maker(**how))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    yield from opened_site(tmp_path)


def opened_site(tmp_path: Path, **package: Any) -> Iterator[Site]:
    """Yield an installation with one tiny package for single images, or for what is asked."""
    models = tmp_path / "models"
    package = {"weights": b"never loaded", "rows": 32, "columns": 32, **package}
    write_package(models / "tiny-1.0.0", **package)
    config = Config(
        site=SiteSection(data_folder=tmp_path / "data"),
        models=ModelsSection(folders=(models,), bundled=False),
    )
    migrate(config.database_path)
    database = open_database(config.database_path)
    films = tmp_path / "films"
    films.mkdir()
    yield Site(config, database, Spool(config.spool_folder, 0), films)
    database.close()


@pytest.mark.parametrize("corner", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_the_card_is_coloured_where_the_model_saw_it(site: Site, corner: tuple[int, int]) -> None:
    site.receive(corner=corner)
    card, _ = site.compose(site.analyse())

    heat = card.pixel_array[:CELL_SIDE, CELL_SIDE : 2 * CELL_SIDE].astype(int)
    middles = np.ptp(heat, axis=2)[100::248, 100::248][:2, :2]

    assert np.argmax(middles) == corner[0] * 2 + corner[1]
    assert np.sort(middles.ravel())[-2] == 0


def test_an_inverted_film_is_coloured_at_the_same_place(site: Site) -> None:
    dark = np.full((SIDE, SIDE), 255, np.uint8)
    dark[:32, 32:] = 0
    site.receive(PhotometricInterpretation="MONOCHROME1", PixelData=dark.tobytes())

    card, _ = site.compose(site.analyse())

    heat = card.pixel_array[:CELL_SIDE, CELL_SIDE : 2 * CELL_SIDE].astype(int)
    assert np.ptp(heat, axis=2)[100, 348] > 30
    assert np.ptp(heat, axis=2)[348, 100] == 0


def test_a_reason_takes_the_place_of_a_map(site: Site) -> None:
    site.receive()
    result = site.analyse(fault=CannotExplain("the gradient is lost"))

    card, report = site.compose(result)

    (explanation,) = read_explanations(site.database, result.id)
    assert explanation.reason == "the gradient is lost"
    assert card.Columns < 2 * CELL_SIDE + 360
    assert "130401" not in str(report)


def test_a_job_that_took_a_worker_down_is_not_explained(site: Site) -> None:
    for number in (1, 2):
        site.receive(number)
    first, second = claim_batch(site.database, "worker-1", "tiny", "1.0.0", 2, now_utc(), 60)
    package = load_package(site.config.models.folders[0] / "tiny-1.0.0")
    seer = Seer(package)
    found = judge(np.array([0.9], np.float32), package.labels)
    batch = [
        Analysed(replace(first, crashes=1), found, now_utc()),
        Analysed(second, found, now_utc()),
    ]

    done = with_explanations(package, seer, batch)

    assert len(done) == 2
    by_job = {each.job.id: each.explanations for each in done}
    assert "died over this analysis" in by_job[first.id][0].reason
    assert by_job[second.id][0].is_available


@pytest.fixture
def volume_site(tmp_path: Path) -> Iterator[Site]:
    yield from opened_site(tmp_path, kind="volume", slices=16)


def test_the_report_of_a_volume_cites_the_slice_that_is_shown(
    volume_site: Site, ct: list[Path]
) -> None:
    header = pydicom.dcmread(ct[0], stop_before_pixels=True)
    volume_site.take(ct, str(header.StudyInstanceUID))
    result = volume_site.analyse()

    card, report = volume_site.compose(result)

    # The last of four cells covers slices 46 to 60 of 60; from its centre on the map is flat.
    (source,) = card.SourceImageSequence
    shown = str(source.ReferencedSOPInstanceUID)
    assert result.sop_instance_uids.index(shown) >= 52
    assert set(images_in(report)) == {shown, str(card.SOPInstanceUID)}


def images_in(item: pydicom.Dataset) -> Iterator[str]:
    """Yield the instances that the content of a report refers to."""
    for child in item.get("ContentSequence", ()):
        if child.ValueType == "IMAGE":
            yield str(child.ReferencedSOPSequence[0].ReferencedSOPInstanceUID)
        yield from images_in(child)


def test_negatives_do_not_wait_for_explanations(site: Site) -> None:
    # One film that is all but black is negative, beside a positive one in the same batch.
    black = np.zeros((SIDE, SIDE), np.uint8)
    black[:6, :6] = 255
    site.receive(1)
    site.receive(2, PixelData=black.tobytes())

    site.analyse()

    results = results_awaiting_composition(site.database)
    assert site.made[0].batches == [2]
    assert [each.study_instance_uid for each in results] == ["2.25.1002", "2.25.1001"]
    assert [len(read_explanations(site.database, each.id)) for each in results] == [0, 1]


def test_a_result_computed_again_is_the_same(site: Site) -> None:
    site.receive()
    result = site.analyse()

    found = site.replay(result, answer=0.9005)

    assert found.is_same
    assert found.maps[0].largest_difference == 0
    assert found.model == "tiny@1.0.0"


@pytest.mark.parametrize(
    ("how", "part"),
    [
        ({"answer": 0.902}, "findings"),
        ({"answer": 0.3}, "findings"),
        ({"shift": 0.2}, "maps"),
        ({"fault": CannotExplain("lost")}, "maps"),
    ],
    ids=["score", "presence", "map moved", "map lost"],
)
def test_what_comes_out_otherwise_is_found(site: Site, how: dict[str, Any], part: str) -> None:
    site.receive()
    result = site.analyse()

    found = site.replay(result, **how)

    assert not found.is_same
    assert not all(each.is_same for each in getattr(found, part))


def test_a_map_may_move_by_less_than_the_tolerance(site: Site) -> None:
    site.receive()
    result = site.analyse()

    found = site.replay(result, shift=MAP_TOLERANCE / 2)

    assert found.is_same
    assert 0 < found.maps[0].largest_difference <= MAP_TOLERANCE


def test_a_changed_threshold_is_a_difference(site: Site) -> None:
    site.receive()
    result = site.analyse()
    folder = site.config.models.folders[0] / "tiny-1.0.0"
    manifest = (folder / "manifest.toml").read_text()
    (folder / "manifest.toml").write_text(manifest.replace("threshold = 0.5", "threshold = 0.6"))

    found = site.replay(result)

    assert not found.is_same
    assert not found.findings[0].same_operating_point


def test_other_weights_under_the_same_version_are_no_replay(site: Site) -> None:
    site.receive()
    result = site.analyse()
    folder = site.config.models.folders[0] / "tiny-1.0.0"
    write_package(folder, weights=b"other weights", rows=32, columns=32)

    with pytest.raises(PackageGone, match="installed with other weights"):
        site.replay(result)


def test_a_package_that_is_gone_is_named(site: Site) -> None:
    site.receive()
    result = site.analyse()
    folder = site.config.models.folders[0] / "tiny-1.0.0"
    folder.rename(folder.parent.parent / "elsewhere")

    with pytest.raises(PackageGone, match=r"tiny@1\.0\.0 is not installed"):
        site.replay(result)


def test_images_that_were_removed_are_no_replay(site: Site) -> None:
    site.receive()
    result = site.analyse()
    withhold_result(site.database, result.id, "kept here", now_utc())
    later = now_utc() + timedelta(days=3)
    assert purge_finished_studies(site.database, site.spool, later, older_than_days=1)

    with pytest.raises(CannotReplay, match="images were removed"):
        site.replay(result)


def test_a_file_that_was_changed_is_no_replay(site: Site) -> None:
    site.receive()
    result = site.analyse()
    (path,) = site.config.spool_folder.glob("studies/*/*/*.dcm")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(bytes(data))

    with pytest.raises(CannotReplay, match="was changed since it was received"):
        site.replay(result)


def test_a_result_of_an_earlier_version_is_replayed_from_the_contents_of_then(site: Site) -> None:
    site.receive()
    result = site.analyse()
    site.database.close()
    set_back(site.database.path, site.spool)
    migrate(site.database.path)
    site.database = open_database(site.database.path)
    (path,) = site.spool.stored_instances()
    data = path.read_bytes()

    assert site.replay(result).is_same
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CannotReplay, match="was changed since it was received"):
        site.replay(result)
    site.database.close()


def test_a_refusal_has_nothing_to_compare(site: Site) -> None:
    # A blank film is refused before any model sees it.
    site.receive(PixelData=bytes(SIDE * SIDE))
    (result,) = results_awaiting_composition(site.database)

    with pytest.raises(CannotReplay, match="is a refusal"):
        site.replay(result)


def test_an_unknown_result_is_not_found(site: Site) -> None:
    with pytest.raises(NotFound, match="no result 7"):
        replay(site.config, site.database, site.spool, 7, site.maker())


@pytest.fixture(scope="module")
def ct(unpacked: Callable[[str], Path]) -> list[Path]:
    """A real series whose files are numbered against the order of its slices."""
    return sorted((unpacked("ct-chest-60") / "ct-chest-60").glob("*.dcm"))


def ct_result(result_id: int = 1) -> ResultRecord:
    return cast("ResultRecord", SimpleNamespace(id=result_id, findings=(POSITIVE,)))


def test_the_slice_on_which_the_map_is_strongest_is_shown(ct: list[Path]) -> None:
    recipe = TensorRecipe("volume", 96, 96, slices=32, fit="pad")
    tensor = build_tensor(ct, recipe)
    cells = np.zeros((8, 12, 12), np.float32)
    cells[6, 5, 4] = 1.0
    stored = [
        Explanation("Pneumonia", "HiResCAM", ("a",), cells, 1.0, source_region_of(tensor), 60)
    ]

    (found,) = pictured_explanations(ct_result(), stored, ct)

    # The seventh of eight cells covers slices 46 to 52 of 60, its centre lies between 49 and 50.
    assert found.shown.place in ("slice 49 of 60 along the stack", "slice 50 of 60 along the stack")
    number = int(found.shown.place.split()[1]) - 1
    header = pydicom.dcmread(found.path, stop_before_pixels=True)
    assert str(header.SOPInstanceUID) == tensor.sop_instance_uids[number]
    strongest = np.unravel_index(np.argmax(found.shown.attention), found.shown.attention.shape)
    assert np.abs(np.subtract(strongest, (5.5 / 12 * 512, 4.5 / 12 * 512))).max() < 20


def source_region_of(tensor: ImageTensor) -> Any:
    return tuple(tensor.notes["source_region"])  # type: ignore[arg-type]


def test_a_slice_that_cannot_be_shown_leaves_a_reason(ct: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.dcm"
    broken.write_bytes(ct[0].read_bytes()[:3000])
    stored = [Explanation("Pneumonia", "HiResCAM", ("a",), np.ones((2, 2), np.float32), 1.0)]

    (found,) = pictured_explanations(ct_result(), stored, [broken])

    assert found.path is None
    assert found.shown.reason == "the image it belongs to cannot be shown"


def test_a_result_from_before_maps_were_kept_says_so() -> None:
    (found,) = pictured_explanations(ct_result(), [], [])

    assert found.shown.reason == "none was computed when this study was analysed"


def test_validators_accept_a_card_with_the_map_of_a_volume(ct: list[Path], tmp_path: Path) -> None:
    cells = np.zeros((8, 12, 12), np.float32)
    cells[3, 5, 4] = 1.0
    stored = [Explanation("Pneumonia", "HiResCAM", ("a",), cells, 1.0, source_slices=60)]
    (found,) = pictured_explanations(ct_result(), stored, ct)
    assert found.path is not None
    request = make_request(*ct, cited=(found.path,), findings=(POSITIVE,))

    card = compose_capture(request, None, explanations=[found.shown])
    report = compose_study_report(request, capture=card, explained=[POSITIVE.label])

    written = [tmp_path / f"{each.role}.dcm" for each in (card, report)]
    for path, document in zip(written, (card, report), strict=True):
        path.write_bytes(document.data)
    judge_together(written, ct)
