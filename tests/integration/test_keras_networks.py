"""Networks built from a plan: what they answer, that a file keeps them, how they are joined."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow

from model.catalogue import BUNDLED_FOLDER
from model.errors import NetworkFault
from model.explanation_plan import ExplanationPlan
from model.runtimes.keras_attention import KerasAttention
from model.training.network_plan import (
    REFERENCE_SHAPE,
    NetworkKindValues,
    NetworkPlan,
    SlicePoolingValues,
    Stage,
)
from model.training.networks import build_network, calibrate, mean_of

(SHIPPED,) = BUNDLED_FOLDER.glob("cxr-pneumonia-*/weights.keras")

COMPACT = NetworkPlan(stem_channels=6, stages=(Stage(8, 1),))
MAP = replace(COMPACT, has_map=True)
VOLUME = NetworkPlan(kind=NetworkKindValues.COMPACT_3D, stages=(Stage(6, 1, 2, slice_stride=2),))
REFERENCE = NetworkPlan(kind=NetworkKindValues.REFERENCE, dropout=0.5)
BACKBONE = NetworkPlan(kind=NetworkKindValues.APPLICATION, application="MobileNet")
OPEN = (None, 16, 16, 1)

ALL_KINDS = {
    "an image": (COMPACT, (16, 16, 1)),
    "an image of three channels, with a map": (MAP, (16, 24, 3)),
    "slices, a known number": (COMPACT, (4, 16, 16, 1)),
    "slices, any number": (replace(COMPACT, slice_pooling=SlicePoolingValues.MAX), OPEN),
    "slices, with a map": (MAP, OPEN),
    "a volume": (VOLUME, (4, 16, 16, 1)),
    "a volume of any slices": (VOLUME, OPEN),
    "a volume, with a map": (
        replace(VOLUME, stages=(Stage(6, 1),), has_map=True),
        (None, 16, 16, 2),
    ),
    "the reference": (REFERENCE, (32, 32, 3)),
}


def load_again(network: Any, folder: Path) -> Any:
    """The network as the service loads it: Keras alone, no code from the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Keras 3.15 under NumPy 2
        network.save(folder / "network.keras")
        return keras.models.load_model(folder / "network.keras", compile=False, safe_mode=True)


def inputs_of(shape: tuple[int | None, ...], count: int = 2, slices: int = 5) -> np.ndarray:
    edges = [slices if edge is None else edge for edge in shape]
    return np.random.default_rng(0).random((count, *edges), dtype=np.float32)


def answers(network: Any, values: np.ndarray) -> np.ndarray:
    return np.asarray(network(values, training=False))


def map_of(network: Any, values: np.ndarray) -> np.ndarray:
    inner = keras.Model(network.inputs[0], network.get_layer("map").output)
    return np.asarray(inner(values, training=False))


def smooth_maximum(positions: np.ndarray, sharpness: float) -> np.ndarray:
    axes = tuple(range(1, positions.ndim - 1))
    return np.log(np.exp(sharpness * positions.astype(np.float64)).mean(axis=axes)) / sharpness


def unlike(seed: int, plan: NetworkPlan, shape: tuple[int | None, ...], outputs: int) -> Any:
    """A network whose biases and statistics are not those it was built with, by the seed alone."""
    keras.utils.set_random_seed(seed)
    network = build_network(plan, shape, outputs)
    rng = np.random.default_rng(seed)
    for layer in network.layers:
        if layer.name not in {"sharpened", "logits"} or not plan.has_map:
            layer.set_weights(
                [w + 0.2 * rng.random(w.shape).astype(w.dtype) for w in layer.get_weights()]
            )
    return network


@pytest.mark.parametrize("case", ALL_KINDS)
def test_every_kind_answers_the_same_after_its_file_was_loaded(case: str, tmp_path: Path) -> None:
    plan, shape = ALL_KINDS[case]
    network = build_network(plan, shape, 2)
    values = inputs_of(shape)

    again = load_again(network, tmp_path)

    found = answers(again, values)
    assert network.layers[-1].name == "logits"
    assert (found.shape, found.dtype) == ((2, 2), np.float32)
    np.testing.assert_array_equal(found, answers(network, values))
    if shape[0] is None:
        assert answers(again, inputs_of(shape, slices=3)).shape == (2, 2)
    if plan.has_map:
        assert map_of(again, values).shape[1:-3] == values.shape[1:-3]


def test_the_film_network_is_the_one_that_is_shipped() -> None:
    # Given the shipped file, which holds two trained members,
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        shipped = keras.models.load_model(SHIPPED, compile=False, safe_mode=True)
    member = next(layer for layer in shipped.layers if layer.name == "member_0")

    # when the default plan is built for its films and given its weights,
    network = build_network(NetworkPlan(), (160, 160, 1), 1)
    network.set_weights(member.get_weights())

    # then it is made of the same layers, and answers to the last bit.
    def layers_of(model: Any) -> list[tuple[str, dict[str, Any]]]:
        configs = [(type(each).__name__, each.get_config()) for each in model.layers]
        return [(kind, {k: str(v) for k, v in c.items() if k != "name"}) for kind, c in configs]

    assert layers_of(network) == layers_of(member)
    films = inputs_of((160, 160, 1), 1)
    np.testing.assert_array_equal(answers(network, films), answers(member, films))


