"""The same network in every runtime: the same answers, and files that are none."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto

from model.conversion import optimise, seeded_probes
from model.errors import ConversionFault, DeviceOutOfMemory, RuntimeFault, UnusableOutput
from model.package import load_package
from model.runtime_plan import RuntimeValues
from model.runtimes.check import check_package, try_package
from model.runtimes.onnx_runtime import ONNXPredictor
from model.runtimes.opening import RuntimeOptions, installed_runtimes, open_predictor
from model.runtimes.openvino_runtime import OpenVINOPredictor, _Compiled
from model.runtimes.port import Predictor
from tests.tiny_models import BRIGHT, DARK, TinyLabel, TinyModel, write_package
from tests.tiny_onnx import onnx_network, write_onnx_package

LABELS = (BRIGHT, DARK, TinyLabel("Dim", 2.0, -0.5, ("TINY-3", "99MEDIMGD", "Dim image")))
FOREIGN = ("onnx", "openvino")


def opened(folder: Path, **options: object) -> Predictor:
    predictor = open_predictor(load_package(folder), RuntimeOptions("cpu", **options))  # type: ignore[arg-type]
    predictor.load()
    return predictor


def fault_of(folder: Path) -> str:
    with pytest.raises(RuntimeFault) as caught:
        opened(folder)
    return str(caught.value)


def inputs(model: TinyModel, count: int) -> np.ndarray:
    shape = load_package(model.folder).recipe.shape
    values = np.random.default_rng(1).random((count, *shape), dtype=np.float32)
    return values * np.linspace(0.1, 1, count, dtype=np.float32).reshape(count, *[1] * len(shape))


def expected(model: TinyModel, values: np.ndarray) -> np.ndarray:
    return np.stack([model.expected(each) for each in values])


@pytest.mark.parametrize("runtime", FOREIGN)
@pytest.mark.parametrize("kind", ["image", "volume"])
@pytest.mark.parametrize("output", ["probability", "logit"])
def test_probabilities_are_those_computed_by_hand(tmp_path, runtime, kind, output):
    # Given a network of each kind, and more inputs than fit one batch,
    model = write_onnx_package(
        tmp_path / "p", runtime=runtime, kind=kind, output=output, labels=LABELS, channels=3
    )
    predictor = opened(model.folder)
    values = inputs(model, 41)

    # when they are computed,
    result = predictor.predict(values)

    # then each row is what numpy makes of the same weights.
    np.testing.assert_allclose(result, expected(model, values), atol=1e-5)
    assert (result.dtype, result.shape) == (np.float32, (41, 3))
    assert predictor.predict(values[:0]).shape == (0, 3)


@pytest.mark.parametrize("runtime", FOREIGN)
def test_network_with_channels_first_is_given_them_first(tmp_path, runtime):
    # Given a network as PyTorch exports it, with three channels,
    model = write_onnx_package(
        tmp_path / "p", runtime=runtime, channels=3,
        weights={"layout": "channels-first"}, network={"channels_first": True},
    )  # fmt: skip
    values = inputs(model, 3)

    result = opened(model.folder).predict(values)

    np.testing.assert_allclose(result, expected(model, values), atol=1e-5)


@pytest.mark.parametrize("runtime", FOREIGN)
def test_network_that_insists_on_its_batch_gets_padded_ones(tmp_path, runtime):
    model = write_onnx_package(tmp_path / "p", runtime=runtime, network={"batch": 4})
    predictor = opened(model.folder)
    values = inputs(model, 6)

    result = predictor.predict(values)

    np.testing.assert_allclose(result, expected(model, values), atol=1e-5)
    assert predictor.batch_sizes == (4,)


@pytest.mark.parametrize("runtime", FOREIGN)
def test_volume_of_any_number_of_slices_is_computed_where_both_leave_it_open(tmp_path, runtime):
    edges = ("slices", 16, 16, 1)
    model = write_onnx_package(
        tmp_path / "p", runtime=runtime, kind="volume", slices=None, network={"edges": edges}
    )
    predictor = opened(model.folder)
    predictor.warm_up()

    for slices in (3, 7):
        values = np.full((2, slices, 16, 16, 1), 0.75, np.float32)
        np.testing.assert_allclose(predictor.predict(values), expected(model, values), atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "cores", "sizes", "at_once"),
    [("image", 2, [1, 2], 2), ("image", 16, [1, 2], 16), ("image", 64, [1], 32),
     ("volume", 2, [1], 2), ("volume", 64, [1], 4)],
)  # fmt: skip
def test_openvino_is_compiled_for_no_more_than_a_batch_has_parts(
    tmp_path, monkeypatch, kind, cores, sizes, at_once
):
    # Given OpenVINO, which takes memory for every input that might be computed at once,
    model = write_onnx_package(tmp_path / "p", runtime="openvino", kind=kind)
    streams: dict[int, list[int]] = {}
    compile_one = OpenVINOPredictor._compile_one

    def noted(self: Any, *given: Any) -> Any:
        *_, size, settings = given
        streams.setdefault(settings["NUM_STREAMS"], []).append(size)
        return compile_one(self, *given)

    monkeypatch.setattr(OpenVINOPredictor, "_compile_one", noted)
    monkeypatch.setattr("model.runtimes.openvino_runtime.usable_cores", lambda _: cores)

    predictor = opened(model.folder)

    # then it gets ready for one batch, whatever the number of cores.
    assert streams == {at_once: sizes, 1: [1]}
    values = inputs(model, 9)
    np.testing.assert_allclose(predictor.predict(values), expected(model, values), atol=1e-5)


@pytest.mark.parametrize("threads", [1, 2])
def test_openvino_is_asked_by_one_thread_before_several_ask_at_once(tmp_path, monkeypatch, threads):
    # Given that OpenVINO's binding hangs when the first arrays of a process come two at once,
    model = write_onnx_package(tmp_path / "p", runtime="openvino")
    askers: list[threading.Thread] = []
    ask = _Compiled._ask

    def noted(self: _Compiled, *given: Any) -> Any:
        askers.append(threading.current_thread())
        return ask(self, *given)

    monkeypatch.setattr(_Compiled, "_ask", noted)

    opened(model.folder, threads=threads)

    assert askers == [threading.current_thread()]


@pytest.mark.parametrize("runtime", FOREIGN)
def test_description_names_library_device_and_precision(tmp_path, runtime):
    predictor = opened(write_onnx_package(tmp_path / "p", runtime=runtime).folder, threads=1)

    assert predictor.warm_up() > 0
    assert predictor.device == predictor.description.device == "CPU"
    library = {"onnx": "onnxruntime 1.", "openvino": "openvino 20"}[runtime]
    assert predictor.description.runtime.startswith(library)
    assert predictor.description.precision == "float32"
    assert installed_runtimes()[RuntimeValues(runtime)] == predictor.description.runtime


@pytest.mark.parametrize("runtime", FOREIGN)
def test_nan_in_the_input_ends_in_an_error_and_no_finding(tmp_path, runtime):
    predictor = opened(write_onnx_package(tmp_path / "p", runtime=runtime).folder)
    values = np.full((3, 16, 16, 1), 0.5, np.float32)
    values[1] = np.nan

    with pytest.raises(UnusableOutput, match="1 of 3 predictions hold NaN") as caught:
        predictor.predict(values)
    assert caught.value.rows == (1,)


@pytest.mark.parametrize("runtime", FOREIGN)
@pytest.mark.parametrize(
    ("told", "network", "fault"),
    [
        ({}, {"edges": (20, 16, 1)}, "(16, 16, 1) (channels-last), the network takes (20, 16, 1)"),
        ({}, {"channels_first": True}, 'with layout = "channels-first" in [weights] they would'),
        ({}, {"labels": LABELS}, "size is 1 for the labels Bright; the network gives (3,)"),
        ({}, {"output": "probability"}, "the last layer applies sigmoid already: the kind is"),
        ({"input": "film"}, {}, "[weights] input is film; the network's inputs are image"),
        ({"output": "y"}, {}, "[weights] output is y; the network's outputs are scores"),
        ({}, {"element": TensorProto.FLOAT16}, "it must be float32"),
    ],
)  # fmt: skip
def test_manifest_and_network_that_disagree_are_refused(tmp_path, runtime, told, network, fault):
    model = write_onnx_package(tmp_path / "p", runtime=runtime, weights=told, network=network)

    assert fault in fault_of(model.folder)


@pytest.mark.parametrize("runtime", FOREIGN)
@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "is no complete ONNX model"),
        (b"<html>not found</html>", "is no complete ONNX model"),
        (onnx_network((16, 16, 1)).SerializeToString()[:-60], "it is truncated (3"),
    ],
)
def test_file_that_is_no_network_is_named_as_such(tmp_path, runtime, content, fault):
    model = write_onnx_package(tmp_path / "p", runtime=runtime, content=content)

    assert fault in fault_of(model.folder)


@pytest.mark.parametrize("runtime", FOREIGN)
def test_operation_that_the_library_does_not_know_is_its_fault_with_a_name(tmp_path, runtime):
    network = onnx_network((16, 16, 1))
    network.graph.node[0].op_type = "Diagnose"
    model = write_onnx_package(tmp_path / "p", runtime=runtime, content=network.SerializeToString())

    fault = fault_of(model.folder)

    assert "cannot load it (operator set 18, by tests)" in fault
    assert "Diagnose" in fault


@pytest.mark.parametrize(
    ("runtime", "library"), [("onnx", "onnxruntime"), ("openvino", "openvino")]
)
def test_missing_library_says_which_extra_to_install(tmp_path, monkeypatch, runtime, library):
    model = write_onnx_package(tmp_path / "p", runtime=runtime)
    monkeypatch.setitem(sys.modules, library, None)

    assert f"pip install 'medimgd[{runtime}]'" in fault_of(model.folder)


@pytest.mark.parametrize("kind", [ONNXPredictor, OpenVINOPredictor])
def test_gpu_that_the_library_cannot_use_is_named(tmp_path, kind):
    package = load_package(write_onnx_package(tmp_path / "p").folder)

    with pytest.raises(RuntimeFault, match="gpu was asked for"):
        kind(package, device="gpu").load()
    with pytest.raises(RuntimeFault, match="must be one of auto, cpu, gpu"):
        kind(package, device="tpu")


def hold_at_most(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let onnxruntime behave as in a process that may hold so few inputs at once."""
    run = onnxruntime.InferenceSession.run

    def tight(session: Any, names: list[str], given: dict[str, np.ndarray]) -> list[np.ndarray]:
        if len(next(iter(given.values()))) > most:
            raise MemoryError("Unable to allocate 1.00 GiB for an array")
        return run(session, names, given)

    monkeypatch.setattr(onnxruntime.InferenceSession, "run", tight)


