"""What computes a package and how it is spoken to: the runtime's part of a manifest.

Owns those fields of ``[weights]`` and the table ``[remote]``. Knows no runtime.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from urllib.parse import urlsplit

from model.manifest import ManifestTable

DEFAULT_LARGEST_BATCH = 8
"""What servers are configured for as a rule, and what a worker claims at once by default."""

MOST_IN_A_BATCH = 256


class RuntimeValues(StrEnum):
    """What computes."""

    KERAS = "keras"
    """A ``.keras`` file, on TensorFlow."""
    ONNX = "onnx"
    """An ONNX file, on ONNX Runtime."""
    OPENVINO = "openvino"
    """An ONNX file, compiled by OpenVINO for the CPU."""
    REMOTE = "remote"
    """A server that speaks the Open Inference Protocol v2; the package may hold no weights."""


class LayoutValues(StrEnum):
    """Where a network expects the channels; packages from PyTorch have them first."""

    CHANNELS_LAST = "channels-last"
    CHANNELS_FIRST = "channels-first"


class SchemeValues(StrEnum):
    """How a remote server is reached: the scheme of its address."""

    HTTP = "http"
    HTTPS = "https"
    GRPC = "grpc"
    GRPCS = "grpcs"
    """gRPC through TLS."""

    @property
    def is_encrypted(self) -> bool:
        """True when nobody on the way can read along."""
        return self in (SchemeValues.HTTPS, SchemeValues.GRPCS)

    @property
    def is_grpc(self) -> bool:
        """True for gRPC, false for HTTP."""
        return self in (SchemeValues.GRPC, SchemeValues.GRPCS)


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """Where a model is served, as the package states it; the site may name another place."""

    url: str = ""
    """``scheme://host:port``, without a path as a rule; empty leaves it to the site."""
    model: str = ""
    """The model's name at the server."""
    version: str = ""
    """The version at the server; empty takes the one the server serves by itself."""
    largest_batch: int = DEFAULT_LARGEST_BATCH
    """Inputs of one request."""


@dataclass(frozen=True, slots=True)
class RuntimePlan:
    """What computes, and how it is spoken to."""

    kind: RuntimeValues = RuntimeValues.KERAS
    layout: LayoutValues = LayoutValues.CHANNELS_LAST
    input_name: str = ""
    """The network's input; empty where it has one only."""
    output_name: str = ""
    """The network's output; empty where it has one only."""
    remote: RemoteModel = field(default_factory=RemoteModel)


def read_runtime_plan(manifest: ManifestTable, weights: ManifestTable) -> RuntimePlan:
    """Read ``[weights]`` and, for a remote model, ``[remote]``."""
    kinds, layouts = ", ".join(RuntimeValues), ", ".join(LayoutValues)
    kind = weights.text(
        "runtime", "|".join(RuntimeValues), f"must be one of {kinds}", default=RuntimeValues.KERAS
    )
    layout = weights.text(
        "layout",
        "|".join(LayoutValues),
        f"must be one of {layouts}",
        default=LayoutValues.CHANNELS_LAST,
    )
    name_rule = "must be one line of at most 200 characters"
    names = [weights.text(key, r"[^\n]{1,200}", name_rule, default="") for key in _NAMES]
    if kind == RuntimeValues.KERAS:
        for key in ("layout", *_NAMES):
            if weights.has(key):
                weights.add_fault(key, "means nothing to Keras, which knows it itself; remove it")
    remote = RemoteModel()
    if kind == RuntimeValues.REMOTE:
        remote = _read_remote(manifest.table("remote"))
    elif manifest.has("remote"):
        manifest.add_fault("remote", 'means nothing without weights.runtime = "remote"')
        manifest.raw("remote")
    return RuntimePlan(
        RuntimeValues(kind or RuntimeValues.KERAS),
        LayoutValues(layout or LayoutValues.CHANNELS_LAST),
        input_name=names[0],
        output_name=names[1],
        remote=remote,
    )


_NAMES = ("input", "output")


def _read_remote(table: ManifestTable) -> RemoteModel:
    url = table.text("url", rule=_URL_RULE, default="")
    fault = url_fault(url) if url else ""
    if fault:
        table.add_fault("url", fault)
    remote = RemoteModel(
        url=url,
        model=table.text("model", _SERVER_NAME, _SERVER_NAME_RULE),
        version=table.text("version", _SERVER_NAME, _SERVER_NAME_RULE, default=""),
        largest_batch=table.whole_number(
            "largest_batch", 1, MOST_IN_A_BATCH, default=DEFAULT_LARGEST_BATCH
        ),
    )
    table.refuse_unknown()
    return remote


_URL_RULE = "must be scheme://host:port with the scheme http, https, grpc or grpcs"
_SERVER_NAME = r"[A-Za-z0-9_.@:-]{1,128}"
_SERVER_NAME_RULE = "must be letters, digits and _ . @ : - only, at most 128"


def url_fault(url: str) -> str:
    """Return what is wrong with the address of a server; empty when nothing is."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return _URL_RULE
    if parts.scheme not in list(SchemeValues) or not parts.hostname:
        return _URL_RULE
    if parts.username or parts.password:
        return "must hold no user and no password: name a token file in the site's models.remote"
    if parts.query or parts.fragment:
        return "must hold no query and no fragment"
    if SchemeValues(parts.scheme).is_grpc and (port is None or parts.path.strip("/")):
        return "of gRPC must be grpc://host:port, with a port and without a path"
    return ""
