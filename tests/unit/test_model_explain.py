"""Which findings are explained, and what is said when no map can be had."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dicom_io.vocabulary import Finding, ImageTensor, PresenceValues
from model.errors import CannotExplain, DeviceOutOfMemory, PackageFault, UnusableOutput
from model.explain import MOST_EXPLAINED, Explicable, explain, explained_findings, unexplained
from model.explanation_plan import ExplanationPlan, MethodValues
from model.findings import judge
from model.occlusion import occlusion_map
from model.package import ModelPackage, load_package
from model.runtimes.port import Attention
from tests.tiny_models import TinyLabel, write_package

LABELS = tuple(
    TinyLabel(f"Sign {n}", 1.0, 0.0, (f"S-{n}", "99TEST", f"Sign {n}")) for n in range(6)
)
REGION = (0.25, 0.0, 0.75, 1.0)


@pytest.fixture
def package(tmp_path: Path) -> ModelPackage:
    write_package(tmp_path / "package", labels=LABELS, weights=b"never loaded")
    return load_package(tmp_path / "package")


def tensor(notes: dict[str, object] | None = None) -> ImageTensor:
    notes = {"source_region": list(REGION), "source_shape": [90, 70]} if notes is None else notes
    return ImageTensor(
        np.zeros((16, 16, 1), np.float32), ("rows", "columns", "channels"), None, ("1.2",), "d",
        notes,
    )  # fmt: skip


def findings(package: ModelPackage, *scores: float) -> tuple[Finding, ...]:
    row = np.zeros(len(package.labels), np.float32)
    row[: len(scores)] = scores
    return judge(row, package.labels)


class Seer:
    """Explains by giving each input a map whose one cell is the output's number plus one."""

    def __init__(self, fault: Exception | None = None, empty: bool = False) -> None:
        self.fault = fault
        self.empty = empty
        self.asked: list[int] = []

    def explain(self, batch: np.ndarray, outputs: Sequence[int]) -> Attention | None:
        if self.fault is not None:
            raise self.fault
        self.asked += outputs
        values = np.zeros((len(batch), 2, 2), np.float32)
        if not self.empty:
            values[:, 0, 1] = np.array(outputs) + 1
            values[:, 1, 1] = (np.array(outputs) + 1) / 4
        return Attention(values, "HiResCAM", ("last",))


def asked(package: ModelPackage, predictor: Any, *scores: float, **changes: Any) -> Any:
    explicable = Explicable(changes.get("tensor") or tensor(), findings(package, *scores))
    (answer,) = explain(package, predictor, [explicable])
    return answer


def test_only_positive_findings_are_explained(package: ModelPackage) -> None:
    seer = Seer()

    answer = asked(package, seer, 0.2, 0.9, 0.1, 0.7)

    assert [each.label for each in answer] == ["Sign 1", "Sign 3"]
    assert seer.asked == [1, 3]


def test_a_map_is_brought_to_one_and_says_what_one_is(package: ModelPackage) -> None:
    (answer,) = asked(package, Seer(), 0.0, 0.0, 0.9)

    assert answer.values is not None
    assert answer.values.tolist() == [[0.0, 1.0], [0.0, 0.25]]
    assert answer.strength == 3.0
    assert (answer.region, answer.source_slices) == (REGION, 1)
    assert (answer.method, answer.layers, answer.reason) == ("HiResCAM", ("last",), "")


def test_the_slices_of_a_series_are_counted(package: ModelPackage) -> None:
    notes = {"source_region": list(REGION), "source_shape": [60, 90, 70]}

    (answer,) = asked(package, Seer(), 0.9, tensor=tensor(notes))

    assert answer.source_slices == 60


def test_explanations_stay_with_their_input(package: ModelPackage) -> None:
    seer = Seer()
    inputs = [
        Explicable(tensor(), findings(package, 0.9)),
        Explicable(tensor(), findings(package)),
        Explicable(tensor(), findings(package, 0.0, 0.8, 0.9)),
    ]

    answers = explain(package, seer, inputs)

    assert [[each.label for each in answer] for answer in answers] == [
        ["Sign 0"], [], ["Sign 2", "Sign 1"],
    ]  # fmt: skip
    assert [[each.strength for each in answer] for answer in answers] == [[1.0], [], [3.0, 2.0]]