def test_process_without_memory_for_a_batch_computes_smaller_ones(tmp_path, monkeypatch):
    model = write_onnx_package(tmp_path / "p", labels=LABELS)
    predictor = opened(model.folder)
    values = inputs(model, 20)

    with monkeypatch.context() as tightness:
        hold_at_most(1, tightness)
        np.testing.assert_allclose(predictor.predict(values), expected(model, values), atol=1e-5)
    assert predictor.batch_sizes == (1,)

    hold_at_most(0, monkeypatch)
    with pytest.raises(DeviceOutOfMemory):
        predictor.predict(values)


def test_openvino_that_takes_another_precision_is_refused(tmp_path, monkeypatch):
    # Given an installation that asks for bfloat16, as OpenVINO does by itself on this processor,
    model = write_onnx_package(tmp_path / "p", runtime="openvino")
    monkeypatch.setattr("model.runtimes.openvino_runtime._WANTED_PRECISION", "bf16")

    # then the package does not serve in it.
    fault = fault_of(model.folder)
    assert "float32 was asked for, but OpenVINO computes in bf16" in fault


def test_importing_openvino_tells_nobody(tmp_path):
    # Given a process that notes every module and every connection,
    model = write_onnx_package(tmp_path / "p", runtime="openvino")
    code = (
        "import sys, socket\n"
        "def refuse(*a, **k): raise SystemExit('a connection was opened')\n"
        "socket.socket.connect = refuse\n"
        "from pathlib import Path\n"
        "from model.runtimes.check import try_package\n"
        f"report = try_package(Path({str(model.folder)!r}), 'cpu')\n"
        "assert report.passed, report.faults\n"
        "loaded = [name for name in sys.modules if name.startswith('openvino_telemetry')]\n"
        "assert not loaded, loaded\n"
        "assert 'tensorflow' not in sys.modules\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip

    assert (done.returncode, done.stderr) == (0, "")


def test_trial_of_a_package_takes_its_own_runtime(tmp_path):
    model = write_onnx_package(tmp_path / "p", labels=LABELS)

    report = check_package(model.folder, device="cpu")

    assert report.faults == ()
    assert report.runtime.startswith("onnxruntime")
    np.testing.assert_allclose(report.probabilities[1], model.expected(np.ones((16, 16, 1))), 1e-5)


@pytest.mark.parametrize("cores", [1, 2, 8])
def test_network_that_depends_on_its_neighbours_is_found_on_any_number_of_cores(
    tmp_path, monkeypatch, cores
):
    # Given a network whose answers are set into proportion to each other,
    network = onnx_network((16, 16, 1))
    (end,) = [each for each in network.graph.node if each.op_type == "Identity"]
    end.op_type = "LpNormalization"
    end.attribute.append(onnx.helper.make_attribute("axis", 0))
    model = write_onnx_package(tmp_path / "p", content=network.SerializeToString())
    monkeypatch.setattr("model.runtimes.onnx_runtime.usable_cores", lambda _: cores)

    (fault,) = try_package(model.folder, "cpu").faults

    assert "the same input scores differently alone and in a batch" in fault


@pytest.fixture(scope="module")
def keras_model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return write_package(tmp_path_factory.mktemp("keras") / "p", labels=LABELS, channels=3)


@pytest.mark.parametrize("runtime", FOREIGN)
def test_optimised_package_answers_as_its_source_and_says_where_it_comes_from(
    tmp_path, keras_model, runtime
):
    # Given a Keras package,
    source = load_package(keras_model.folder)

    # when it is converted,
    made = optimise(source.folder, tmp_path / "new", runtime=RuntimeValues(runtime))

    # then the new package is whole, orders after its source, and answers alike,
    package = load_package(tmp_path / "new")
    assert package.at_version == made.converted == f"tiny@1.0.0+{runtime}"
    values = inputs(keras_model, 9)
    before = opened(source.folder).predict(values)
    np.testing.assert_allclose(opened(package.folder).predict(values), before, atol=1e-6)
    # and it records both digests and what was measured.
    told = package.conversion
    assert told["source"] == "tiny@1.0.0"
    assert told["source_weights_sha256"] == source.identity.weights_sha256
    assert told["converted_weights_sha256"] == package.identity.weights_sha256
    assert told["largest_difference"] == made.largest_difference <= 1e-6
    assert (made.probes, made.is_telling) == (32, True)
    assert package.labels == source.labels
    assert not (tmp_path / "new" / "weights.keras").exists()
    assert try_package(package.folder, "cpu").passed


def test_volumes_with_any_number_of_slices_are_converted(tmp_path):
    model = write_package(tmp_path / "p", kind="volume", slices=None)

    optimise(model.folder, tmp_path / "new")

    values = np.full((1, 5, 16, 16, 1), 0.75, np.float32)
    result = opened(tmp_path / "new").predict(values)
    np.testing.assert_allclose(result[0], model.expected(values[0]), 1e-5)


def test_onnx_package_is_handed_to_openvino_with_the_same_file(tmp_path):
    model = write_onnx_package(tmp_path / "p")

    made = optimise(model.folder, tmp_path / "new", runtime=RuntimeValues.OPENVINO, version="2.0.0")

    assert made.converted == "tiny@2.0.0"
    assert made.source_sha256 == made.converted_sha256
    with pytest.raises(ConversionFault, match="is a package for openvino; what can be converted"):
        optimise(tmp_path / "new", tmp_path / "newer")


def test_what_was_converted_twice_still_names_the_weights_it_comes_from(tmp_path, keras_model):
    first = load_package(keras_model.folder)
    optimise(first.folder, tmp_path / "onnx")
    second = load_package(tmp_path / "onnx")

    optimise(second.folder, tmp_path / "openvino", runtime=RuntimeValues.OPENVINO)

    third = load_package(tmp_path / "openvino")
    weights = [each.identity.weights_sha256 for each in (first, second)]
    assert second.converted_from == (weights[0],)
    assert third.converted_from == tuple(weights)
    assert third.conversion["source"] == second.at_version
    # A table that speaks of other weights, kept by hand with new ones, proves nothing.
    assert replace(second, conversion=third.conversion | {
        "converted_weights_sha256": "0" * 64}).converted_from == ()  # fmt: skip


def test_nothing_is_written_when_the_answers_differ_by_more_than_the_tolerance(
    tmp_path, keras_model
):
    with pytest.raises(ConversionFault, match=r"differs by .*, the tolerance is 0; nothing was"):
        optimise(keras_model.folder, tmp_path / "new", tolerance=0.0)

    assert list(tmp_path.iterdir()) == []


def test_conversion_that_changes_the_network_is_noticed(tmp_path, keras_model, monkeypatch):
    # Given a converter that writes a network whose answers are a little off,
    wrong = [TinyLabel(each.name, each.weight, each.bias + 0.01, each.code) for each in LABELS]
    content = onnx_network((16, 16, 3), wrong).SerializeToString()
    monkeypatch.setattr("model.runtimes.keras_export.exported_onnx", lambda *_: content)

    # then it is refused, whatever it claims.
    with pytest.raises(ConversionFault, match=r"differs by 0\.002"):
        optimise(keras_model.folder, tmp_path / "new")


def test_package_that_is_there_is_never_overwritten(tmp_path, keras_model):
    (tmp_path / "new").mkdir()

    with pytest.raises(ConversionFault, match="is there already"):
        optimise(keras_model.folder, tmp_path / "new")


def test_missing_converter_says_which_extra_to_install(tmp_path, keras_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "tf2onnx", None)

    with pytest.raises(RuntimeFault, match=r"pip install 'medimgd\[optimise\]'"):
        optimise(keras_model.folder, tmp_path / "new")


def test_seeded_probes_are_the_same_everywhere_and_cover_the_range(keras_model):
    package = load_package(keras_model.folder)

    probes = seeded_probes(package)

    assert probes.shape == (32, 16, 16, 3)
    assert probes.dtype == np.float32
    assert (probes.min(), probes.max()) == (0.0, 1.0)
    np.testing.assert_array_equal(probes, seeded_probes(package))
    assert len(np.unique(probes.reshape(32, -1), axis=0)) == 32


def test_external_weights_are_refused_because_no_digest_covers_them(tmp_path):
    network = onnx_network((16, 16, 1))
    onnx.external_data_helper.convert_model_to_external_data(
        network, location="secret.bin", size_threshold=0
    )
    for tensor in network.graph.initializer:
        tensor.data_location = TensorProto.EXTERNAL
    model = write_onnx_package(tmp_path / "p", content=network.SerializeToString())

    assert "keeps weights in other files, which the package's digest would not" in fault_of(
        model.folder
    )
