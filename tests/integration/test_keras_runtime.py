"""Real Keras networks on this machine: their answers, and files that are none."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from dicom_io.tensors import TensorRecipe
from model.errors import DeviceOutOfMemory, RuntimeFault, UnusableOutput
from model.package import load_package
from model.package_files import sha256_of
from model.runtimes.check import check_package, try_package
from model.runtimes.keras_end import last_operation
from model.runtimes.keras_frozen import answers_alike
from model.runtimes.keras_runtime import KerasPredictor
from model.runtimes.port import Predictor
from tests.tiny_models import BRIGHT, DARK, WEIGHTS_NAME, TinyLabel, TinyModel, write_package

LABELS = (BRIGHT, DARK, TinyLabel("Dim", 2.0, -0.5, ("TINY-3", "99MEDIMGD", "Dim image")))


def loaded(model: TinyModel, **options: object) -> KerasPredictor:
    predictor = KerasPredictor(load_package(model.folder), device="cpu", **options)  # type: ignore[arg-type]
    predictor.load()
    return predictor


def repacked(folder: Path, **changes: object) -> Path:
    """Make the manifest agree with whatever the weights file is now."""
    manifest = folder / "manifest.toml"
    text = manifest.read_text()
    for line in text.splitlines():
        if line.startswith("sha256"):
            digest = sha256_of(folder / WEIGHTS_NAME)
            manifest.write_text(text.replace(line, f'sha256 = "{digest}"'))
    return folder


def fault_of(folder: Path) -> str:
    with pytest.raises(RuntimeFault) as caught:
        KerasPredictor(load_package(folder), device="cpu").load()
    return str(caught.value)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return write_package(tmp_path_factory.mktemp("tiny") / "tiny", labels=LABELS)


@pytest.fixture(scope="module")
def predictor(tiny: TinyModel) -> KerasPredictor:
    return loaded(tiny)


@pytest.mark.parametrize("kind", ["image", "volume"])
@pytest.mark.parametrize("output", ["probability", "logit", "softmax"])
def test_probabilities_are_those_computed_by_hand(tmp_path, kind, output):
    # Given a network of each kind of output and a few inputs,
    model = write_package(tmp_path / "p", kind=kind, output=output, labels=LABELS)
    predictor = loaded(model, batch_sizes=(1, 4))
    shape = load_package(model.folder).recipe.shape
    values = np.random.default_rng(1).random((6, *shape), dtype=np.float32)
    values *= np.linspace(0.1, 1, 6, dtype=np.float32).reshape(6, *[1] * len(shape))

    # when they are computed in batches of different sizes,
    result = predictor.predict(values)

    # then each row is what numpy makes of the same weights, and nobody saw a raw output.
    expected = np.stack([model.expected(item) for item in values])
    np.testing.assert_allclose(result, expected, atol=1e-5)
    assert (result.dtype, result.shape) == (np.float32, (6, 3))


def test_volume_of_any_number_of_slices_is_computed_where_the_recipe_leaves_it_open(tmp_path):
    model = write_package(tmp_path / "p", kind="volume", slices=None)
    predictor = loaded(model, batch_sizes=(1,))
    predictor.warm_up()

    for slices in (3, 7):
        values = np.full((1, slices, 16, 16, 1), 0.75, dtype=np.float32)
        np.testing.assert_allclose(predictor.predict(values)[0], model.expected(values[0]), 1e-5)


def test_batch_of_any_length_gives_one_row_per_input(tiny, predictor):
    values = np.random.default_rng(2).random((41, 16, 16, 1), dtype=np.float32)

    result = predictor.predict(values)

    np.testing.assert_allclose(result, [tiny.expected(v) for v in values], atol=1e-5)
    assert predictor.predict(values[:0]).shape == (0, 3)


def test_warm_predictor_compiles_nothing_more(predictor, caplog):
    # Given a predictor that computed each of its sizes,
    assert predictor.warm_up() > 0
    traces = predictor.trace_count

    # when batches of many lengths follow,
    for count in (1, 2, 5, 9, 33):
        predictor.predict(np.zeros((count, 16, 16, 1), np.float32))

    # then no further trace was made: what was frozen serves batches of any length.
    assert predictor.trace_count == traces == 0


def test_network_that_cannot_be_frozen_is_compiled_for_each_size(tiny, monkeypatch, caplog):
    # Given a network that holds more than one file of constants can,
    monkeypatch.setattr("model.runtimes.keras_frozen.MOST_PARAMETERS", 5)
    with caplog.at_level("INFO"):
        predictor = loaded(tiny)
    assert "tiny@1.0.0 cannot be frozen" in caplog.text
    predictor.warm_up()
    traces = predictor.trace_count
    values = np.random.default_rng(4).random((41, 16, 16, 1), dtype=np.float32)

    result = predictor.predict(values)

    # then it is computed by itself, in sizes compiled before.
    np.testing.assert_allclose(result, [tiny.expected(v) for v in values], atol=1e-5)
    assert predictor.trace_count == traces == len(predictor.batch_sizes)


def slice_by_slice(series: Any) -> Any:
    """Keras takes as many slices as the batch has inputs where both numbers are left open."""
    return keras.layers.TimeDistributed(keras.layers.Conv2D(3, 3))(series)


def in_parts_of_a_series(series: Any) -> Any:
    """Keras cannot be asked for it unless the number of slices is known."""
    return keras.layers.AdaptiveMaxPooling3D(3)(series)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("layer", [slice_by_slice, in_parts_of_a_series])
def test_network_that_needs_the_number_of_slices_is_compiled_for_each(tmp_path, layer):
    # Given a network that is wrong, or none, where that number is left open,
    keras.utils.set_random_seed(6)
    series = keras.Input((None, 16, 16, 1))
    features = keras.layers.GlobalAveragePooling3D()(layer(series))
    network = keras.Model(series, keras.layers.Dense(3)(features))
    tiny = write_package(tmp_path / "tiny", kind="volume", slices=None, labels=LABELS)
    network.save(tiny.folder / WEIGHTS_NAME)
    predictor = loaded(replace(tiny, folder=repacked(tiny.folder)))

    for slices in (5, 9):
        values = np.random.default_rng(slices).random((3, slices, 16, 16, 1), dtype=np.float32)
        values *= np.linspace(0, 5, slices, dtype=np.float32).reshape(1, slices, 1, 1, 1)

        result = predictor.predict(values)

        # then its answer is about all of them.
        logits = np.array(network(values, training=False))
        np.testing.assert_allclose(result, 1 / (1 + np.exp(-logits)), atol=1e-5)


def placed(values: Any) -> Any:
    with tf.device("/CPU:0"):
        return 3 * values


def full(batch: np.ndarray) -> np.ndarray:
    raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")


@pytest.mark.parametrize(
    ("function", "alike"),
    [
        (lambda batch: 3 * batch + 1e-6, True),
        (lambda batch: 3 * batch + 1e-3, False),
        (lambda batch: 3 * batch[:1], False),
        (lambda batch: np.nan * batch, False),
        (full, False),
    ],
    ids=["rounding", "another answer", "fewer answers", "no number", "no memory"],
)
def test_what_was_compiled_is_used_only_where_it_gives_the_same(function, alike):
    # Given what is computed on one device of several, as it is told to.
    assert answers_alike(tf, function, placed, (4, 4, 1)) is alike


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_frozen_network_gives_what_keras_computes(tmp_path):
    # Given a network whose batch normalisation and activations are folded into its convolutions,
    image = keras.Input((16, 16, 1))
    values = image
    for channels in (4, 8):
        values = keras.layers.Conv2D(channels, 3, use_bias=False)(values)
        values = keras.layers.BatchNormalization()(values)
        values = keras.layers.Activation("relu")(values)
    values = keras.layers.Dropout(0.5)(keras.layers.GlobalAveragePooling2D()(values))
    network = keras.Model(image, keras.layers.Dense(3)(values))
    random = np.random.default_rng(5)
    for weight in network.weights:
        low = 0.5 if "variance" in weight.path else -0.5
        weight.assign(random.uniform(low, 1.0, weight.shape))
    tiny = write_package(tmp_path / "tiny", labels=LABELS)
    network.save(tiny.folder / WEIGHTS_NAME)
    inputs = random.random((9, 16, 16, 1), dtype=np.float32)

    result = loaded(replace(tiny, folder=repacked(tiny.folder))).predict(inputs)

    logits = np.array(network(inputs, training=False))
    np.testing.assert_allclose(result, 1 / (1 + np.exp(-logits)), atol=1e-5)
    assert np.ptp(result, axis=0).max() > 0.01


def test_description_names_what_computes(predictor):
    description = predictor.description

    assert description.model == "tiny@1.0.0"
    assert description.device == predictor.device == "CPU"
    assert description.runtime.startswith("keras 3.")
    assert description.precision == "float32"
    assert description.parameters == 6
    assert json.dumps(description.as_mapping())


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_network_that_computes_in_another_precision_is_said_to(tmp_path):
    # Given weights whose layers were saved to compute in bfloat16,
    tiny = write_package(tmp_path / "tiny", labels=LABELS)
    image = keras.Input((16, 16, 1))
    inner = keras.Sequential([keras.layers.GlobalAveragePooling2D(dtype="mixed_bfloat16")])
    keras.Model(image, keras.layers.Dense(3)(inner(image))).save(tiny.folder / WEIGHTS_NAME)

    predictor = loaded(replace(tiny, folder=repacked(tiny.folder)))

    assert predictor.description.precision == "bfloat16, float32"


def test_no_runtime_of_keras_rounds_float32_to_tensorfloat_32(tiny):
    tf.config.experimental.enable_tensor_float_32_execution(True)

    loaded(tiny)

    assert not tf.config.experimental.tensor_float_32_execution_enabled()


def test_predictor_of_keras_satisfies_the_port(predictor):
    port: Predictor = predictor

    assert port.predict(np.zeros((1, 16, 16, 1), np.float32)).shape == (1, 3)


def test_nothing_can_be_asked_before_loading(tiny):
    predictor = KerasPredictor(load_package(tiny.folder))

    assert predictor.device == ""
    with pytest.raises(RuntimeFault, match="not loaded yet"):
        predictor.predict(np.zeros((1, 16, 16, 1), np.float32))
    with pytest.raises(RuntimeFault, match="not loaded yet"):
        _ = predictor.description


@pytest.mark.parametrize(
    "batch",
    [
        np.zeros((1, 16, 16, 1), np.float64),
        np.zeros((1, 8, 16, 1), np.float32),
        np.zeros((16, 16, 1), np.float32),
    ],
)
def test_batch_of_another_shape_or_type_is_refused(predictor, batch):
    with pytest.raises(RuntimeFault, match="batch must be float32 with inputs of shape"):
        predictor.predict(batch)


def test_nan_in_the_input_ends_in_an_error_and_no_finding(predictor):
    values = np.full((2, 16, 16, 1), np.nan, np.float32)
    values[0] = 0.5

    with pytest.raises(UnusableOutput, match="1 of 2 predictions hold NaN"):
        predictor.predict(values)


def test_gpu_that_is_not_there_is_named(tiny):
    if tf.config.list_physical_devices("GPU"):
        pytest.skip("this machine has a GPU")

    with pytest.raises(RuntimeFault, match="gpu was asked for but TensorFlow finds none"):
        KerasPredictor(load_package(tiny.folder), device="gpu").load()
    with pytest.raises(RuntimeFault, match="must be one of auto, cpu, gpu"):
        KerasPredictor(load_package(tiny.folder), device="tpu")


class _Machine:
    """The part of TensorFlow that says which GPUs there are and whether they are looked at."""

    def __init__(self) -> None:
        self.config = self.experimental = self
        self.visible = ["GPU:0", "GPU:1"]
        self.growing: set[str] = set()

    def list_physical_devices(self, kind: str) -> list[str]:
        return [f"{kind}:0", f"{kind}:1"]

    def get_visible_devices(self, kind: str) -> list[str]:
        return [name for name in self.visible if name.startswith(kind)]

    def set_visible_devices(self, devices: list[str], kind: str) -> None:
        assert kind == "GPU"
        self.visible = list(devices)

    def get_memory_growth(self, device: str) -> bool:
        return device in self.growing

    def set_memory_growth(self, device: str, enable: bool) -> None:
        assert enable
        self.growing.add(device)

    def get_device_details(self, device: str) -> dict[str, str]:
        return {"device_name": f"a {device}"}


def chosen(tiny: TinyModel, device: str, machine: _Machine) -> str:
    return KerasPredictor(load_package(tiny.folder), device=device)._choose_device(machine)


def test_cpu_leaves_the_gpus_alone(tiny):
    machine = _Machine()

    assert chosen(tiny, "cpu", machine) == "CPU"

    assert machine.visible == []
    assert chosen(tiny, "auto", machine) == "CPU"


def test_cpu_in_the_stead_of_a_gpu_hides_it_from_nobody(tiny):
    machine = _Machine()

    assert chosen(tiny, "auto", machine) == "a GPU:0"
    assert chosen(tiny, "cpu", machine) == "CPU"

    assert chosen(tiny, "auto", machine) == "a GPU:0"
    assert machine.growing == {"GPU:0", "GPU:1"}


class _SmallDevice(KerasPredictor):
    """A device that holds batches up to a limit and answers as TensorFlow does beyond it."""

    limit = 8

    def _run(self, chunk):
        if len(chunk) > self.limit:
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
        return super()._run(chunk)


def test_batch_that_does_not_fit_the_device_is_computed_in_smaller_ones(tiny):
    predictor = _SmallDevice(load_package(tiny.folder), device="cpu")
    predictor.load()
    values = np.random.default_rng(3).random((40, 16, 16, 1), dtype=np.float32)

    result = predictor.predict(values)

    np.testing.assert_allclose(result, [tiny.expected(v) for v in values], atol=1e-5)
    assert predictor.batch_sizes == (1, 8)


def test_device_that_holds_nothing_at_all_is_a_retryable_error(tiny):
    predictor = _SmallDevice(load_package(tiny.folder), device="cpu")
    predictor.load()
    predictor.limit = 0

    with pytest.raises(DeviceOutOfMemory, match="no memory for a batch of 1") as caught:
        predictor.predict(np.zeros((2, 16, 16, 1), np.float32))
    assert caught.value.retryable


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        (
            {"output": {"size": 4}},
            "size is 4 for the labels Bright, Dark, Dim; the network gives (3,)",
        ),
        ({"input": {"rows": 20}}, "makes tensors of (20, 16, 1), the network takes (16, 16, 1)"),
    ],
)
def test_manifest_that_lies_about_shapes_is_refused(tmp_path, changes, fault):
    if "input" in changes:
        table = {"kind": "image", "rows": 20, "columns": 16, "intensity": {"kind": "percentile"}}
        changes = {**changes, "preprocessing_digest": TensorRecipe.from_mapping(table).digest}
    model = write_package(tmp_path / "p", labels=LABELS, changes=changes)

    assert fault in fault_of(model.folder)


@pytest.mark.parametrize("claimed", ["logit", "softmax"])
def test_network_that_squashes_its_output_already_is_refused(tmp_path, claimed):
    model = write_package(
        tmp_path / "p", labels=LABELS, output="probability", changes={"output": {"kind": claimed}}
    )

    assert "the last layer applies sigmoid already: the kind is probability" in fault_of(
        model.folder
    )


def two(values: Any, activation: str | None = None) -> Any:
    return keras.layers.Dense(2, activation=activation)(values)


def member() -> keras.Model:
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, activation="softmax")])


@pytest.mark.parametrize(
    ("end", "found"),
    [
        (lambda v: keras.layers.Softmax()(two(v)), "Softmax"),
        (lambda v: keras.ops.sigmoid(two(v)), "Sigmoid"),
        (member(), "softmax"),
        (lambda v: keras.layers.Average()([member()(v), member()(v)]), "softmax"),
        (lambda v: keras.layers.Activation("linear")(two(v, "sigmoid")), "sigmoid"),
        (lambda v: keras.layers.Reshape((2,))(keras.layers.Softmax()(two(v))), "Softmax"),
        (lambda v: keras.layers.Concatenate()([two(v, "sigmoid"), two(v)]), ""),
        (lambda v: keras.layers.Average()([two(v), two(v)]), "linear"),
        (lambda v: two(keras.ops.sigmoid(v)), "linear"),
    ],
    ids=["layer", "operation", "network", "networks", "behind linear", "reshaped", "mixed",
         "linear", "before"],
)  # fmt: skip
def test_what_squashes_the_output_is_found_in_whatever_form(end, found):
    values = keras.Input((4,))

    assert last_operation(keras.Model(values, end(values))) == found


def test_truncated_weights_are_named_as_such(tmp_path):
    model = write_package(tmp_path / "p")
    weights = model.folder / WEIGHTS_NAME
    weights.write_bytes(weights.read_bytes()[:-200])

    fault = fault_of(repacked(model.folder))

    assert "the file is truncated or damaged" in fault
    assert "copy the package again" in fault


def test_weights_with_a_flipped_byte_inside_are_named_as_damaged(tmp_path):
    model = write_package(tmp_path / "p")
    weights = model.folder / WEIGHTS_NAME
    content = bytearray(weights.read_bytes())
    content[content.index(b"model.weights.h5") + 400] ^= 0xFF
    weights.write_bytes(content)

    assert "damaged" in fault_of(repacked(model.folder))


def test_hdf5_weights_of_old_keras_are_named_as_too_old(tmp_path):
    model = write_package(tmp_path / "p")
    (model.folder / WEIGHTS_NAME).write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))

    assert "too old to be read safely" in fault_of(repacked(model.folder))


@pytest.mark.parametrize("content", [b"", b"torch", b"<html>not found</html>"])
def test_file_that_is_no_archive_is_named_as_no_keras_model(tmp_path, content):
    model = write_package(tmp_path / "p", weights=content)

    assert "is not a Keras model" in fault_of(model.folder)


def zip_of(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("members", "fault"),
    [
        ({"readme.txt": b""}, "it lacks metadata.json, config.json, model.weights.h5"),
        ({"metadata.json": b'{"keras_version": "2.15.0"}'}, "saved by Keras 2.15.0, too old"),
        ({"metadata.json": b"[]"}, "does not name the Keras version"),
        ({"metadata.json": b'{"keras_version": "3.0.0"}'}, "cannot load it"),
    ],
)
def test_archive_that_is_no_sound_keras_model_says_why(tmp_path, members, fault):
    whole = {"config.json": b"{}", "model.weights.h5": b"", **members}
    content = zip_of(members if "readme.txt" in members else whole)
    model = write_package(tmp_path / "p", weights=content)

    assert fault in fault_of(model.folder)


@pytest.mark.filterwarnings("ignore")
def test_code_in_a_weights_file_is_never_run(tmp_path):
    # Given a network whose Lambda layer would write a file when it is loaded or called,
    model = write_package(tmp_path / "p")
    trace = tmp_path / "trace"
    image = keras.Input((16, 16, 1))
    evil = keras.layers.Lambda(
        eval(f"lambda x: (open({str(trace)!r}, 'w').close(), x[:, 0, 0, :])[1]"),
        output_shape=(1,),
    )
    keras.Model(image, evil(image)).save(model.folder / WEIGHTS_NAME)
    trace.unlink(missing_ok=True)

    # when the package is loaded,
    fault = fault_of(repacked(model.folder))

    # then it is refused for holding code, and the code did not run.
    assert "it holds code (a Lambda layer), which is never run" in fault
    assert not trace.exists()


def test_sound_package_passes_the_trial_in_its_own_process(tiny):
    report = check_package(tiny.folder, device="cpu")

    assert report.faults == ()
    assert report.passed
    assert (report.model, report.device) == ("tiny@1.0.0", "CPU")
    np.testing.assert_allclose(report.probabilities[1], tiny.expected(np.ones((16, 16, 1))), 1e-5)
    assert json.loads(json.dumps(report.as_mapping()))["passed"] is True


def test_broken_manifest_is_the_trials_answer_and_not_an_exception(tmp_path):
    (tmp_path / "empty").mkdir()

    report = check_package(tmp_path / "empty")

    assert report.faults == ("manifest.toml: cannot be read: No such file or directory",)


def test_trial_that_takes_too_long_is_ended_with_a_sentence(tiny):
    report = check_package(tiny.folder, timeout_seconds=0.05)

    assert report.faults == ("gave no answer within 0.05 s",)


def test_weights_that_give_nan_fail_the_trial(tmp_path):
    label = TinyLabel("Broken", float("nan"), 0.0, ("TINY-9", "99MEDIMGD", "Broken"))
    model = write_package(tmp_path / "p", labels=(label,))

    report = try_package(model.folder, "cpu")

    assert "hold NaN or infinity" in report.faults[0]


def test_loading_says_nothing_on_standard_error(tiny):
    done = subprocess.run(
        [sys.executable, "-m", "model.runtimes.check", str(tiny.folder), "cpu"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )

    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1
