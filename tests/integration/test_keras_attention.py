"""Maps of small networks whose reasons a reader can work out: they light up where the reason is."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from model.errors import CannotExplain
from model.explanation_plan import ExplanationPlan, MethodValues
from model.package import load_package
from model.runtimes.check import try_package
from model.runtimes.keras_layers import attention_layers
from model.runtimes.keras_runtime import KerasPredictor
from model.training.network_plan import NetworkPlan
from model.training.networks import build_network, mean_of
from tests.tiny_models import BRIGHT, DARK, write_package

layers = keras.layers
SIDE = 32
Written = Callable[..., KerasPredictor]


def detector(weight: float, *, name: str = "looks", channels: int = 1, shape: Any = None) -> Any:
    """A network that sums what is brighter than one half, in a grid of 8 by 8 cells."""
    image = keras.Input(shape or (SIDE, SIDE, 1))
    volume = len(image.shape) == 5
    kind, pool = layers.Conv2D, layers.GlobalAveragePooling2D
    if volume:
        kind, pool = layers.Conv3D, layers.GlobalAveragePooling3D
    looks = kind(channels, 4, 4, activation="relu", name=name)
    dense = layers.Dense(1, name=f"{name}_score")
    network = keras.Model(image, dense(pool()(looks(image))))
    kernel = np.full(looks.get_weights()[0].shape, 1 / 4 ** (3 if volume else 2), np.float32)
    looks.set_weights([kernel, np.full(channels, -0.5, np.float32)])
    dense.set_weights([np.full((channels, 1), weight, np.float32), np.zeros(1, np.float32)])
    return network


def saved(network: Any, folder: Path) -> bytes:
    path = folder / "network.keras"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Keras 3.15 under NumPy 2
        network.save(path)
    return path.read_bytes()


@pytest.fixture
def written(tmp_path: Path) -> Written:
    """Write a network as a package and return its loaded predictor."""

    def write(network: Any, **package: Any) -> KerasPredictor:
        package = {"rows": SIDE, "columns": SIDE, **package}
        write_package(tmp_path / "package", weights=saved(network, tmp_path), **package)
        predictor = KerasPredictor(
            load_package(tmp_path / "package"), device="cpu", batch_sizes=(1, 4)
        )
        predictor.load()
        return predictor

    return write


def film_with(*squares: tuple[int, int]) -> np.ndarray:
    """A dark film with bright squares of 8 by 8 pixels at these rows and columns."""
    film = np.full((SIDE, SIDE, 1), 0.1, np.float32)
    for row, column in squares:
        film[row : row + 8, column : column + 8] = 1.0
    return film


def brightest(values: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(int(i) for i in cell) for cell in np.argwhere(values > 0.9 * values.max())}


@pytest.mark.parametrize("method", ["grad-cam", "hires-cam"])
def test_a_map_lights_up_where_the_reason_is(written: Written, method: str) -> None:
    predictor = written(detector(6.0), changes={"explanation": {"method": method}})

    found = predictor.explain(np.stack([film_with((8, 16)), film_with((24, 0))]), [0, 0])

    assert found.values.shape == (2, 8, 8)
    assert found.layers == ("looks",)
    assert found.method == {"grad-cam": "Grad-CAM", "hires-cam": "HiResCAM"}[method]
    assert brightest(found.values[0]) == {(2, 4), (2, 5), (3, 4), (3, 5)}
    assert brightest(found.values[1]) == {(6, 0), (6, 1), (7, 0), (7, 1)}


def test_a_map_speaks_in_units_of_the_score(written: Written) -> None:
    # Four of 64 cells hold 1.0 - 0.5; the score is 6 times the mean over the cells.
    predictor = written(detector(6.0))

    found = predictor.explain(film_with((8, 16))[None], [0])

    assert found.values.sum() == pytest.approx(6.0 * 4 * 0.5 / 64, rel=1e-5)


def test_the_maps_of_averaged_networks_are_averaged(written: Written) -> None:
    # One member looks at everything bright, the other does the same with three times the weight.
    one, other = detector(2.0, name="first"), detector(6.0, name="second")
    predictor = written(mean_of([one, other]))

    found = predictor.explain(film_with((0, 0))[None], [0])

    assert found.layers == ("first", "second")
    assert found.values.sum() == pytest.approx((2.0 + 6.0) / 2 * 4 * 0.5 / 64, rel=1e-5)


def headed(weight: float, *, is_pooled: bool, name: str | None = None) -> Any:
    """The same in two networks, one behind the other: what looks, and what answers."""
    whole = detector(weight)
    looks, pool, dense = whole.layers[1:]
    seen = pool(looks.output) if is_pooled else looks.output
    backbone = keras.Model(whole.input, seen, name="backbone")
    head = [keras.Input(seen.shape[1:]), *([] if is_pooled else [pool]), dense]
    dense.activation = keras.activations.sigmoid
    image = keras.Input((SIDE, SIDE, 1))
    answer = keras.Sequential(head, name="head")(backbone(image))
    return keras.Model(image, answer, name=name)


@pytest.mark.parametrize("is_pooled", [False, True])
def test_what_looks_is_found_before_a_head_of_its_own(written: Written, *, is_pooled: bool) -> None:
    # The sigmoid of 600 is 1 in float32 and its gradient 0: the end is in the head.
    predictor = written(headed(600.0, is_pooled=is_pooled), output="probability")
    film = film_with((8, 16))[None]

    found = predictor.explain(film, [0])

    assert brightest(found.values[0]) == {(2, 4), (2, 5), (3, 4), (3, 5)}
    assert found.values.sum() == pytest.approx(600.0 * 4 * 0.5 / 64, rel=1e-5)


@pytest.mark.parametrize("is_pooled", [False, True])
def test_averaged_networks_may_name_their_layers_alike(
    written: Written, *, is_pooled: bool
) -> None:
    image = keras.Input((SIDE, SIDE, 1))
    members = [headed(each, is_pooled=is_pooled, name=f"member{each:.0f}") for each in (2.0, 6.0)]
    network = keras.Model(image, layers.Average()([member(image) for member in members]))
    predictor = written(network, output="probability")

    found = predictor.explain(film_with((0, 0))[None], [0])

    assert len(found.layers) == 2
    assert found.values.sum() == pytest.approx((2.0 + 6.0) / 2 * 4 * 0.5 / 64, rel=1e-5)


def test_a_name_that_several_layers_bear_chooses_none_of_them() -> None:
    image = keras.Input((SIDE, SIDE, 1))
    members = [headed(each, is_pooled=True, name=f"member{each:.0f}") for each in (2.0, 6.0)]
    network = keras.Model(image, layers.Average()([member(image) for member in members]))

    with pytest.raises(CannotExplain, match="has 2 layers named looks"):
        chosen(network, layers=("looks",))


def test_the_reason_for_no_map_is_one_sentence(written: Written) -> None:
    # Shown as it is and mirrored: the same layer looks twice.
    image = keras.Input((SIDE, SIDE, 1))
    member = detector(6.0)
    mirrored = layers.Permute((2, 1, 3))(image)
    network = keras.Model(image, layers.Average()([member(image), member(mirrored)]))
    predictor = written(network)

    with pytest.raises(CannotExplain, match=r"^the network uses the layer looks 2 times$"):
        predictor.explain(film_with((0, 0))[None], [0])


def test_members_that_disagree_cancel_out(written: Written) -> None:
    predictor = written(mean_of([detector(4.0, name="first"), detector(-4.0, name="second")]))

    assert not predictor.explain(film_with((0, 0))[None], [0]).values.any()


def test_each_output_has_its_own_map(written: Written) -> None:
    image = keras.Input((SIDE, SIDE, 1))
    looks = layers.Conv2D(2, 4, 4, name="looks")
    network = keras.Model(
        image, layers.Dense(2, name="scores")(layers.GlobalAveragePooling2D()(looks(image)))
    )
    kernel = np.zeros((4, 4, 1, 2), np.float32)
    kernel[..., 0], kernel[..., 1] = 1 / 16, -1 / 16
    looks.set_weights([kernel, np.array([0, 1], np.float32)])
    network.get_layer("scores").set_weights([np.eye(2, dtype=np.float32) * 5, np.zeros(2)])
    predictor = written(network, labels=(BRIGHT, DARK))
    film = film_with((8, 16))

    bright, dark = predictor.explain(np.stack([film, film]), [0, 1]).values

    assert brightest(bright) == {(2, 4), (2, 5), (3, 4), (3, 5)}
    assert not brightest(dark) & brightest(bright)


def with_activation(network: Any) -> Any:
    network.layers[-1].activation = keras.activations.sigmoid
    return network


def with_operation(network: Any) -> Any:
    return keras.Model(network.inputs, keras.ops.sigmoid(network.outputs[0]))


def with_softmax_layer(network: Any) -> Any:
    """Return a network of two classes: what the network sees, and nothing."""
    score = network.outputs[0]
    both = layers.Concatenate()([score, layers.Rescaling(0.0)(score)])
    return keras.Model(network.inputs, layers.Softmax()(both))


def with_joined_heads(network: Any) -> Any:
    """Return a network with a head for each label: what the network sees, and nothing."""
    score = network.outputs[0]
    scores = (score, layers.Rescaling(0.0)(score))
    heads = [layers.Activation("sigmoid")(each) for each in scores]
    return keras.Model(network.inputs, layers.Reshape((2,))(layers.Concatenate()(heads)))


@pytest.mark.parametrize(
    "squashed", [with_activation, with_operation, with_softmax_layer, with_joined_heads]
)
def test_the_surest_probability_still_has_a_map(
    written: Written, squashed: Callable[[Any], Any]
) -> None:
    # The sigmoid of 600 is 1 in float32 and its gradient 0.
    network = squashed(detector(600.0))
    labels = (BRIGHT, DARK)[: network.outputs[0].shape[-1]]
    predictor = written(network, output="probability", labels=labels)
    film = film_with((8, 16), (16, 16), (24, 16), (0, 16))[None]

    found = predictor.explain(film, [0])

    assert predictor.predict(film)[0, 0] == 1.0
    assert found.values.max() > 0
    assert predictor.predict(film)[0, 0] == 1.0


def test_explaining_does_not_touch_predictions(written: Written) -> None:
    predictor = written(detector(6.0))
    films = np.stack([film_with((8, 8)), film_with((0, 0), (16, 16))])
    before = predictor.predict(films)

    predictor.explain(films, [0, 0])

    assert np.array_equal(predictor.predict(films), before)


def test_more_inputs_than_one_computation_holds_are_all_explained(written: Written) -> None:
    predictor = written(detector(6.0))
    films = np.stack([film_with((8 * (n % 4), 8 * (n // 8))) for n in range(21)])

    maps = predictor.explain(films, [0] * 21).values

    alone = [predictor.explain(film[None], [0]).values[0] for film in films]
    assert np.allclose(maps, alone, atol=1e-6)


def test_a_gradient_that_is_no_number_costs_only_its_own_map(written: Written) -> None:
    # The root of nought has an infinite slope; a dark film gives nought.
    one = detector(1.0)
    network = keras.Model(one.input, keras.ops.sqrt(one.output))
    predictor = written(network)
    films = np.stack([film_with(), film_with((8, 16))])

    dark, lit = predictor.explain(films, [0, 0]).values

    assert np.isnan(dark).any()
    assert brightest(lit) == {(2, 4), (2, 5), (3, 4), (3, 5)}


def test_network_that_looks_slice_by_slice_is_looked_into_at_all_of_them(written: Written) -> None:
    # Given a network that takes any number of slices, one after the other: Keras computes only as
    # many of them as the batch has inputs where both numbers are left open,
    series = keras.Input((None, SIDE, SIDE, 1))
    slices = layers.TimeDistributed(layers.Conv2D(1, 4, strides=4), name="map")(series)
    score = layers.Dense(1)(layers.GlobalAveragePooling3D()(slices))
    predictor = written(
        keras.Model(series, score), kind="volume", slices=None, labels=(BRIGHT,),
        changes={
            "explanation": {"layers": ["map"]}, "regions": {"label": "Bright", "threshold": 0.5},
        },
    )  # fmt: skip

    for length in (7, 5):
        volume = np.full((1, length, SIDE, SIDE, 1), 0.5, np.float32)

        # then both maps have a cell for every slice.
        assert predictor.explain(volume, [0]).values.shape == (1, length, SIDE // 4, SIDE // 4)
        assert predictor.locate(volume).shape == (1, length, SIDE // 4, SIDE // 4, 1)


def test_a_volume_has_a_map_of_three_axes(written: Written) -> None:
    predictor = written(
        detector(6.0, shape=(16, SIDE, SIDE, 1)), kind="volume", slices=16,
    )  # fmt: skip
    volume = np.full((1, 16, SIDE, SIDE, 1), 0.1, np.float32)
    volume[0, 4:8, 8:16, 16:24] = 1.0

    found = predictor.explain(volume, [0])

    assert found.values.shape == (1, 4, 8, 8)
    assert brightest(found.values[0]) == {(1, 2, 4), (1, 2, 5), (1, 3, 4), (1, 3, 5)}


def test_a_network_without_convolution_says_so_and_predicts(written: Written) -> None:
    image = keras.Input((SIDE, SIDE, 1))
    network = keras.Model(image, layers.Dense(1)(layers.GlobalAveragePooling2D()(image)))
    predictor = written(network)

    predictor.warm_up()

    with pytest.raises(CannotExplain, match="no convolution"):
        predictor.explain(film_with((0, 0))[None], [0])
    assert predictor.predict(film_with((0, 0))[None]).shape == (1, 1)


def test_a_layer_that_does_not_exist_is_named(written: Written) -> None:
    predictor = written(detector(6.0), changes={"explanation": {"layers": ["lokks"]}})

    with pytest.raises(CannotExplain, match="no layer named lokks"):
        predictor.explain(film_with((0, 0))[None], [0])


def test_the_check_of_a_package_says_how_it_explains(written: Written, tmp_path: Path) -> None:
    written(detector(6.0))
    found = try_package(tmp_path / "package", "cpu")
    assert found.passed
    assert found.explanation == "HiResCAM at looks, 8 x 8 cells"

    written(detector(6.0), changes={"explanation": {"layers": ["lokks"]}})
    found = try_package(tmp_path / "package", "cpu")
    assert found.faults == (
        "[explanation] layers give no map: the network has no layer named lokks",
    )


def test_warm_up_leaves_nothing_to_compile(written: Written) -> None:
    predictor = written(detector(6.0))
    predictor.warm_up()
    attention = predictor._attention

    predictor.explain(film_with((0, 0))[None], [0])

    assert attention is not None
    assert predictor._attention is attention
    assert attention._compute.count == 1


def chosen(network: Any, **plan: Any) -> list[str]:
    return [layer.name for layer in attention_layers(network, ExplanationPlan(**plan))]


def test_no_branch_is_taken_for_the_whole() -> None:
    # The convolution in the branch comes after the place where the paths part.
    image = keras.Input((32, 32, 1))
    stem = layers.Conv2D(4, 3, 2, "same", name="stem")(image)
    branch = layers.Conv2D(4, 3, 1, "same", name="branch")(stem)
    branch = layers.MaxPooling2D(2, name="branch_pool")(branch)
    joined = layers.Add(name="joined")([branch, layers.AveragePooling2D(2)(stem)])
    network = keras.Model(image, layers.Dense(1)(layers.Flatten()(joined)))

    assert chosen(network, cells=8) == ["joined"]
    assert chosen(network, cells=9) == ["stem"]
    assert chosen(network, cells=100) == ["joined"]


def test_the_backbone_inside_a_network_is_looked_into() -> None:
    backbone_input = keras.Input((32, 32, 1))
    fine = layers.Conv2D(4, 3, 2, "same", name="fine")(backbone_input)
    backbone = keras.Model(
        backbone_input, layers.Conv2D(4, 3, 4, "same", name="coarse")(fine), name="backbone"
    )
    image = keras.Input((32, 32, 1))
    features = backbone(layers.Rescaling(2.0, -1.0)(image))
    network = keras.Model(image, layers.Dense(1)(layers.GlobalAveragePooling2D()(features)))

    assert chosen(network, cells=4) == ["backbone"]
    assert chosen(network, cells=16) == ["fine"]


@pytest.mark.parametrize(("cells", "layer", "edge"), [(4, "backbone", 4), (5, "fine", 16)])
def test_a_backbone_for_images_of_any_size_is_looked_at_in_this_one(
    written: Written, cells: int, layer: str, edge: int
) -> None:
    anything = keras.Input((None, None, 1))
    fine = layers.Conv2D(4, 3, 2, "same", name="fine")(anything)
    coarse = layers.Conv2D(4, 3, 4, "same", name="coarse")(fine)
    backbone = keras.Model(anything, coarse, name="backbone")
    image = keras.Input((SIDE, SIDE, 1))
    network = keras.Model(image, layers.Dense(1)(layers.GlobalMaxPooling2D()(backbone(image))))
    predictor = written(network, changes={"explanation": {"cells": cells}})

    found = predictor.explain(film_with((8, 16))[None], [0])

    assert found.layers == (layer,)
    assert found.values.shape == (1, edge, edge)


@pytest.mark.parametrize(
    "moved", [layers.ZeroPadding2D(((0, 4), (4, 0))), layers.Cropping2D(((0, 1), (1, 0)))]
)
def test_cells_beyond_the_image_are_no_place(written: Written, moved: Any) -> None:
    # What pads or crops gives cells that do not divide the input evenly any more.
    one = detector(6.0)
    looks, pool, dense = one.layers[1:]
    network = keras.Model(one.input, dense(pool(moved(looks.output))))
    predictor = written(network)

    found = predictor.explain(film_with((8, 16))[None], [0])

    assert found.layers == ("looks",)
    assert brightest(found.values[0]) == {(2, 4), (2, 5), (3, 4), (3, 5)}


def test_a_sequential_network_is_looked_into() -> None:
    network = keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            layers.Conv2D(4, 3, activation="relu", name="first"),
            layers.MaxPooling2D(name="halved"),
            layers.Conv2D(4, 3, activation="relu", name="second"),
            layers.MaxPooling2D(name="quartered"),
            layers.Flatten(),
            layers.Dense(1, activation="sigmoid"),
        ]
    )

    assert chosen(network, cells=6) == ["quartered"]
    assert chosen(network, cells=7) == ["second"]


def test_the_compact_network_is_seen_in_ten_by_ten_cells() -> None:
    network = mean_of([build_network(NetworkPlan(), (160, 160, 1), 1) for _ in range(2)])

    found = attention_layers(network, ExplanationPlan(MethodValues.HIRES_CAM))

    assert [tuple(layer.output.shape[1:3]) for layer in found] == [(10, 10), (10, 10)]