def test_the_reference_has_the_layers_of_its_name() -> None:
    network = build_network(REFERENCE, REFERENCE_SHAPE, 1)

    layers = [
        (type(layer).__name__, getattr(layer, "filters", getattr(layer, "units", None)))
        for layer in network.layers[1:]
    ]
    assert layers == [
        ("Conv2D", 32), ("MaxPooling2D", None), ("Conv2D", 64), ("MaxPooling2D", None),
        ("Conv2D", 128), ("MaxPooling2D", None), ("Flatten", None), ("Dense", 512),
        ("Dropout", None), ("Dense", 1),
    ]  # fmt: skip
    # 896 + 18,496 + 73,856 of the convolutions, 36,992 * 512 + 512 and 513 of the rest.
    assert network.count_params() == 19_034_177
    assert {layer.kernel_size for layer in network.layers if hasattr(layer, "kernel_size")} == {
        (3, 3)
    }
    assert [layer.rate for layer in network.layers if hasattr(layer, "rate")] == [0.5]


def test_the_answer_is_the_smooth_maximum_of_the_map() -> None:
    network = unlike(1, replace(MAP, map_sharpness=3.0), (16, 16, 1), 2)
    values = inputs_of((16, 16, 1), 3)

    positions = map_of(network, values)

    assert positions.shape == (3, 4, 4, 2)
    np.testing.assert_allclose(answers(network, values), smooth_maximum(positions, 3.0), rtol=1e-4)
    assert (positions.mean(axis=(1, 2)) < answers(network, values)).all()
    assert (answers(network, values) < positions.max(axis=(1, 2))).all()


def test_a_sure_map_does_not_overflow() -> None:
    network = unlike(1, MAP, (16, 16, 1), 1)

    calibrate([network], 500.0, 0.0)

    assert np.isfinite(answers(network, inputs_of((16, 16, 1)))).all()


def test_each_slice_is_read_by_itself() -> None:
    # Given a network that reads slices, and a volume,
    network = unlike(2, replace(MAP, standardise=False), OPEN, 1)
    volume = inputs_of(OPEN, 1, slices=6)
    before = map_of(network, volume)

    # when one slice is covered,
    covered = volume.copy()
    covered[0, 2] = 0.0

    # then the map changes in that slice and nowhere else.
    changes = np.abs(map_of(network, covered) - before).max(axis=(0, 2, 3, 4))
    assert np.flatnonzero(changes > 1e-4).tolist() == [2]


@pytest.mark.parametrize("plan", [MAP, VOLUME])
def test_volumes_of_a_batch_do_not_mix(plan: NetworkPlan) -> None:
    network = unlike(3, plan, OPEN, 2)
    volumes = inputs_of(OPEN, 3, slices=4)

    together = answers(network, volumes)

    alone = np.concatenate([answers(network, volume[None]) for volume in volumes])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)
    assert len(np.unique(together.round(5), axis=0)) == 3


@pytest.mark.parametrize(
    ("pooling", "differs"), [(SlicePoolingValues.MEAN, True), (SlicePoolingValues.MAX, False)]
)
def test_slices_that_repeat_count_in_a_mean_only(
    pooling: SlicePoolingValues, differs: bool
) -> None:
    plan = replace(COMPACT, slice_pooling=pooling, standardise=False)
    network = unlike(4, plan, OPEN, 1)
    volume = inputs_of(OPEN, 1, slices=3)

    repeated = answers(network, np.concatenate([volume, volume[:, :1]], axis=1))

    assert (np.abs(repeated - answers(network, volume)).max() > 1e-5) == differs


def test_exposure_says_nothing_to_a_network_that_standardises() -> None:
    values = inputs_of((16, 16, 1))
    darker = values * 0.5 + 0.1

    blind, seeing = (unlike(5, replace(COMPACT, standardise=s), (16, 16, 1), 1) for s in (1, 0))

    np.testing.assert_allclose(answers(blind, values), answers(blind, darker), rtol=0.01, atol=1e-3)
    assert np.abs(answers(seeing, values) - answers(seeing, darker)).min() > 0.01


def test_the_mean_of_members_is_the_mean_of_their_logits(tmp_path: Path) -> None:
    # Members from processes of their own bear the same layer names.
    members = []
    for seed in range(2):
        keras.backend.clear_session()
        members.append(unlike(seed, COMPACT, (16, 16, 1), 2))
    values = inputs_of((16, 16, 1))
    expected = np.mean([answers(member, values) for member in members], axis=0)

    whole = load_again(mean_of(members), tmp_path)

    np.testing.assert_allclose(answers(whole, values), expected, atol=1e-5)
    names = [
        layer.name for each in whole.layers if hasattr(each, "layers") for layer in each.layers
    ]
    assert sorted(names.count(name) for name in set(names) if name != "logits")[-1] == 1


