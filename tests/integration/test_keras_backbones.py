"""Backbones of ``keras.applications``: their input, their weights, frozen and released."""

from __future__ import annotations

import socket
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from model.errors import NetworkFault
from model.training.ensemble import network_of
from model.training.fit import Fitted
from model.training.network_plan import (
    APPLICATIONS,
    NetworkKindValues,
    NetworkPlan,
    ScalingValues,
)
from model.training.networks import build_network, set_backbone_trainable
from model.training.networks.backbones import backbone_of, scaled
from model.training.plan import read_plan
from model.training.run_checkpoints import Course
from tests.tiny_training import changed, write_config

SHAPE = (32, 32, 1)
PLAN = NetworkPlan(kind=NetworkKindValues.APPLICATION, application="MobileNet")


@pytest.fixture(autouse=True)
def _no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever opens a connection or asks for a name fails: nothing may be downloaded."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def trained() -> Any:
    """A network whose backbone is not as it was built."""
    network = build_network(PLAN, SHAPE, 1)
    rng = np.random.default_rng(1)
    backbone = backbone_of(network)
    backbone.set_weights([w + 0.02 * rng.random(w.shape) for w in backbone.get_weights()])
    return network


@pytest.fixture
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Keras 3.15 under NumPy 2
        yield


def features(network: Any, values: np.ndarray) -> np.ndarray:
    inner = keras.Model(network.inputs[0], network.get_layer("pool").output)
    return np.asarray(inner(values, training=False))


def films(count: int = 2) -> np.ndarray:
    return np.random.default_rng(0).random((count, *SHAPE), dtype=np.float32)


def test_every_backbone_of_keras_is_known() -> None:
    offered = {name for name in dir(keras.applications) if name[0].isupper()}

    assert set(APPLICATIONS) == offered


@pytest.mark.parametrize("name", APPLICATIONS)
def test_input_reaches_a_backbone_as_its_weights_were_trained(name: str) -> None:
    values = np.random.default_rng(0).random((1, 4, 4, 3), dtype=np.float32)
    image = keras.Input((4, 4, 3))
    module = sys.modules[getattr(keras.applications, name).__module__]

    found = keras.Model(image, scaled(image, APPLICATIONS[name]))(values)

    expected = module.preprocess_input(values * 255)
    np.testing.assert_allclose(np.asarray(found), expected, atol=1e-4)


def test_every_scaling_has_a_backbone() -> None:
    assert set(APPLICATIONS.values()) == set(ScalingValues)


@pytest.mark.parametrize("name", ["backbone.weights.h5", "network.keras"])
def test_weights_are_read_from_a_local_file(
    name: str, trained: Any, tmp_path: Path, quiet: None
) -> None:
    # Given weights of a backbone in a file, by itself or in a network that was trained here,
    path = tmp_path / name
    backbone = backbone_of(trained)
    if name.endswith(".h5"):
        backbone.save_weights(path)
    else:
        trained.save(path)

    # when a plan names the file,
    network = build_network(replace(PLAN, weights=path), SHAPE, 3)

    # then the backbone starts from them.
    np.testing.assert_allclose(features(network, films()), features(trained, films()), atol=1e-6)


