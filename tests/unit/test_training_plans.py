"""What ``[network]`` and ``[optimiser]`` may say, and how wrong fields are named."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.manifest import ManifestTable
from model.manifest_writing import write_manifest
from model.training.losses import HeadValues, loss_of, probabilities_of
from model.training.network_plan import (
    FILM_MAP_STAGES,
    FILM_STAGES,
    VOLUME_STAGES,
    NetworkKindValues,
    NetworkPlan,
    SlicePoolingValues,
    Stage,
    read_network_plan,
)
from model.training.optimiser_plan import (
    OptimiserPlan,
    OptimiserValues,
    ScheduleValues,
    read_optimiser_plan,
)

ROOT = Path(__file__).resolve().parents[2]


def network(toml: str, folder: Path | None = None) -> tuple[NetworkPlan, list[str]]:
    faults: list[str] = []
    return read_network_plan(ManifestTable(tomllib.loads(toml), "network", faults), folder), faults


def optimiser(toml: str) -> tuple[OptimiserPlan, list[str]]:
    faults: list[str] = []
    return read_optimiser_plan(ManifestTable(tomllib.loads(toml), "optimiser", faults)), faults


def places(faults: list[str]) -> list[str]:
    return [fault.partition(":")[0] for fault in faults]


def test_an_empty_table_is_the_network_of_films():
    plan, faults = network("")

    assert (plan, faults) == (NetworkPlan(), [])
    assert plan.planned_stages == FILM_STAGES


def test_every_field_of_a_compact_network_is_read():
    plan, faults = network("""
        kind = "compact"
        dropout = 0.2
        l2 = 1e-4
        stem_channels = 8
        stem_stride = 1
        standardise = false
        map = true
        map_sharpness = 3
        slice_pooling = "max"
        stages = [{channels = 16, blocks = 1}, {channels = 24, blocks = 2, stride = 1}]
    """)

    assert faults == []
    assert plan == NetworkPlan(
        dropout=0.2, l2=1e-4, stem_channels=8, stem_stride=1, standardise=False, has_map=True,
        map_sharpness=3.0, slice_pooling=SlicePoolingValues.MAX,
        stages=(Stage(16, 1), Stage(24, 2, stride=1)),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("toml", "stages"),
    [
        ("map = true", FILM_MAP_STAGES),
        ('kind = "compact-3d"', VOLUME_STAGES),
        ('kind = "reference"', ()),
    ],
)
def test_stages_that_are_not_stated_are_those_of_the_kind(toml, stages):
    assert network(toml)[0].planned_stages == stages


def test_a_backbone_is_read_with_its_file_beside_the_configuration(tmp_path):
    (tmp_path / "densenet.h5").write_bytes(b"weights")

    plan, faults = network(
        'kind = "application"\napplication = "DenseNet121"\nweights = "densenet.h5"\n'
        "frozen_epochs = 4\nfine_tune_rate = 0.05",
        tmp_path,
    )

    assert faults == []
    assert plan.weights == tmp_path / "densenet.h5"
    assert (plan.application, plan.frozen_epochs, plan.fine_tune_rate) == ("DenseNet121", 4, 0.05)
    assert not plan.train_norm


def test_a_backbone_without_weights_trains_all_of_it():
    plan, faults = network('kind = "application"\napplication = "VGG16"')

    assert (faults, plan.weights, plan.train_norm) == ([], None, True)


@pytest.mark.parametrize(
    ("toml", "expected"),
    [
        ('kind = "transformer"\ndropout = 2\nlayers = 3', ["kind", "dropout", "layers"]),
        ('kind = "reference"\ndropout = 0.3', ["dropout"]),
        ('kind = "reference"\nstages = []', ["stages"]),
        ("map = 1\nmap_sharpness = 0", ["map", "map_sharpness"]),
        ("stages = [{channels = 0, blokcs = 1}]",
         ["stages[0].channels", "stages[0].blocks", "stages[0].blokcs"]),
        ("stages = [{channels = 8, blocks = 1, slice_stride = 2}]", ["stages[0].slice_stride"]),
        ('kind = "compact-3d"\nmap = true\nstages = [{channels=8, blocks=1, slice_stride=2}]',
         ["stages"]),
        ('kind = "application"', ["application"]),
        ('kind = "application"\napplication = "ResNet51"\nfrozen_epochs = 2',
         ["application", "frozen_epochs"]),
        ('kind = "application"\napplication = "VGG16"\nweights = "https://host/w.h5"', ["weights"]),
        ('kind = "application"\napplication = "VGG16"\nweights = "imagenet"', ["weights"]),
        ('kind = "application"\napplication = "VGG16"\nweights = "absent.h5"', ["weights"]),
    ],
)  # fmt: skip
def test_every_wrong_field_of_a_network_is_named_at_its_place(toml, expected, tmp_path):
    _, faults = network(toml, tmp_path)

    assert places(faults) == [f"network.{place}" for place in expected]


def test_an_empty_table_is_the_optimiser_of_films():
    assert optimiser("") == (OptimiserPlan(), [])


def test_every_field_of_an_optimiser_is_read():
    plan, faults = optimiser("""
        name = "sgd"
        learning_rate = 0.05
        momentum = 0.8
        nesterov = false
        weight_decay = 1e-4
        clip_norm = 0
        schedule = "step"
        step_epochs = 3
        factor = 0.5
        warmup_epochs = 0.5
    """)

    assert faults == []
    assert plan == OptimiserPlan(
        name=OptimiserValues.SGD, learning_rate=0.05, momentum=0.8, nesterov=False,
        weight_decay=1e-4, clip_norm=0.0, schedule=ScheduleValues.STEP, step_epochs=3, factor=0.5,
        warmup_epochs=0.5,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("toml", "expected"),
    [
        ('name = "rmsprop"\nschedule = "linear"', ["name", "schedule"]),
        ("learning_rate = 0\nclip_norm = -1", ["learning_rate", "clip_norm"]),
        ('name = "adam"\nweight_decay = 0.1', ["weight_decay"]),
        ("momentum = 0.9", ["momentum"]),
        ("factor = 0.5", ["factor"]),
        ('name = "sgd"\nmomentum = 0\nnesterov = true', ["nesterov"]),
        ('schedule = "cosine"\nfinal_share = 2\nfactor = 0.1', ["final_share", "factor"]),
    ],
)
def test_every_wrong_field_of_an_optimiser_is_named_at_its_place(toml, expected):
    _, faults = optimiser(toml)

    assert places(faults) == [f"optimiser.{place}" for place in expected]


@pytest.mark.parametrize(
    "plan",
    [
        NetworkPlan(),
        NetworkPlan(kind=NetworkKindValues.COMPACT_3D, has_map=True),
        NetworkPlan(kind=NetworkKindValues.REFERENCE, dropout=0.5),
        NetworkPlan(kind=NetworkKindValues.APPLICATION, application="VGG16"),
    ],
)
def test_what_a_manifest_says_of_a_network_can_be_read_again(plan, tmp_path):
    write_manifest(tmp_path, {"network": plan.as_mapping()})
    written = (tmp_path / "manifest.toml").read_text().partition("[network]")[2]
    tables = tomllib.loads("[network]" + written)["network"]

    faults: list[str] = []
    again = read_network_plan(ManifestTable(tables, "network", faults))

    assert faults == []
    assert again.as_mapping() == plan.as_mapping()


@pytest.mark.parametrize("name", OptimiserValues)
@pytest.mark.parametrize("schedule", ScheduleValues)
def test_what_is_written_of_an_optimiser_can_be_read_again(name, schedule):
    plan = OptimiserPlan(name=name, schedule=schedule, learning_rate=0.5)
    faults: list[str] = []

    again = read_optimiser_plan(ManifestTable(plan.as_mapping(), "optimiser", faults))

    assert faults == []
    assert again.as_mapping() == plan.as_mapping()


def test_plans_are_read_without_a_network_library():
    code = (
        "import sys; from model.training import augmentation, losses, network_plan, optimiser_plan;"
        "sys.exit(any(name in sys.modules for name in ('keras', 'tensorflow')))"
    )

    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("head", [HeadValues.BINARY, HeadValues.MULTI_LABEL])
def test_labels_have_probabilities_of_their_own(head: HeadValues):
    found = probabilities_of(head, [[0.0, np.log(3), -1000.0, 1000.0]])

    np.testing.assert_allclose(found, [[0.5, 0.75, 0.0, 1.0]], atol=1e-6)
    assert found.dtype == np.float32


def test_probabilities_of_classes_add_up_to_one():
    found = probabilities_of(HeadValues.MULTI_CLASS, [[0.0, np.log(3), 0.0], [1000.0, 0.0, 0.0]])

    np.testing.assert_allclose(found, [[0.2, 0.6, 0.2], [1, 0, 0]], atol=1e-6)


@pytest.mark.parametrize(
    ("head", "weights"),
    [
        (HeadValues.BINARY, [1.0]),
        (HeadValues.BINARY, [1.0, 2.0, 3.0]),
        (HeadValues.MULTI_CLASS, [[1.0, 2.0]]),
        (HeadValues.MULTI_LABEL, [[1.0, 2.0]]),
    ],
)
def test_class_weights_of_another_head_are_refused(head: HeadValues, weights: Any):
    with pytest.raises(ValueError, match="class_weights"):
        loss_of(head, 0.0, weights)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_smoothing_is_a_share(smoothing):
    with pytest.raises(ValueError, match="label_smoothing"):
        loss_of(HeadValues.BINARY, smoothing)
