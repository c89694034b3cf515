"""What a manifest may say of its runtime, and what is refused with a sentence."""

from __future__ import annotations

import numpy as np
import pytest

from model.errors import PackageFault
from model.manifest import MANIFEST_NAME
from model.package import load_package
from model.runtime_plan import LayoutValues, RuntimeValues, url_fault
from model.runtimes.signature import laid_out
from tests.tiny_models import write_package

REMOTE = {"runtime": "remote", "sha256": "a" * 64, "file": None}


def faults_of(tmp_path, changes):
    model = write_package(tmp_path / "p", weights=b"x", changes=changes)
    with pytest.raises(PackageFault) as caught:
        load_package(model.folder)
    return str(caught.value)


def test_keras_is_meant_where_nothing_is_said(tmp_path):
    plan = load_package(write_package(tmp_path / "p", weights=b"x").folder).runtime

    assert (plan.kind, plan.layout) == (RuntimeValues.KERAS, LayoutValues.CHANNELS_LAST)
    assert (plan.input_name, plan.output_name) == ("", "")


def test_remote_package_needs_no_weights_but_their_digest(tmp_path):
    remote = {"url": "https://gpu1:8000/base", "model": "cxr", "version": "3", "largest_batch": 16}
    changes = {"weights": {**REMOTE, "layout": "channels-first"}, "remote": remote}

    package = load_package(write_package(tmp_path / "p", weights=b"", changes=changes).folder)

    assert package.identity.weights_sha256 == "a" * 64
    assert package.weights_path.name == MANIFEST_NAME
    assert package.runtime.layout is LayoutValues.CHANNELS_FIRST
    found = package.runtime.remote
    assert (found.url, found.model) == ("https://gpu1:8000/base", "cxr")
    assert (found.version, found.largest_batch) == ("3", 16)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"weights": {"runtime": "torch"}}, "must be one of keras, onnx, openvino, remote"),
        ({"weights": {"layout": "channels-first"}}, "weights.layout: means nothing to Keras"),
        ({"weights": {"input": "x"}}, "weights.input: means nothing to Keras"),
        ({"weights": {"runtime": "onnx", "layout": "NCHW"}}, "weights.layout: must be one of"),
        ({"weights": {"runtime": "onnx", "output": ""}}, "weights.output: must be one line"),
        ({"remote": {"model": "x"}}, 'remote: means nothing without weights.runtime = "remote"'),
        ({"weights": REMOTE}, "remote: must be a table; received nothing"),
        ({"weights": REMOTE, "remote": {}}, "remote.model: must be letters, digits"),
        ({"weights": REMOTE, "remote": {"model": "../x"}}, "remote.model: must be letters"),
        ({"weights": REMOTE, "remote": {"model": "x", "url": "ftp://x"}}, "remote.url: must be sc"),
        ({"weights": REMOTE, "remote": {"model": "x", "token": "t"}}, "remote.token: unknown"),
        ({"weights": REMOTE, "remote": {"model": "x", "largest_batch": 0}}, "whole number between"),
        (
            {"weights": {**REMOTE, "sha256": "x"}, "remote": {"model": "x"}},
            "the weights the server",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, changes, fault):
    assert fault in faults_of(tmp_path, changes)


@pytest.mark.parametrize(
    "url",
    ["http://h", "https://h:1", "http://[::1]:8000", "grpc://h:1", "grpcs://h:1/", "http://h/x"],
)
def test_addresses_that_can_be_meant(url):
    assert url_fault(url) == ""


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("h:8000", "must be scheme://host:port"),
        ("http://", "must be scheme://host:port"),
        ("http://h:99999", "must be scheme://host:port"),
        ("http://user:secret@h", "must hold no user and no password"),
        ("http://h/?x=1", "must hold no query"),
        ("grpc://h", "with a port and without a path"),
        ("grpc://h:1/x", "with a port and without a path"),
    ],
)
def test_addresses_that_cannot(url, fault):
    assert fault in url_fault(url)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3, 4, 5, 6)])
def test_channels_are_moved_to_the_front_and_nothing_is_mixed(shape):
    batch = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)

    moved = laid_out(batch, LayoutValues.CHANNELS_FIRST)

    assert moved.shape == (2, shape[-1], *shape[1:-1])
    assert moved.flags.c_contiguous
    for channel in range(shape[-1]):
        np.testing.assert_array_equal(moved[:, channel], batch[..., channel])
    np.testing.assert_array_equal(laid_out(batch, LayoutValues.CHANNELS_LAST), batch)