def test_weights_in_the_old_format_of_keras_are_read(
    trained: Any, tmp_path: Path, quiet: None
) -> None:
    from keras.src.legacy.saving import legacy_h5_format  # noqa: PLC0415

    path = tmp_path / "mobilenet_notop.h5"
    import h5py  # noqa: PLC0415

    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, backbone_of(trained))

    network = build_network(replace(PLAN, weights=path), SHAPE, 1)

    np.testing.assert_allclose(features(network, films()), features(trained, films()), atol=1e-6)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Weights of an EfficientNet as Keras publishes them, and what Keras itself makes of them."""
    path = tmp_path_factory.mktemp("published") / "efficientnetb0_notop.weights.h5"
    build = keras.applications.EfficientNetB0
    module: Any = sys.modules[build.__module__]
    plain = build(include_top=False, weights=None, input_shape=(32, 32, 3))
    normalisation = next(x for x in plain.layers if isinstance(x, keras.layers.Normalization))
    # In these files the deviation of ImageNet stands where its variance belongs.
    mean, deviation = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    normalisation.set_weights([mean, deviation, np.int32(0)])
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        plain.save_weights(path)
        patch.setattr(module.file_utils, "get_file", lambda *_, **__: str(path))
        return path, build(include_top=False, weights="imagenet", input_shape=(32, 32, 3))


EFFICIENT = replace(PLAN, application="EfficientNetB0")


@pytest.mark.parametrize("kind", ["as published", "saved by Keras", "trained here"])
def test_weights_of_an_efficientnet_see_what_they_see_in_keras(
    kind: str, published: tuple[Path, Any], tmp_path: Path, quiet: None
) -> None:
    # Given weights as a file of Keras, a network of Keras, or one that was made from them here,
    path, official = published
    if kind != "as published":
        first = build_network(replace(EFFICIENT, weights=path), SHAPE, 1)
        path = tmp_path / "network.keras"
        (official if kind == "saved by Keras" else first).save(path)

    # when a plan names the file,
    network = build_network(replace(EFFICIENT, weights=path), SHAPE, 1)

    # then the features are those that Keras finds.
    coloured = 255 * np.repeat(films(), 3, axis=-1)
    expected = np.asarray(official(coloured, training=False)).mean(axis=(1, 2))
    tolerance = 1e-4 * np.abs(expected).max()
    np.testing.assert_allclose(features(network, films()), expected, atol=tolerance)


def test_network_of_a_finished_training_answers_as_its_file_does(
    published: tuple[Path, Any], tmp_path: Path, quiet: None
) -> None:
    # Given a trained network whose backbone normalises by what its weights file said,
    values = changed()
    values["network"] = {"kind": "application", "application": "EfficientNetB0"}
    plan = read_plan(write_config(tmp_path, values))
    network = build_network(replace(EFFICIENT, weights=published[0]), SHAPE, 1)
    fitted = Fitted("seed-0", Course(), network.get_weights())

    # when the weights are put into a network without that file, as for choosing and packing,
    again = network_of(plan, fitted)

    # then it answers the same, before it is saved and after.
    expected = np.asarray(network(films(), training=False))
    np.testing.assert_allclose(np.asarray(again(films(), training=False)), expected, rtol=1e-4)
    again.save(tmp_path / "weights.keras")
    loaded = keras.models.load_model(tmp_path / "weights.keras", compile=False)
    np.testing.assert_allclose(np.asarray(loaded(films(), training=False)), expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("content", "suffix"),
    [(b"no weights at all", ".keras"), (None, ".weights.h5"), (None, ".keras")],
)
def test_a_file_that_does_not_fit_is_named(
    content: bytes | None, suffix: str, tmp_path: Path, quiet: None
) -> None:
    path = tmp_path / f"other{suffix}"
    if content is not None:
        path.write_bytes(content)
    else:
        image = keras.Input((4,))
        other = keras.Model(image, keras.layers.Dense(2)(image))
        (other.save if suffix == ".keras" else other.save_weights)(path)

    with pytest.raises(NetworkFault, match=rf"network.weights: other\{suffix} does not fit"):
        build_network(replace(PLAN, weights=path), SHAPE, 1)


def test_a_frozen_backbone_keeps_weights_and_statistics() -> None:
    # Inside a network that reads slices, it is found too.
    network = build_network(PLAN, (None, *SHAPE), 1)
    set_backbone_trainable(network, False)

    assert {w.path.split("/")[0] for w in network.trainable_variables} == {"logits"}
    network(np.random.default_rng(0).random((1, 2, *SHAPE)), training=True)
    moving = [w for w in network.non_trainable_variables if "moving" in w.name]
    assert moving
    assert all(
        np.array_equal(np.asarray(w), np.full(w.shape, "variance" in w.name)) for w in moving
    )


def test_a_released_backbone_learns_and_its_normalisation_where_it_may() -> None:
    network = build_network(PLAN, SHAPE, 1)
    total = len(network.trainable_variables)

    set_backbone_trainable(network, False)
    set_backbone_trainable(network, True)
    assert len(network.trainable_variables) == total
    set_backbone_trainable(network, True, train_norm=False)

    left = {variable.name for variable in network.trainable_variables}
    assert "kernel" in left
    assert not left & {"gamma", "beta"}
    network(films(), training=True)
    means = [w for w in network.non_trainable_variables if w.name == "moving_mean"]
    assert means
    assert not any(np.asarray(w).any() for w in means)


def test_only_networks_with_a_backbone_are_frozen() -> None:
    network = build_network(NetworkPlan(), (32, 32, 1), 1)

    with pytest.raises(NetworkFault, match="only networks of the kind application"):
        set_backbone_trainable(network, False)


def test_grey_images_are_read_as_three_equal_channels() -> None:
    network = build_network(PLAN, SHAPE, 1)
    coloured = build_network(PLAN, (32, 32, 3), 1)
    coloured.set_weights(network.get_weights())

    grey = films()

    found = np.asarray(coloured(np.repeat(grey, 3, axis=-1), training=False))
    np.testing.assert_allclose(np.asarray(network(grey, training=False)), found, atol=1e-6)


def test_l2_counts_the_kernels_of_the_backbone() -> None:
    network = build_network(replace(PLAN, l2=0.01), SHAPE, 1)

    kernels = [w for w in network.trainable_variables if "kernel" in w.name]
    expected = 0.01 * sum(float((np.asarray(kernel) ** 2).sum()) for kernel in kernels)

    assert float(sum(network.losses)) == pytest.approx(expected, rel=1e-4)


def test_a_frozen_network_with_a_map_is_kept_by_its_file(tmp_path: Path, quiet: None) -> None:
    network = build_network(replace(PLAN, has_map=True), (None, 64, 64, 1), 2)
    set_backbone_trainable(network, False)
    values = np.random.default_rng(0).random((1, 3, 64, 64, 1), dtype=np.float32)

    network.save(tmp_path / "network.keras")
    again = keras.models.load_model(tmp_path / "network.keras", compile=False, safe_mode=True)

    found = np.asarray(again(values, training=False))
    np.testing.assert_array_equal(found, np.asarray(network(values, training=False)))
    positions = keras.Model(again.inputs[0], again.get_layer("map").output)(values)
    assert positions.shape == (1, 3, 2, 2, 2)
