"""A network on a server: the same answers by every way, and every way a server can fail."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.errors import RemoteUnavailable, RuntimeFault, UnusableOutput
from model.manifest_writing import write_manifest
from model.package import load_package
from model.package_files import sha256_of
from model.probes import write_probes
from model.runtimes.check import check_package
from model.runtimes.opening import RuntimeOptions, open_predictor
from model.runtimes.remote.access import RemoteAccess
from model.runtimes.remote_runtime import RemotePredictor
from tests.certificates import Identity, openssl
from tests.inference_server import (
    InferenceServer,
    Misbehaviour,
    Request,
    ServedNetwork,
    grpc_server,
    http_server,
    infer_over_http,
)
from tests.tiny_models import BRIGHT, DARK, TinyModel, write_package

LABELS = (BRIGHT, DARK)
SOME = np.random.default_rng(3).random((11, 16, 16, 1), dtype=np.float32)

Changed = Callable[[bytes], bytes]


def compute(values: np.ndarray) -> np.ndarray:
    """Compute the raw outputs of the tiny network."""
    means = values.reshape(len(values), -1).mean(axis=1, keepdims=True)
    return means * [[each.weight for each in LABELS]] + [[each.bias for each in LABELS]]


NETWORK = ServedNetwork(compute, (16, 16, 1), len(LABELS))


def remote_package(folder: Path, url: str = "", **changes: object) -> TinyModel:
    remote = {"model": "tiny", "version": "1", **({"url": url} if url else {})}
    weights = {"runtime": "remote", "sha256": "a" * 64, "file": None}
    told = {"weights": {**weights, **changes.pop("weights", {})}}
    remote |= changes.pop("remote", {})
    return write_package(
        folder, labels=LABELS, weights=b"", changes={**told, "remote": remote}, **changes
    )


def predictor_of(
    folder: Path, server: InferenceServer, access: RemoteAccess | None = None, **changes: object
) -> RemotePredictor:
    model = remote_package(folder / "p", server.url, **changes)
    predictor = open_predictor(
        load_package(model.folder), RuntimeOptions(remotes={"tiny": access} if access else {})
    )
    assert isinstance(predictor, RemotePredictor)
    return predictor


def loaded(folder: Path, server: InferenceServer, **access: object) -> RemotePredictor:
    predictor = predictor_of(folder, server, RemoteAccess(timeout_seconds=5, **access))  # type: ignore[arg-type]
    predictor.load()
    return predictor


@pytest.fixture
def server() -> Iterator[InferenceServer]:
    with http_server(replace(NETWORK)) as running:
        yield running


def expected(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-compute(values.astype(np.float64))))


@pytest.mark.parametrize("way", ["json", "binary", "grpc", "grpc typed"])
def test_answers_are_the_same_by_every_way(tmp_path, way):
    # Given a server, and more inputs than it is sent at once,
    opened = {
        "json": lambda: http_server(NETWORK),
        "binary": lambda: http_server(NETWORK, binary=True),
        "grpc": lambda: grpc_server(NETWORK),
        "grpc typed": lambda: grpc_server(NETWORK, raw=False),
    }
    with opened[way]() as server:
        predictor = loaded(tmp_path, server)
        predictor.warm_up()

        # when they are computed there,
        result = predictor.predict(SOME)

        # then the probabilities are those that numpy computes here.
        np.testing.assert_allclose(result, expected(SOME), atol=1e-6)
        assert predictor.predict(SOME[:0]).shape == (0, 2)
        assert predictor.device == server.url
        words = {"json": "http, JSON", "binary": "http, binary tensors"}.get(way, "grpc")
        assert predictor.description.runtime.endswith(f"Open Inference Protocol 2 over {words}")
        predictor.close()


@pytest.mark.parametrize("binary", [False, True])
def test_request_holds_the_tensor_and_names_of_the_model_and_nothing_else(tmp_path, binary):
    with http_server(NETWORK, binary=binary) as server:
        loaded(tmp_path, server).predict(SOME[:2])

    request = server.requests[-1]
    end = int(request.headers.get("Inference-Header-Content-Length", len(request.body)))
    asked = json.loads(request.body[:end])
    assert set(asked) == {"inputs", "outputs"}
    assert set(asked["inputs"][0]) <= {"name", "shape", "datatype", "data", "parameters"}
    assert asked["inputs"][0]["shape"] == [2, 16, 16, 1]
    sent = {name.title() for name in request.headers}
    assert sent - {"Inference-Header-Content-Length"} == {
        "Host", "Accept", "Accept-Encoding", "Content-Length", "Content-Type",
    }  # fmt: skip


def test_connection_is_kept_and_opened_again_when_the_server_closed_it(tmp_path, server):
    predictor = loaded(tmp_path, server)
    predictor.predict(SOME[:3])
    assert server.connections == 1
    hung_up: list[bool] = []

    def hang_up_once(request: Request) -> Misbehaviour | None:
        hung_up.append(len(hung_up) == 0)
        return Misbehaviour(hang_up=True) if hung_up[-1] else None

    server.misbehave = hang_up_once
    np.testing.assert_allclose(predictor.predict(SOME[:1]), expected(SOME[:1]), atol=1e-6)
    assert (server.connections, hung_up) == (2, [True, False])


def test_site_decides_where_the_server_is(tmp_path, server):
    model = remote_package(tmp_path / "p", "http://203.0.113.1:1")
    access = RemoteAccess(server.url)
    package = load_package(model.folder)

    for key in ("tiny", "tiny@1.0.0"):
        predictor = open_predictor(package, RuntimeOptions(remotes={key: access}))
        predictor.load()
        assert predictor.device == server.url


def test_package_without_an_address_needs_one_from_the_site(tmp_path):
    model = remote_package(tmp_path / "p")

    with pytest.raises(RuntimeFault, match=r"set url in a block of models\.remote"):
        open_predictor(load_package(model.folder))


def test_server_with_a_fixed_batch_gets_padded_ones(tmp_path):
    with http_server(replace(NETWORK, batch=4)) as server:
        predictor = loaded(tmp_path, server)

        result = predictor.predict(SOME)

    np.testing.assert_allclose(result, expected(SOME), atol=1e-6)
    assert predictor.batch_sizes == (4,)


def test_server_that_names_no_inputs_needs_the_name_from_the_manifest(tmp_path):
    with http_server(replace(NETWORK, tells=False)) as server:
        with pytest.raises(RuntimeFault, match="name it as input in \\[weights\\]"):
            predictor_of(tmp_path / "a", server).load()
        predictor = predictor_of(tmp_path / "b", server, weights={"input": "image"})
        predictor.load()

        np.testing.assert_allclose(predictor.predict(SOME), expected(SOME), atol=1e-6)


@pytest.mark.parametrize("way", [http_server, grpc_server])
@pytest.mark.parametrize(
    ("network", "fault"),
    [
        ({"shape": (20, 16, 1)}, "the network takes (20, 16, 1)"),
        ({"shape": (1, 16, 16)}, 'with layout = "channels-first" in [weights] they would agree'),
        ({"outputs": 3}, "size is 2 for the labels Bright, Dark; the network gives (3,)"),
    ],
)
def test_server_with_another_network_is_refused_when_loading(tmp_path, way, network, fault):
    with way(replace(NETWORK, **network)) as server, pytest.raises(RuntimeFault) as caught:
        loaded(tmp_path, server)

    assert fault in str(caught.value)


@pytest.mark.parametrize("way", [http_server, grpc_server])
def test_model_that_is_not_ready_is_worth_another_try(tmp_path, way):
    with way(replace(NETWORK, ready=False)) as server, pytest.raises(RemoteUnavailable):
        loaded(tmp_path, server)


def test_model_that_the_server_does_not_have_is_worth_another_try(tmp_path, server):
    predictor = predictor_of(tmp_path, server, remote={"model": "other"})

    with pytest.raises(RemoteUnavailable, match=r"answers 404 \(no such model\)"):
        predictor.load()


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_server_that_is_not_there_is_worth_another_try(tmp_path, scheme, free_port):
    url = f"{scheme}://127.0.0.1:{free_port}"
    model = remote_package(tmp_path / "p", url)
    predictor = RemotePredictor(load_package(model.folder), RemoteAccess(timeout_seconds=5))

    with pytest.raises(RemoteUnavailable, match=r"127\.0\.0\.1"):
        predictor.load()


@pytest.mark.parametrize("status", [404, 408, 429, 500, 502, 503, 504])
def test_busy_or_broken_server_is_worth_another_try(tmp_path, server, status):
    predictor = loaded(tmp_path, server)
    server.misbehave = lambda _: Misbehaviour(status, b'{"error": "not now\\u0007"}')

    with pytest.raises(RemoteUnavailable, match=rf"answers {status} \(not now\)"):
        predictor.predict(SOME[:1])
    server.misbehave = lambda _: None
    assert predictor.predict(SOME[:1]).shape == (1, 2)


@pytest.mark.parametrize(
    ("status", "fault"),
    [
        (400, "it refuses the tensor; compare the manifest with the model"),
        (413, "it refuses the tensor"),
        (302, "redirections are not followed"),
    ],
)
def test_refusal_is_not_worth_another_try(tmp_path, server, status, fault):
    predictor = loaded(tmp_path, server)
    server.misbehave = lambda _: Misbehaviour(status, b"<html>", {"Location": "http://x/"})

    with pytest.raises(RuntimeFault, match=fault):
        predictor.predict(SOME[:1])


@pytest.mark.parametrize(
    ("status", "error"),
    [
        ("UNAVAILABLE", RemoteUnavailable),
        ("NOT_FOUND", RemoteUnavailable),
        ("INTERNAL", RemoteUnavailable),
        ("UNAUTHENTICATED", RemoteUnavailable),
        ("RESOURCE_EXHAUSTED", RemoteUnavailable),
        ("INVALID_ARGUMENT", RuntimeFault),
        ("UNIMPLEMENTED", RuntimeFault),
    ],
)
def test_statuses_of_grpc_mean_the_same(tmp_path, status, error):
    with grpc_server(NETWORK) as server:
        predictor = loaded(tmp_path, server)
        server.misbehave = lambda _: Misbehaviour(body=status.encode())

        with pytest.raises(error, match=f"ModelInfer: answers {status} \\(told to fail\\)"):
            predictor.predict(SOME[:1])
        server.misbehave = lambda _: None
        assert predictor.predict(SOME[:1]).shape == (1, 2)
        predictor.close()


@pytest.mark.parametrize("way", [http_server, grpc_server])
def test_server_that_is_silent_is_given_up_after_the_time_out(tmp_path, way):
    with way(NETWORK) as server:
        predictor = predictor_of(tmp_path, server, RemoteAccess(timeout_seconds=0.3))
        predictor.load()
        server.misbehave = lambda _: Misbehaviour(503, b"UNAVAILABLE", delay_seconds=0.8)

        with pytest.raises(RemoteUnavailable, match=r"gave no answer within 0\.3 s"):
            predictor.predict(SOME[:1])
        predictor.close()


def test_server_that_dribbles_its_answer_is_given_up_after_the_time_out(tmp_path):
    # Given a server that sends a byte now and then, each within the time-out,
    with socket.create_server(("127.0.0.1", 0)) as listener:
        predictor = RemotePredictor(
            load_package(
                remote_package(
                    tmp_path / "p", f"http://127.0.0.1:{listener.getsockname()[1]}"
                ).folder
            ),
            RemoteAccess(timeout_seconds=0.4),
        )
        dribble(listener)

        # then it is given up all the same.
        with pytest.raises(RemoteUnavailable, match=r"gave no answer within 0\.4 s"):
            predictor.load()


def dribble(listener: socket.socket) -> None:
    def run() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
            for _ in range(12):
                time.sleep(0.1)
                try:
                    connection.sendall(b" ")
                except OSError:
                    return

    threading.Thread(target=run, daemon=True).start()


def answer(**changes: object) -> bytes:
    output = {"name": "scores", "datatype": "FP32", "shape": [1, 2], "data": [0.5, 0.5]}
    output |= changes.pop("output", {})
    whole = {"model_name": "tiny", "model_version": "1", "outputs": [output], **changes}
    return json.dumps(whole).encode()


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (b"", "something that is no JSON"),
        (b"<html>maintenance</html>", "something that is no JSON"),
        (b"[" * 100_000, "something that is no JSON"),
        (b"[]", "JSON that is no object"),
        (b"{}", "must answer with the output scores, it answers with none"),
        (b'{"outputs": 5}', "outputs must be a list of objects"),
        (answer(output={"name": "other"}), "the output scores, it answers with other"),
        (answer(output={"datatype": "INT64"}), "must be FP32, received INT64"),
        (answer(output={"shape": [2]}), r"shape \(1, 2\), received \(2,\)"),
        (answer(output={"shape": [1, 3]}), r"3 numbers for an output of shape \(1, 3\)"),
        (answer(output={"shape": "1, 2"}), "a shape must be a list of whole numbers"),
        (answer(output={"shape": [-1, 2]}), "shape must hold whole numbers"),
        (answer(output={"data": ["a", "b"]}), "must hold 2 numbers"),
        (answer(output={"data": [[1], [2, 3]]}), "no table of numbers"),
        (answer(output={"data": [None, 1]}), "must hold 2 numbers"),
        (answer(model_version="2"), "was asked for tiny 1 and answers for tiny 2"),
        (answer(model_name="other"), "was asked for tiny 1 and answers for other 1"),
    ],
)
def test_answer_that_is_none_is_never_a_finding(tmp_path, server, body, fault):
    predictor = loaded(tmp_path, server)
    server.misbehave = lambda _: Misbehaviour(body=body)

    with pytest.raises(RuntimeFault, match=fault):
        predictor.predict(SOME[:1])


@pytest.mark.parametrize("length", ["-1", "9999", "x"])
def test_wrong_length_of_the_header_is_named(tmp_path, length):
    with http_server(NETWORK, binary=True) as server:
        predictor = loaded(tmp_path, server)
        headers = {"Inference-Header-Content-Length": length}
        server.misbehave = lambda _: Misbehaviour(body=answer(), headers=headers)

        with pytest.raises(RuntimeFault, match="Inference-Header-Content-Length is wrong"):
            predictor.predict(SOME[:1])


def test_too_few_bytes_of_a_binary_answer_are_named(tmp_path):
    told = {"name": "scores", "datatype": "FP32", "shape": [1, 2]}
    header = json.dumps({"outputs": [{**told, "parameters": {"binary_data_size": 8}}]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(header))}
    with http_server(NETWORK, binary=True) as server:
        predictor = loaded(tmp_path, server)
        server.misbehave = lambda _: Misbehaviour(body=header + b"\0" * 7, headers=headers)

        with pytest.raises(RuntimeFault, match="7 bytes for an output of shape"):
            predictor.predict(SOME[:1])


def test_answer_cut_short_is_worth_another_try(tmp_path, server):
    predictor = loaded(tmp_path, server)
    server.misbehave = lambda _: Misbehaviour(
        body=b"{", headers={"Content-Length": "50", "Connection": "close"}
    )

    with pytest.raises(RemoteUnavailable):
        predictor.predict(SOME[:1])


@pytest.mark.parametrize("kept", [-9, 3, 0, None])
def test_answer_that_states_no_length_is_asked_for_again_when_cut(tmp_path, kept):
    with http_server(NETWORK, binary=True) as server:
        predictor = loaded(tmp_path, server)
        expected = predictor.predict(SOME[:1])
        right = infer_over_http(NETWORK, server.requests[-1])
        server.misbehave = lambda _: Misbehaviour(
            body=right[1][:kept], headers=right[2], states_length=False
        )

        if kept is None:
            assert np.array_equal(predictor.predict(SOME[:1]), expected)
        else:
            with pytest.raises(RemoteUnavailable, match="seems cut short"):
                predictor.predict(SOME[:1])


def test_whole_answer_that_states_no_length_is_taken_at_its_word(tmp_path, server):
    predictor = loaded(tmp_path, server)
    server.misbehave = lambda _: Misbehaviour(body=b'{"outputs": []}', states_length=False)

    with pytest.raises(RuntimeFault, match="must answer with the output"):
        predictor.predict(SOME[:1])


@pytest.mark.parametrize("way", ["json", "binary", "grpc"])
def test_nan_from_a_server_names_the_inputs_at_fault(tmp_path, way):
    def broken(values: np.ndarray) -> np.ndarray:
        outputs = compute(values)
        outputs[values.reshape(len(values), -1)[:, 0] == 0] = np.nan
        return outputs

    network = replace(NETWORK, compute=broken)
    opened = grpc_server(network) if way == "grpc" else http_server(network, binary=way == "binary")
    values = SOME[:4].copy()
    values[2, 0, 0, 0] = 0
    with opened as server:
        predictor = loaded(tmp_path, server)
        with pytest.raises(UnusableOutput) as caught:
            predictor.predict(values)
        predictor.close()

    assert caught.value.rows == (2,)


def test_token_is_read_for_each_request_and_asked_for_when_it_is_wrong(tmp_path):
    # Given a server that wants a token, and a site whose file holds the old one,
    token_file = tmp_path / "token"
    token_file.write_text("old\n")
    with http_server(NETWORK, token="new") as server:
        predictor = predictor_of(tmp_path, server, RemoteAccess(token_file=token_file))
        with pytest.raises(RemoteUnavailable, match="valid token: put one into token_file"):
            predictor.load()

        # when the right one is put there, work goes on.
        token_file.write_text("new\n")
        predictor.load()
        assert predictor.predict(SOME[:1]).shape == (1, 2)

        token_file.write_text("two words")
        with pytest.raises(RemoteUnavailable, match="must hold one token in one line"):
            predictor.predict(SOME[:1])
        token_file.unlink()
        with pytest.raises(RemoteUnavailable, match="cannot be read: No such file"):
            predictor.predict(SOME[:1])


def test_token_never_crosses_a_network_readable(tmp_path):
    model = remote_package(tmp_path / "p", "http://gpu.hospital:8000")

    with pytest.raises(RuntimeFault, match="the token would cross the network readable"):
        RemotePredictor(load_package(model.folder), RemoteAccess(token_file=tmp_path / "t"))


def test_server_with_tls_is_trusted_by_the_named_authority_only(tmp_path):
    identity = Identity(tmp_path / "server.pem", tmp_path / "server.key")
    openssl(
        "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
        "-keyout", identity.key, "-out", identity.certificate, "-subj", "/CN=gpu1", "-days", "9",
        "-addext", "subjectAltName=IP:127.0.0.1",
    )  # fmt: skip
    with http_server(NETWORK, identity=identity) as server:
        trusting = loaded(tmp_path / "a", server, ca_file=identity.certificate)
        assert trusting.predict(SOME[:1]).shape == (1, 2)
        trusting.close()

        with pytest.raises(RemoteUnavailable, match=r"certificate is not trusted .*ca_file"):
            loaded(tmp_path / "b", server)


def test_files_of_authorities_that_cannot_be_used_are_named(tmp_path):
    package = load_package(remote_package(tmp_path / "p", "https://127.0.0.1:1").folder)
    empty = tmp_path / "empty.pem"
    empty.touch()

    with pytest.raises(RuntimeFault, match="there is no file"):
        RemotePredictor(package, RemoteAccess(ca_file=tmp_path / "absent"))
    with pytest.raises(RuntimeFault, match="holds no usable certificate"):
        RemotePredictor(package, RemoteAccess(ca_file=empty)).load()
    with pytest.raises(RuntimeFault, match="ca_file means nothing without TLS"):
        RemotePredictor(package, RemoteAccess("http://127.0.0.1:1", ca_file=empty))


@pytest.mark.parametrize("bias", [0.0, 0.1])
def test_server_has_to_reproduce_the_recorded_scores_before_it_serves(tmp_path, bias):
    # Given a package with a probe and its scores, and a server with these or other weights,
    folder = tmp_path / "p"
    model = remote_package(folder, "http://127.0.0.1:1")
    (probe,) = write_probes(folder / "probes.npz", [SOME[0]])
    plain = tomllib.loads((folder / "manifest.toml").read_text())
    plain["probes"] = {
        "file": "probes.npz", "sha256": sha256_of(folder / "probes.npz"), "tolerance": 1e-3,
        "scores": [[float(value) for value in model.expected(probe)]],
    }  # fmt: skip
    write_manifest(folder, plain)
    package = load_package(folder)

    with http_server(replace(NETWORK, compute=lambda values: compute(values) + bias)) as server:
        predictor = RemotePredictor(package, RemoteAccess(server.url))

        # then it serves only with the weights that the package is about.
        if not bias:
            predictor.load()
            assert predictor.predict(SOME).shape == (11, 2)
            return
        with pytest.raises(RuntimeFault, match="it serves other weights under this name"):
            predictor.load()
        with pytest.raises(RuntimeFault, match="is not loaded yet"):
            predictor.predict(SOME)


def test_missing_grpc_says_which_extra_to_install(tmp_path, monkeypatch):
    model = remote_package(tmp_path / "p", "grpc://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "grpc", None)

    with pytest.raises(RuntimeFault, match=r"pip install 'medimgd\[grpc\]'"):
        RemotePredictor(load_package(model.folder)).load()


def test_trial_of_a_remote_package_asks_the_sites_server(tmp_path, server):
    model = remote_package(tmp_path / "p")

    report = check_package(model.folder, remotes={"tiny": RemoteAccess(server.url)})

    assert report.faults == ()
    np.testing.assert_allclose(report.probabilities[1], expected(np.ones((1, 16, 16, 1)))[0], 1e-5)
    absent = check_package(model.folder, remotes={"tiny": RemoteAccess("http://127.0.0.1:1")})
    assert "cannot be reached" in absent.faults[0]
