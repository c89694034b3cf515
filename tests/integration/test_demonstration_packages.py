"""The shipped demonstrations: what they read and refuse, and what they say of real series."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from dicom_io.derived import Derivation, write_derived
from dicom_io.header import read_attributes
from dicom_io.tensors import build_tensor
from dicom_io.vocabulary import Detection, Finding, PresenceValues
from model.catalogue import BUNDLED_FOLDER, read_catalogue
from model.explain import Explicable
from model.findings import judge
from model.package import ModelPackage
from model.regions import detect
from model.runtimes.check import check_package
from model.runtimes.opening import open_predictor
from model.selection import OutcomeValues, Selection, StudyInstance, select
from model.training.synthesis.lungs import grain_of
from model.training.synthesis.measuring import holds
from model.training.synthesis.motion import periodic, with_motion
from model.training.synthesis.nodules import Nodule, with_nodule
from model.training.synthesis.series import SourceSeries, source_series

Answer = tuple[Finding, Detection, tuple[str, ...]]
Answering = Callable[[list[Path]], Answer]

MASS = (28.0, 243.0, 361.0)
"""Slice, row and column inside the density of 25 mm in the left lung of the real CT, above its
widest slices: those are wider than what a position of the network sees."""


@pytest.fixture(scope="module", params=["ct-nodule", "mr-motion"])
def package(request) -> ModelPackage:
    return read_catalogue([]).find(request.param)


def answering(name: str) -> Answering:
    """Return what loads a package once and answers series as the worker does."""
    package = read_catalogue([]).find(name)
    predictor = open_predictor(package)
    predictor.load()

    def answer(paths: list[Path]) -> Answer:
        tensor = build_tensor(paths, package.recipe)
        (finding,) = judge(predictor.predict(tensor.values[np.newaxis])[0], package.labels)
        (found,) = detect(package, predictor, [Explicable(tensor, (finding,))])
        return finding, found or Detection(), tensor.sop_instance_uids

    return answer


@pytest.fixture(scope="module")
def nodules() -> Answering:
    return answering("ct-nodule")


@pytest.fixture(scope="module")
def motion() -> Answering:
    return answering("mr-motion")


@pytest.fixture(scope="module")
def ct(unpacked):
    with source_series(unpacked("ct-chest-60")) as series:
        yield series


@pytest.fixture(scope="module")
def mr(unpacked):
    with source_series(unpacked("mr-head-t1-60")) as series:
        yield series


def written(series: SourceSeries, slices: range, values: np.ndarray, folder: Path) -> list[Path]:
    """Write altered copies of some slices of a real series."""
    why = Derivation("test", "SYNTHETIC", "Altered by a test.")
    paths = [folder / f"{number:03}.dcm" for number in slices]
    for number, path, plane in zip(slices, paths, values, strict=True):
        write_derived(series.paths[number], path, plane, why)
    return paths


def attributes_of(package: ModelPackage, series: SourceSeries) -> list[StudyInstance]:
    wanted = package.keywords - {"instance_count"} | {"InstanceNumber", "NumberOfFrames"}
    return [
        StudyInstance(f"1.{n}", "1", read_attributes(path, wanted))
        for n, path in enumerate(series.paths)
    ]


def chosen(
    package: ModelPackage, instances: list[StudyInstance], changes: Mapping[str, object]
) -> Selection:
    """Return what a package does with a series whose headers were changed."""
    changed = [
        StudyInstance(each.sop_instance_uid, "1", {**each.attributes, **changes})  # type: ignore[dict-item]
        for each in instances
    ]
    return select(package, changed)


def test_both_are_small_sound_and_labelled_as_what_they_are(package: ModelPackage) -> None:
    assert package.folder.parent == BUNDLED_FOLDER
    assert package.identity.demonstration
    assert package.weights_path.stat().st_size < 1_500_000
    words = " ".join((package.identity.intended_use, *package.limits))
    assert "Not for patients" in words
    assert "one subject" in words
    assert "say nothing about patients" in words
    assert package.evaluation is not None

    trial = check_package(package.folder)

    assert trial.passed, trial.faults
    assert trial.probe_difference is not None
    assert trial.probe_difference < 1e-3


@pytest.mark.parametrize(
    ("changes", "outcome"),
    [
        ({}, OutcomeValues.MATCHED),
        ({"BodyPartExamined": "CHEST", "StudyDescription": None}, OutcomeValues.MATCHED),
        ({"Modality": "PT"}, OutcomeValues.NO_MATCH),
        ({"BodyPartExamined": "HEAD"}, OutcomeValues.NO_MATCH),
        ({"StudyDescription": None, "SeriesDescription": None, "ProtocolName": None},
         OutcomeValues.NO_MATCH),
        ({"ImageType": ("ORIGINAL", "PRIMARY", "LOCALIZER")}, OutcomeValues.OUTSIDE_CONTRACT),
        ({"ImageType": ("DERIVED", "SECONDARY", "MIP")}, OutcomeValues.OUTSIDE_CONTRACT),
        ({"SeriesDescription": "Scout lung"}, OutcomeValues.OUTSIDE_CONTRACT),
        ({"SeriesDescription": "Lung MIP 8 mm"}, OutcomeValues.OUTSIDE_CONTRACT),
        ({"SeriesDescription": "lung sag"}, OutcomeValues.OUTSIDE_CONTRACT),
        ({"SliceThickness": 5.0}, OutcomeValues.OUTSIDE_CONTRACT),
        ({"PixelSpacing": (0.5, 0.5)}, OutcomeValues.OUTSIDE_CONTRACT),
        ({"ConvolutionKernel": "STANDARD"}, OutcomeValues.OUTSIDE_CONTRACT),
    ],
)  # fmt: skip
def test_ct_nodule_reads_what_it_has_seen_and_refuses_the_rest(ct, changes, outcome) -> None:
    package = read_catalogue([]).find("ct-nodule")

    assert chosen(package, attributes_of(package, ct), changes).outcome is outcome


@pytest.mark.parametrize(
    ("changes", "outcome"),
    [
        ({}, OutcomeValues.MATCHED),
        ({"BodyPartExamined": "BRAIN"}, OutcomeValues.MATCHED),
        ({"BodyPartExamined": "KNEE"}, OutcomeValues.NO_MATCH),
        ({"StudyDescription": "MRT LWS / lumbar spine"}, OutcomeValues.NO_MATCH),
        ({"ProtocolName": "t1_tse_shoulder"}, OutcomeValues.NO_MATCH),
        ({"Modality": "CT"}, OutcomeValues.NO_MATCH),
        ({"SeriesDescription": "t2_flair", "ProtocolName": "flair"},
         OutcomeValues.OUTSIDE_CONTRACT),
        ({"SeriesDescription": "t1 localizer"}, OutcomeValues.OUTSIDE_CONTRACT),
        ({"SeriesDescription": "t1_mprage_sag"}, OutcomeValues.OUTSIDE_CONTRACT),
        ({"ImageType": ("ORIGINAL", "PRIMARY", "P", "ND")}, OutcomeValues.OUTSIDE_CONTRACT),
        ({"ImageType": ("DERIVED", "PRIMARY", "PROJECTION IMAGE")},
         OutcomeValues.OUTSIDE_CONTRACT),
        ({"SliceThickness": 5.0}, OutcomeValues.OUTSIDE_CONTRACT),
        ({"Rows": 128.0}, OutcomeValues.OUTSIDE_CONTRACT),
    ],
)  # fmt: skip
def test_mr_motion_reads_what_it_has_seen_and_refuses_the_rest(mr, changes, outcome) -> None:
    package = read_catalogue([]).find("mr-motion")

    assert chosen(package, attributes_of(package, mr), changes).outcome is outcome


def test_a_few_slices_are_refused_as_incomplete(mr) -> None:
    package = read_catalogue([]).find("mr-motion")

    found = select(package, attributes_of(package, mr)[:3])

    assert found.outcome is OutcomeValues.OUTSIDE_CONTRACT
    assert found.refusal_reason == "series incomplete"


def test_the_density_in_the_real_ct_is_found_where_it_is(nodules: Answering, ct) -> None:
    # Nobody taught it: the slices that show it are in no split.
    finding, detection, uids = nodules(list(ct.paths))

    assert finding.presence is PresenceValues.PRESENT
    assert any(holds(region, MASS, uids) for region in detection.regions)


@pytest.mark.parametrize(("first", "last"), [(0, 10), (52, 58)])
def test_slices_of_the_real_ct_without_such_a_density_are_absent(
    nodules: Answering, ct, first, last
) -> None:
    finding, detection, _ = nodules(list(ct.paths[first : last + 1]))

    assert finding.presence is PresenceValues.ABSENT
    assert detection.regions == ()


@pytest.mark.parametrize("place", [(55.0, 255.0, 180.0), (54.4, 270.5, 310.2)])
def test_a_nodule_that_is_put_in_is_found_where_it_was_put(
    nodules: Answering, ct, tmp_path: Path, place
) -> None:
    # The slices are of the test split; the place is counted from the first of them.
    first, last = 52, 58
    inside = (place[0] - first, *place[1:])
    nodule = Nodule(inside, (7.0, 8.0, 7.5), np.eye(3), 30.0)
    values, truth = with_nodule(
        ct.values[first : last + 1], ct.spacing_mm, nodule, grain_of(ct.values[:8]),
        np.random.default_rng(1),
    )  # fmt: skip

    finding, detection, uids = nodules(written(ct, range(first, last + 1), values, tmp_path))

    assert finding.presence is PresenceValues.PRESENT
    assert any(holds(region, truth.centre, uids) for region in detection.regions)


def test_the_real_mr_shows_no_motion(motion: Answering, mr) -> None:
    finding, detection, _ = motion(list(mr.paths))

    assert finding.presence is PresenceValues.ABSENT
    assert detection == Detection()


@pytest.mark.parametrize("phase_axis", [0, 1])
def test_a_head_that_swings_is_found(motion: Answering, mr, tmp_path: Path, phase_axis) -> None:
    slices = range(50, 60)
    lines = mr.values.shape[1 + phase_axis]
    swing = periodic(lines, 9, 0.4, np.array([1.5, 1.5, 1.5]))
    values = np.stack(
        [with_motion(plane, swing, mr.spacing_mm[1:], phase_axis) for plane in mr.values[50:60]]
    )

    finding, _, _ = motion(written(mr, slices, values, tmp_path))

    assert finding.presence is PresenceValues.PRESENT
