"""What a person decides about model versions: who serves, who is superseded, who is silenced."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import exc, insert
from storage_hospital import CXR, NOON, PNEUMONIA, STUDY, seconds

from dicom_io.errors import RefusalReason
from storage import schema
from storage.audit import list_audit
from storage.dossier import read_dossier
from storage.endings import Analysed, fail_attempt, finish_batch, finish_job
from storage.errors import IllegalMove
from storage.results import ResultKind
from storage.standings import (
    Decision,
    VersionDigests,
    admit_version,
    end_shadow,
    list_standings,
    note_installed,
    note_refused_admission,
    refuse_jobs_of_retired,
    retire_version,
    shadow_version,
)
from storage.states import JobState, ModelState

ONE = VersionDigests("cxr-pneumonia", "1.0.0", "a1" * 32, "b1" * 32)
TWO = VersionDigests("cxr-pneumonia", "1.1.0", "a2" * 32, "b2" * 32)
OTHER = VersionDigests("ct-nodule", "1.0.0", "a3" * 32, "b3" * 32)
DECIDED = Decision(NOON, "dr-house", "better on our films")
OTHER_STUDY = f"{STUDY}.9"


def states(hospital) -> dict[str, ModelState]:
    return {each.at_version: each.state for each in list_standings(hospital.database)}


def test_an_admitted_version_supersedes_the_one_that_served_and_no_other_name(hospital) -> None:
    for version in (ONE, OTHER):
        admit_version(hospital.database, version, DECIDED)

    moved = admit_version(hospital.database, TWO, DECIDED)

    assert moved.superseded == ("cxr-pneumonia@1.0.0",)
    assert states(hospital) == {
        "ct-nodule@1.0.0": ModelState.ADMITTED,
        "cxr-pneumonia@1.0.0": ModelState.SUPERSEDED,
        "cxr-pneumonia@1.1.0": ModelState.ADMITTED,
    }


def test_to_go_back_the_old_version_is_admitted_again(hospital) -> None:
    for version in (ONE, TWO, ONE):
        admit_version(hospital.database, version, DECIDED)

    assert states(hospital) == {
        "cxr-pneumonia@1.0.0": ModelState.ADMITTED,
        "cxr-pneumonia@1.1.0": ModelState.SUPERSEDED,
    }


def test_what_served_by_itself_is_superseded_too(hospital) -> None:
    moved = admit_version(hospital.database, TWO, DECIDED, in_place_of=[ONE])

    assert moved.superseded == ("cxr-pneumonia@1.0.0",)
    assert states(hospital)["cxr-pneumonia@1.0.0"] is ModelState.SUPERSEDED


def test_the_database_itself_holds_one_admitted_version_of_a_name(hospital) -> None:
    admit_version(hospital.database, ONE, DECIDED)

    with pytest.raises(exc.IntegrityError), hospital.database._engine.begin() as connection:
        connection.execute(
            insert(schema.model_standing).values(
                name=TWO.name, version=TWO.version, state="admitted", state_since=NOON,
                manifest_sha256=TWO.manifest_sha256, weights_sha256=TWO.weights_sha256,
            )
        )  # fmt: skip


@pytest.mark.parametrize(
    ("first", "second"),
    [(admit_version, admit_version), (retire_version, retire_version),
     (admit_version, shadow_version), (admit_version, end_shadow), (retire_version, end_shadow)],
)  # fmt: skip
def test_an_illegal_move_raises_and_leaves_no_trace(hospital, first, second) -> None:
    first(hospital.database, ONE, DECIDED)
    before = (states(hospital), len(list_audit(hospital.database)))

    with pytest.raises(IllegalMove, match=r"cxr-pneumonia@1\.0\.0"):
        second(hospital.database, ONE, DECIDED)

    assert (states(hospital), len(list_audit(hospital.database))) == before


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (admit_version, admit_version, "is admitted already"),
        (retire_version, retire_version, "is retired already"),
        (retire_version, end_shadow, "is retired, and no shadow that could be ended"),
        (admit_version, shadow_version, "is admitted: admit another version first, or retire"),
    ],
)
def test_who_decides_is_told_in_words_why_not(hospital, first, second, words: str) -> None:
    first(hospital.database, ONE, DECIDED)

    with pytest.raises(IllegalMove, match=rf"^cxr-pneumonia@1\.0\.0 {words}"):
        second(hospital.database, ONE, DECIDED)


def test_a_failed_admission_supersedes_nothing(hospital) -> None:
    admit_version(hospital.database, ONE, DECIDED)

    with pytest.raises(IllegalMove):
        admit_version(hospital.database, ONE, DECIDED, in_place_of=[TWO])

    assert states(hospital) == {"cxr-pneumonia@1.0.0": ModelState.ADMITTED}


def test_every_decision_is_in_the_audit_trail_with_who_and_why(hospital) -> None:
    database = hospital.database
    note_installed(database, TWO, DECIDED)
    shadow_version(database, TWO, DECIDED)
    end_shadow(database, TWO, DECIDED)
    note_refused_admission(database, TWO, DECIDED, ["AUC: wanted 0.9, found 0.8"])
    admit_version(database, TWO, DECIDED, findings=["AUC: wanted 0.7, found 0.8"])
    retire_version(database, TWO, DECIDED)

    trail = list(reversed(list_audit(database, subject="cxr-pneumonia@1.1.0")))

    assert [entry.action for entry in trail] == [
        "model installed", "model shadow begun", "model shadow ended",
        "model admission refused", "model admitted", "model retired",
    ]  # fmt: skip
    assert {entry.detail["by"] for entry in trail} == {"dr-house"}
    assert {entry.detail["weights_sha256"] for entry in trail} == {"b2" * 32}
    assert trail[3].detail["reasons"] == ["AUC: wanted 0.9, found 0.8"]
    assert trail[4].detail["findings"] == ["AUC: wanted 0.7, found 0.8"]


def test_analyses_that_wait_for_a_retired_version_are_refused_with_the_reason(hospital) -> None:
    job_id = hospital.enqueue()
    admit_version(hospital.database, ONE, DECIDED)

    moved = retire_version(hospital.database, ONE, Decision(NOON, "root", "misses effusions"))

    (job,) = read_dossier(hospital.database, STUDY).jobs
    (result,) = read_dossier(hospital.database, STUDY).results
    assert moved.refused_job_ids == (job_id,)
    assert job.state is JobState.REFUSED
    assert (result.kind, result.findings) == (ResultKind.REFUSAL, ())
    assert result.refusal_reason is RefusalReason.WITHDRAWN
    assert "misses effusions" in result.refusal_message


def test_what_a_worker_computes_while_its_version_is_retired_is_refused(hospital) -> None:
    hospital.enqueue()
    (job,) = hospital.claim()
    retire_version(hospital.database, ONE, DECIDED)

    state = finish_job(hospital.database, Analysed(job, (PNEUMONIA,), NOON), NOON)

    assert state is JobState.REFUSED
    (result,) = read_dossier(hospital.database, STUDY).results
    assert (result.kind, result.findings) == (ResultKind.REFUSAL, ())


def test_a_superseded_version_finishes_what_waits_for_it(hospital) -> None:
    hospital.enqueue()
    admit_version(hospital.database, ONE, DECIDED)
    admit_version(hospital.database, TWO, DECIDED)
    (job,) = hospital.claim()

    (state,) = finish_batch(hospital.database, [Analysed(job, (PNEUMONIA,), NOON)], NOON)

    assert state is JobState.DONE


def test_a_job_that_comes_back_to_the_queue_of_a_retired_version_is_swept(hospital) -> None:
    hospital.enqueue()
    hospital.enqueue(OTHER_STUDY, models=(replace(CXR, version="1.1.0"),))
    (job,) = hospital.claim()
    retire_version(hospital.database, ONE, DECIDED)
    fail_attempt(hospital.database, job, "no memory", retryable=True, now=NOON)

    swept = refuse_jobs_of_retired(hospital.database, NOON + seconds(5))

    assert swept == (job.id,)
    assert refuse_jobs_of_retired(hospital.database, NOON + seconds(5)) == ()
    (other,) = read_dossier(hospital.database, OTHER_STUDY).jobs
    assert other.state is JobState.WAITING