def test_nothing_is_asked_where_nothing_was_found(package: ModelPackage) -> None:
    seer = Seer()

    assert asked(package, seer, 0.1) == ()
    assert seer.asked == []


def test_the_least_certain_of_many_findings_are_not_explained(package: ModelPackage) -> None:
    seer = Seer()

    answer = asked(package, seer, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)

    assert len(seer.asked) == MOST_EXPLAINED
    assert [each.is_available for each in answer] == [True] * 4 + [False] * 2
    assert "most certain" in answer[-1].reason


@pytest.mark.parametrize(
    "fault", [CannotExplain("no layer is left"), DeviceOutOfMemory("no memory is left")]
)
def test_what_fails_becomes_the_reason(package: ModelPackage, fault: Exception) -> None:
    (answer,) = asked(package, Seer(fault), 0.9)

    assert not answer.is_available
    assert answer.reason == str(fault)


class Blind:
    """A runtime that can only predict: the score of every label grows with the upper left part."""

    def __init__(self) -> None:
        self.inputs = 0

    def predict(self, batch: np.ndarray) -> np.ndarray:
        self.inputs += len(batch)
        seen = batch[:, :4, :4].mean(axis=(1, 2, 3))
        return np.repeat(1 / (1 + np.exp(-4 * seen)), 6).reshape(-1, 6).astype(np.float32)


class Shrugging(Blind):
    def explain(self, batch: np.ndarray, outputs: Sequence[int]) -> None:
        return None


def lit() -> ImageTensor:
    values = np.zeros((16, 16, 1), np.float32)
    values[:4, :4] = 1.0
    return replace(tensor(), values=values)


@pytest.mark.parametrize("kind", [Blind, Shrugging])
def test_a_runtime_that_only_predicts_is_asked_about_covered_images(
    package: ModelPackage, kind: type[Blind]
) -> None:
    runtime = kind()

    (answer,) = asked(package, runtime, 0.9, tensor=lit())

    assert (answer.method, answer.layers) == ("Occlusion", ())
    assert runtime.inputs == 65
    assert answer.values is not None
    assert answer.values.shape == (8, 8)
    assert answer.values[:2, :2].min() > 0.3
    assert answer.values[4:].max() == 0
    assert answer.values[:, 4:].max() == 0


def test_covering_a_large_image_takes_little_memory() -> None:
    values = np.random.default_rng(1).random((512, 512, 1), dtype=np.float32)
    tracemalloc.start()

    occlusion_map(Blind(), values, 0)  # type: ignore[arg-type]

    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50 * values.nbytes


def test_a_package_may_ask_for_covering_on_any_runtime(package: ModelPackage) -> None:
    class Both(Blind, Seer):
        def __init__(self) -> None:
            Seer.__init__(self)
            Blind.__init__(self)

    covering = replace(package, explanation=ExplanationPlan(MethodValues.OCCLUSION))

    (answer,) = asked(covering, Both(), 0.9, tensor=lit())

    assert answer.method == "Occlusion"


def test_a_score_that_nothing_changes_gives_no_map(package: ModelPackage) -> None:
    class Constant(Blind):
        def predict(self, batch: np.ndarray) -> np.ndarray:
            return np.ones((len(batch), 6), np.float32)

    (answer,) = asked(package, Constant(), 0.9, tensor=lit())

    assert "more than another" in answer.reason


def test_volumes_are_not_covered_part_by_part(tmp_path: Path) -> None:
    write_package(tmp_path / "volume", kind="volume", labels=LABELS, weights=b"never loaded")
    runtime = Blind()

    (answer,) = asked(load_package(tmp_path / "volume"), runtime, 0.9)

    assert answer.reason == "the runtime that serves this model computes none of volumes"
    assert runtime.inputs == 0


def test_an_input_without_its_place_does_not_cost_the_others_their_maps(
    package: ModelPackage,
) -> None:
    found = findings(package, 0.9)
    inputs = [Explicable(tensor({}), found), Explicable(tensor(), found)]

    (without,), (explained,) = explain(package, Seer(), inputs)  # type: ignore[arg-type]

    assert not without.is_available
    assert explained.is_available


