"""Maps travel with their result, in few bytes, and go with the pixels they came from."""

from __future__ import annotations

import numpy as np

from dicom_io.vocabulary import Explanation
from storage.endings import Analysed, finish_job
from storage.explanations import read_explanations, stored_values
from storage.results import results_of_study_within, withhold_result
from storage.retention import purge_finished_studies
from storage.schema import explanation
from tests.storage_hospital import NOON, PNEUMONIA, STUDY, Hospital, seconds

MAP = Explanation(
    label="Pneumonia",
    method="HiResCAM",
    layers=("a", "b"),
    values=np.array([[0.0, 0.25, 0.503], [1.0, 0.0, 0.7]], np.float32),
    strength=2.5,
    region=(0.125, 0.0, 0.875, 1.0),
    source_slices=1,
)
NONE = Explanation(label="Effusion", reason="the network gives no gradient")


def analysed(hospital: Hospital, *explanations: Explanation) -> int:
    hospital.enqueue()
    (job,) = hospital.claim()
    finish_job(hospital.database, Analysed(job, (PNEUMONIA,), NOON, explanations), NOON)
    with hospital.database.read() as connection:
        (result,) = results_of_study_within(connection, STUDY)
    return result.id


def test_a_map_is_read_back_within_half_a_step(hospital: Hospital) -> None:
    result_id = analysed(hospital, MAP, NONE)

    without, found = read_explanations(hospital.database, result_id)

    assert without == NONE
    assert found.values is not None
    assert found.values.dtype == np.float32
    assert np.abs(found.values - MAP.values).max() <= 0.5 / 255
    assert np.array_equal(found.values, stored_values(MAP.values))
    assert (found.label, found.method, found.layers) == ("Pneumonia", "HiResCAM", ("a", "b"))
    assert (found.strength, found.region, found.source_slices) == (2.5, MAP.region, 1)
    assert found.reason == ""


def test_a_result_without_explanations_has_none(hospital: Hospital) -> None:
    assert read_explanations(hospital.database, analysed(hospital)) == ()


def test_a_map_takes_few_bytes(hospital: Hospital) -> None:
    smooth = np.outer(np.linspace(0, 1, 160), np.linspace(0, 1, 160)).astype(np.float32)
    result_id = analysed(hospital, Explanation("Pneumonia", "Grad-CAM", ("last",), smooth, 1.0))

    with hospital.database.read() as connection:
        (data,) = (connection.execute(explanation.select()).mappings().one()["data"],)

    assert len(data) < 160 * 160 / 2
    assert read_explanations(hospital.database, result_id)[0].values.shape == (160, 160)


def test_a_finish_repeated_writes_the_map_once(hospital: Hospital) -> None:
    hospital.enqueue()
    (job,) = hospital.claim()
    done = Analysed(job, (PNEUMONIA,), NOON, (MAP,))

    finish_job(hospital.database, done, NOON)
    finish_job(hospital.database, done, NOON)

    with hospital.database.read() as connection:
        assert len(connection.execute(explanation.select()).all()) == 1


def test_the_map_goes_with_the_pixels(hospital: Hospital) -> None:
    result_id = analysed(hospital, MAP)
    withhold_result(hospital.database, result_id, "not sent here", NOON)

    purged = purge_finished_studies(
        hospital.database, hospital.spool, NOON + seconds(3 * 86400), older_than_days=1
    )

    assert len(purged) == 1
    assert read_explanations(hospital.database, result_id) == ()
