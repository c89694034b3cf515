"""A package computed by a real MLServer, over HTTP and over gRPC."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from model.errors import RemoteUnavailable
from model.package import load_package
from model.runtimes.opening import RuntimeOptions, open_predictor
from model.runtimes.port import Predictor
from model.runtimes.remote.access import RemoteAccess
from tests.mlserver_peer import MLServerPeer, running_mlserver
from tests.tiny_models import BRIGHT, DARK, write_package

LABELS = (BRIGHT, DARK)
SHAPE = (16, 16, 1)
SOME = np.random.default_rng(3).random((11, *SHAPE), dtype=np.float32)


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLServerPeer]:
    weights = [each.weight for each in LABELS]
    biases = [each.bias for each in LABELS]
    with running_mlserver(tmp_path_factory.mktemp("mlserver"), SHAPE, weights, biases) as peer:
        yield peer


def address(peer: MLServerPeer, scheme: str) -> str:
    return f"{scheme}://127.0.0.1:{peer.grpc_port if scheme == 'grpc' else peer.http_port}"


def predictor_at(folder: Path, url: str, model: str = "tiny", version: str = "1") -> Predictor:
    remote = {"model": model, "version": version, "url": url}
    weights = {"runtime": "remote", "sha256": "a" * 64, "file": None}
    package = write_package(
        folder / "p", labels=LABELS, weights=b"", changes={"weights": weights, "remote": remote}
    )
    options = RuntimeOptions(remotes={"tiny": RemoteAccess(timeout_seconds=10)})
    return open_predictor(load_package(package.folder), options)


def expected(values: np.ndarray) -> np.ndarray:
    means = values.reshape(len(values), -1).astype(np.float64).mean(axis=1, keepdims=True)
    raw = means * [[each.weight for each in LABELS]] + [[each.bias for each in LABELS]]
    return 1 / (1 + np.exp(-raw))


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_it_answers_as_numpy_does_here(tmp_path: Path, peer: MLServerPeer, scheme: str) -> None:
    predictor = predictor_at(tmp_path, address(peer, scheme))
    predictor.load()
    predictor.warm_up()

    one_by_one = np.concatenate([predictor.predict(SOME[n : n + 1]) for n in range(3)])

    np.testing.assert_allclose(predictor.predict(SOME), expected(SOME), atol=1e-6)
    np.testing.assert_allclose(one_by_one, expected(SOME[:3]), atol=1e-6)


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_model_it_does_not_have_is_worth_another_try(
    tmp_path: Path, peer: MLServerPeer, scheme: str
) -> None:
    predictor = predictor_at(tmp_path, address(peer, scheme), model="other")

    with pytest.raises(RemoteUnavailable, match="other"):
        predictor.load()


def test_a_version_it_does_not_have_is_not_taken_for_the_one_it_has(
    tmp_path: Path, peer: MLServerPeer
) -> None:
    predictor = predictor_at(tmp_path, address(peer, "http"), version="7")

    with pytest.raises(RemoteUnavailable, match="7"):
        predictor.load()