@pytest.mark.parametrize("shape", [(16, 16, 1), OPEN])
def test_the_mean_of_detecting_members_has_the_mean_of_their_maps(
    shape: tuple[int | None, ...], tmp_path: Path
) -> None:
    members = [unlike(seed, MAP, shape, 2) for seed in range(2)]
    values = inputs_of(shape)
    expected = np.mean([map_of(member, values) for member in members], axis=0)

    whole = load_again(mean_of(members), tmp_path)

    np.testing.assert_allclose(map_of(whole, values), expected, atol=1e-5)
    np.testing.assert_allclose(answers(whole, values), smooth_maximum(expected, 5.0), rtol=1e-4)


@pytest.mark.parametrize(("plan", "members"), [(COMPACT, 1), (MAP, 2)])
def test_an_explanation_keeps_slices_rows_and_columns(plan: NetworkPlan, members: int) -> None:
    network = mean_of([unlike(seed, plan, OPEN, 1) for seed in range(members)])

    attention = KerasAttention(tensorflow, network, ExplanationPlan(cells=4), "/CPU:0")

    assert attention.maps(inputs_of(OPEN, 1, slices=3), [0]).values.shape == (1, 3, 4, 4)


def test_a_single_member_stays_itself() -> None:
    member = build_network(COMPACT, (16, 16, 1), 1)

    assert mean_of([member]) is member


def test_members_that_are_unlike_are_not_averaged() -> None:
    with_map, without = build_network(MAP, (16, 16, 1), 1), build_network(COMPACT, (16, 16, 1), 1)

    with pytest.raises(NetworkFault, match="must be alike in input, output and map"):
        mean_of([with_map, without])
    with pytest.raises(NetworkFault, match="one at least"):
        mean_of([])


@pytest.mark.parametrize(
    ("plan", "scale", "offset"),
    [(COMPACT, 1.7, -0.4), (MAP, 1.7, -0.4), (MAP, [0.5, 2.0], [1.0, -1.0])],
)
def test_calibration_is_folded_into_all_that_answers(
    plan: NetworkPlan, scale: Any, offset: Any
) -> None:
    # Given two members and the whole made of them,
    members = [unlike(seed, plan, (16, 16, 1), 2) for seed in range(2)]
    whole = mean_of(members)
    values = inputs_of((16, 16, 1))
    each_before = [answers(network, values) for network in (*members, whole)]
    map_before = map_of(whole, values) if plan.has_map else None

    # when the members are calibrated,
    calibrate(members, scale, offset)

    # then they and the whole answer so, and its map too.
    for network, before in zip((*members, whole), each_before, strict=True):
        expected = before * np.array(scale) + np.array(offset)
        np.testing.assert_allclose(answers(network, values), expected, rtol=1e-4, atol=1e-4)
    if map_before is not None:
        expected = map_before * np.array(scale) + np.array(offset)
        np.testing.assert_allclose(map_of(whole, values), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("scale", "offset"), [(0.0, 0.0), (-1.0, 0.0), (1.0, float("nan"))])
def test_a_calibration_that_turns_answers_over_is_refused(scale: float, offset: float) -> None:
    network = build_network(COMPACT, (16, 16, 1), 1)

    with pytest.raises(NetworkFault, match="above zero"):
        calibrate([network], scale, offset)


def test_no_training_touches_the_sharpness_of_a_map() -> None:
    network = build_network(MAP, (16, 16, 1), 1)

    paths = {variable.path for variable in network.trainable_variables}

    assert not {path for path in paths if "sharpened" in path or "logits" in path}
    assert {"map/kernel", "map/bias"} <= paths


@pytest.mark.parametrize("plan", [COMPACT, VOLUME])
def test_l2_is_the_sum_of_the_squared_kernels(plan: NetworkPlan) -> None:
    network = build_network(replace(plan, l2=0.01), (4, 16, 16, 1), 1)

    kernels = [w for w in network.trainable_variables if "kernel" in w.name]
    expected = 0.01 * sum(float((np.asarray(kernel) ** 2).sum()) for kernel in kernels)
    assert float(sum(network.losses)) == pytest.approx(expected, rel=1e-4)
    assert not build_network(plan, (4, 16, 16, 1), 1).losses


@pytest.mark.parametrize(
    ("plan", "shape", "message"),
    [
        (VOLUME, (16, 16, 1), r"compact-3d takes \(slices, rows, columns, channels\)"),
        (REFERENCE, (4, 16, 16, 1), r"reference takes \(rows, columns, channels\)"),
        (COMPACT, (None, 16, 1), "only slices may be open"),
        (COMPACT, (16, 16, 0), "nothing may be empty"),
        (BACKBONE, (32, 32, 2), "reads 1 or 3; received 2"),
        (BACKBONE, (8, 8, 3), "cannot be built for inputs of"),
    ],
)
def test_shapes_that_do_not_fit_are_named(plan: NetworkPlan, shape: Any, message: str) -> None:
    with pytest.raises(NetworkFault, match=message):
        build_network(plan, shape, 1)
