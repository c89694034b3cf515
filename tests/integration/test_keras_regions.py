"""Detecting Keras networks: the map is read where the manifest says, or refused."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dicom_io.vocabulary import ImageTensor
from model.conversion import optimise
from model.errors import CannotLocate, ConversionFault, RuntimeFault
from model.explain import Explicable
from model.findings import judge
from model.manifest_writing import write_manifest
from model.package import ModelPackage, load_package
from model.regions import detect, undetected
from model.runtime_plan import RuntimeValues
from model.runtimes.check import check_package
from model.runtimes.keras_runtime import KerasPredictor
from model.runtimes.onnx_runtime import ONNXPredictor
from model.runtimes.opening import RuntimeOptions, open_predictor
from model.runtimes.port import Detector
from tests.tiny_models import BRIGHT, DARK, write_package
from tests.tiny_onnx import write_onnx_package

NOTES = {"source_shape": [64, 64], "source_region": [0, 0, 1, 1], "source_pixel_spacing_mm": None}


def written(folder: Path, **options: Any) -> ModelPackage:
    options = {"rows": 32, "columns": 32, "labels": (BRIGHT, DARK), "cell": 4, **options}
    write_package(folder, **options)
    return load_package(folder)


def loaded(package: ModelPackage) -> KerasPredictor:
    predictor = KerasPredictor(package, device="cpu", batch_sizes=(1, 4))
    predictor.load()
    return predictor


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> ModelPackage:
    return written(tmp_path_factory.mktemp("detecting") / "p")


@pytest.fixture(scope="module")
def predictor(package: ModelPackage) -> KerasPredictor:
    return loaded(package)


def spotted(row: int = 8, column: int = 16, value: float = 1.0) -> np.ndarray:
    """Return a grey input with a bright square of one cell."""
    values = np.full((32, 32, 1), 0.2, np.float32)
    values[row : row + 4, column : column + 4] = value
    return values


def explicable(package: ModelPackage, predictor: KerasPredictor, values: np.ndarray) -> Explicable:
    axes = ("rows", "columns", "channels")
    tensor = ImageTensor(values, axes, None, ("2.25.1",), "ab", NOTES)
    return Explicable(tensor, judge(predictor.predict(values[None])[0], package.labels))


def test_the_map_holds_a_logit_of_every_output_for_every_cell(predictor):
    batch = np.stack([spotted(), spotted(24, 4), spotted(0, 0, 0.0)])

    maps = predictor.locate(batch)

    assert isinstance(predictor, Detector)
    assert (maps.shape, maps.dtype) == ((3, 8, 8, 2), np.float32)
    means = batch.reshape(3, 8, 4, 8, 4).mean((2, 4))
    np.testing.assert_allclose(maps[..., 0], 8 * means - 4, atol=1e-5)
    np.testing.assert_allclose(maps[..., 1], 4 - 8 * means, atol=1e-5)


def test_a_bright_spot_is_found_where_it_is(package, predictor):
    (found,) = detect(package, predictor, [explicable(package, predictor, spotted())])

    (region,) = found.regions
    (outline,) = region.outlines
    left, top = outline.points[0]
    right, bottom = outline.points[2]
    # Twice the input: cells of 8 pixels, at 16 rows and 32 columns of the source.
    assert (left, top, right, bottom) == pytest.approx((32, 16, 40, 24), abs=2)
    assert region.certainty == pytest.approx(1 / (1 + np.exp(-4.0)), abs=1e-5)
    assert (region.label, region.tracked_as) == ("Bright", "Spot 1")


def test_inputs_without_the_finding_are_not_asked_about(package, predictor):
    dark = explicable(package, predictor, spotted(value=0.2))
    bright = explicable(package, predictor, spotted())

    found = detect(package, predictor, [dark, bright, dark])

    assert [each is None for each in found] == [True, False, True]
    assert undetected(package, dark.findings, "why") is None
    assert undetected(package, bright.findings, "why").note == "no regions can be shown: why"


def test_a_package_without_the_table_finds_no_regions(package, predictor):
    silent = replace(package, regions=None)
    bright = explicable(package, predictor, spotted())

    assert detect(silent, predictor, [bright]) == [None]
    assert undetected(silent, bright.findings, "why") is None


def test_what_was_prepared_without_its_geometry_has_a_note(package, predictor):
    bright = explicable(package, predictor, spotted())
    blind = replace(bright, tensor=replace(bright.tensor, notes={}))

    (found,) = detect(package, predictor, [blind])

    assert found.regions == ()
    assert "did not note where they lie" in found.note


class _Blind:
    """A predictor that knows of no maps."""

    device = "CPU"


class _Broken:
    device = "CPU"

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def locate(self, batch: np.ndarray) -> np.ndarray:
        if isinstance(self._answer, Exception):
            raise self._answer
        return np.full((len(batch), 8, 8, 2), self._answer, np.float32)


@pytest.mark.parametrize(
    ("other", "note"),
    [
        (_Blind(), "the runtime that serves this model gives no map"),
        (_Broken(CannotLocate("the layer is gone")), "the layer is gone"),
        (_Broken(float("nan")), "numbers that are not finite"),
    ],
)
def test_whatever_keeps_a_map_away_is_said_and_the_finding_stays(package, predictor, other, note):
    bright = explicable(package, predictor, spotted())

    (found,) = detect(package, other, [bright])

    assert found.regions == ()
    assert note in found.note


def test_warming_up_compiles_the_map_too(package):
    predictor = loaded(package)
    predictor.warm_up()
    traces = predictor._compiled_map.count

    predictor.locate(np.stack([spotted()] * 7))

    assert traces == predictor._compiled_map.count == 1


def test_the_reason_for_no_regions_is_one_sentence(tmp_path):
    package = written(tmp_path / "p", labels=(BRIGHT,))
    member = keras.models.load_model(package.weights_path)
    # Shown as it is and mirrored: the same layer makes two maps.
    image = keras.Input((32, 32, 1))
    mirrored = keras.layers.Permute((2, 1, 3))(image)
    network = keras.Model(image, keras.layers.Average()([member(image), member(mirrored)]))
    predictor = KerasPredictor(package, device="cpu")
    predictor._load_network = lambda *_: network  # type: ignore[method-assign]
    predictor.load()

    with pytest.raises(CannotLocate, match=r"^the network uses the layer map 2 times$"):
        predictor.locate(spotted()[None])


def test_a_volume_has_its_slices_in_the_map(tmp_path):
    package = written(tmp_path / "p", kind="volume", slices=6, labels=(BRIGHT,))
    predictor = loaded(package)
    values = np.full((6, 32, 32, 1), 0.2, np.float32)
    values[3, 8:12, 16:20] = 1.0

    maps = predictor.locate(values[None])

    assert maps.shape == (1, 6, 8, 8, 1)
    assert np.unravel_index(maps.argmax(), maps.shape) == (0, 3, 2, 4, 0)


def test_the_map_of_an_averaged_network_speaks_for_its_members(tmp_path):
    package = written(tmp_path / "p", labels=(BRIGHT,))
    member = keras.models.load_model(package.weights_path)
    image = keras.Input((32, 32, 1))
    inner = keras.Model(member.inputs, member.get_layer("map").output, name="member")
    halved = keras.layers.Rescaling(0.5, name="map")(inner(image))
    whole = keras.Model(image, keras.layers.GlobalMaxPooling2D(name="logits")(halved))
    nested = keras.Model(image, keras.layers.GlobalMaxPooling2D(name="logits")(inner(image)))
    batch = spotted()[None]
    member_map = loaded(package).locate(batch)

    maps = {}
    for name, network in (("whole", whole), ("nested", nested)):
        copy = written(tmp_path / name, labels=(BRIGHT,))
        predictor = KerasPredictor(copy, device="cpu")
        predictor._load_network = lambda *_, it=network: it  # type: ignore[method-assign]
        predictor.load()
        maps[name] = predictor.locate(batch)

    np.testing.assert_allclose(maps["whole"], member_map / 2, atol=1e-6)
    np.testing.assert_allclose(maps["nested"], member_map, atol=1e-6)


@pytest.mark.parametrize(
    ("layer", "fault"),
    [
        ("positions", "[regions] layer is positions; the network has 0 layers of that name"),
        ("logits", "must give (batch, rows, columns, 2); it gives (None, 2)"),
    ],
)
def test_a_layer_that_says_nothing_of_places_is_refused(tmp_path, layer, fault):
    package = written(tmp_path / "p", changes={"regions": {"layer": layer}})

    with pytest.raises(RuntimeFault) as caught:
        loaded(package)

    assert fault in str(caught.value)


@pytest.mark.parametrize("runtime", [RuntimeValues.ONNX, RuntimeValues.OPENVINO])
@pytest.mark.parametrize("kind", ["image", "volume"])
def test_a_converted_package_finds_the_same_regions(tmp_path, runtime, kind):
    package = written(tmp_path / "p", kind=kind, slices=6)
    batch = np.stack([spotted(), spotted(24, 4), spotted(0, 0, 0.0)])
    if kind == "volume":
        batch = np.repeat(batch[:, None], 6, axis=1) * np.linspace(0.1, 1, 6)[:, None, None, None]
    batch = batch.astype(np.float32)

    optimise(package.folder, tmp_path / "converted", runtime=runtime)

    converted = open_predictor(load_package(tmp_path / "converted"), RuntimeOptions(device="cpu"))
    converted.load()
    assert isinstance(converted, Detector)
    np.testing.assert_allclose(converted.locate(batch), loaded(package).locate(batch), atol=1e-4)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (np.full((8, 8, 2), np.nan), "differs by nan"),
        (np.zeros((1, 1, 2)), r"has cells of \(1, 1, 2\)"),
    ],
)
def test_a_converted_map_that_cannot_be_compared_is_refused(
    package, tmp_path, monkeypatch, given, words
):
    def locate(_self: ONNXPredictor, batch: np.ndarray) -> np.ndarray:
        return np.repeat(given[np.newaxis].astype(np.float32), len(batch), axis=0)

    monkeypatch.setattr(ONNXPredictor, "locate", locate)

    with pytest.raises(ConversionFault, match=words):
        optimise(package.folder, tmp_path / "converted", runtime=RuntimeValues.ONNX)

    assert not (tmp_path / "converted").exists()


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_a_file_without_the_map_finds_none_and_says_so(tmp_path, runtime):
    write_onnx_package(tmp_path / "p", runtime=runtime)
    manifest = tomllib.loads((tmp_path / "p" / "manifest.toml").read_text())
    write_manifest(tmp_path / "p", {**manifest, "regions": {"threshold": 0.5}})
    package = load_package(tmp_path / "p")
    predictor = open_predictor(package, RuntimeOptions(device="cpu"))
    predictor.load()
    values = np.ones((16, 16, 1), np.float32)

    (found,) = detect(package, predictor, [explicable(package, predictor, values)])

    assert found.note == (
        "no regions can be shown: the runtime that serves this model gives no map"
    )


def test_a_network_from_pytorch_has_its_channels_in_front_of_the_map(tmp_path):
    shape = {"rows": 16, "columns": 16, "channels": 3}
    write_onnx_package(
        tmp_path / "p", content=cells_network(), weights={"layout": "channels-first"}, **shape
    )
    manifest = tomllib.loads((tmp_path / "p" / "manifest.toml").read_text())
    write_manifest(tmp_path / "p", {**manifest, "regions": {"threshold": 0.5}})
    predictor = open_predictor(load_package(tmp_path / "p"), RuntimeOptions(device="cpu"))
    predictor.load()
    values = np.random.default_rng(5).random((3, 16, 16, 3), np.float32)

    maps = predictor.locate(values)

    sums = values.reshape(3, 4, 4, 4, 4, 3).mean((2, 4)).sum(-1, keepdims=True)
    np.testing.assert_allclose(maps, sums, atol=1e-5)
    answers = 1 / (1 + np.exp(-sums.max((1, 2))))
    np.testing.assert_allclose(predictor.predict(values), answers, atol=1e-5)


def cells_network() -> bytes:
    """Return a network, channels first: sums of means over cells of 4 pixels, and the highest."""
    nodes = [
        helper.make_node("AveragePool", ["image"], ["means"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("ReduceSum", ["means", "one"], ["map"], keepdims=1),
        helper.make_node("ReduceMax", ["map", "plane"], ["scores"], keepdims=0),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 16, 16])
    outputs = [
        helper.make_tensor_value_info("map", TensorProto.FLOAT, ["batch", 1, 4, 4]),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 1]),
    ]
    axes = {"one": [1], "plane": [2, 3]}
    constants = [numpy_helper.from_array(np.array(v, np.int64), k) for k, v in axes.items()]
    graph = helper.make_graph(nodes, "cells", [image], outputs, constants)
    network = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(network)
    content: bytes = network.SerializeToString()
    return content


def test_the_check_of_a_package_says_where_regions_come_from(tmp_path, package):
    silent = written(tmp_path / "p", cell=0)

    report, other = (check_package(each.folder, device="cpu") for each in (package, silent))

    assert report.regions == "the layer map for Bright, 8 x 8 cells"
    assert other.regions == "none: the model package asks for none"
    assert report.passed