def test_a_map_that_is_no_number_does_not_cost_the_others_theirs(package: ModelPackage) -> None:
    class Stumbling(Seer):
        def explain(self, batch: np.ndarray, outputs: Sequence[int]) -> Attention | None:
            found = super().explain(batch, outputs)
            assert found is not None
            found.values[0, 1, 1] = np.nan
            return found

    found = findings(package, 0.9)
    inputs = [Explicable(tensor(), found), Explicable(tensor(), found)]

    (without,), (explained,) = explain(package, Stumbling(), inputs)  # type: ignore[arg-type]

    assert without.reason == "what was computed for it is not a finite number"
    assert explained.is_available


def test_a_covered_image_without_a_score_does_not_cost_the_others_their_maps(
    package: ModelPackage,
) -> None:
    class Stumbling(Blind):
        def predict(self, batch: np.ndarray) -> np.ndarray:
            if batch.mean() > 0.5:
                raise UnusableOutput("the prediction holds NaN")
            return super().predict(batch)

    found = findings(package, 0.9)
    strange = replace(tensor(), values=np.ones((16, 16, 1), np.float32))
    inputs = [Explicable(strange, found), Explicable(lit(), found)]

    (without,), (explained,) = explain(package, Stumbling(), inputs)  # type: ignore[arg-type]

    assert without.reason == "what was computed for it is not a finite number"
    assert explained.is_available


def test_an_empty_map_is_no_map(package: ModelPackage) -> None:
    (answer,) = asked(package, Seer(empty=True), 0.9)

    assert not answer.is_available
    assert "more than another" in answer.reason


def test_a_tensor_that_does_not_know_its_place_has_no_map(package: ModelPackage) -> None:
    (answer,) = asked(package, Seer(), 0.9, tensor=tensor({}))

    assert "did not note where" in answer.reason


def test_a_package_may_ask_for_none(package: ModelPackage) -> None:
    seer = Seer()
    silent = replace(package, explanation=ExplanationPlan(MethodValues.NONE))

    (answer,) = asked(silent, seer, 0.9)

    assert answer.reason == "the model package asks for none"
    assert seer.asked == []


def test_a_reason_can_be_given_for_all_of_them(package: ModelPackage) -> None:
    found = findings(package, 0.6, 0.1, 0.9)

    assert [each.label for each in explained_findings(found)] == ["Sign 2", "Sign 0"]
    assert [(each.label, each.reason) for each in unexplained(found, "why")] == [
        ("Sign 2", "why"), ("Sign 0", "why"),
    ]  # fmt: skip
    assert all(each.presence is PresenceValues.PRESENT for each in explained_findings(found))


@pytest.mark.parametrize(
    ("table", "plan"),
    [
        (None, ExplanationPlan()),
        ({}, ExplanationPlan(MethodValues.HIRES_CAM, (), 7)),
        ({"method": "grad-cam"}, ExplanationPlan(MethodValues.GRAD_CAM)),
        ({"method": "occlusion"}, ExplanationPlan(MethodValues.OCCLUSION)),
        ({"method": "none"}, ExplanationPlan(MethodValues.NONE)),
        ({"cells": 14}, ExplanationPlan(cells=14)),
        ({"layers": ["a", "b"]}, ExplanationPlan(layers=("a", "b"))),
    ],
)
def test_the_manifest_says_how(tmp_path: Path, table: Any, plan: ExplanationPlan) -> None:
    write_package(tmp_path / "p", weights=b"x", changes={"explanation": table})

    assert load_package(tmp_path / "p").explanation == plan


@pytest.mark.parametrize(
    ("table", "fault"),
    [
        (
            {"method": "guess"},
            "explanation.method: must be one of hires-cam, grad-cam, occlusion, none",
        ),
        ({"cells": 0}, "explanation.cells: must be a whole number between 1 and 256"),
        ({"layers": "last"}, "explanation.layers: must be a list of texts"),
        ({"layers": ["a"], "cells": 7}, "has no meaning beside layers"),
        ({"layer": "a"}, "explanation.layer: unknown field"),
    ],
)
def test_a_wrong_table_is_refused(tmp_path: Path, table: Any, fault: str) -> None:
    write_package(tmp_path / "p", weights=b"x", changes={"explanation": table})

    with pytest.raises(PackageFault, match=fault):
        load_package(tmp_path / "p")
