"""A server elsewhere that computes: any that speaks the Open Inference Protocol version 2.

Owns what is asked of such a server before its numbers are believed. A request holds a tensor and
the names of model, input and output; no identifier of a patient or a study leaves this host.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np

from model.errors import RuntimeFault
from model.package import ModelPackage
from model.probes import read_probes
from model.runtimes.batched import BatchedPredictor
from model.runtimes.port import FloatArray, PredictorDescription
from model.runtimes.remote.access import RemoteAccess, address_of, checked_access
from model.runtimes.remote.http_channel import HTTPChannel
from model.runtimes.remote.messages import Answer, ModelFacts, Question, ServerFacts
from model.runtimes.signature import Signature, agreed_signature, laid_out


class Channel(Protocol):
    """A way to speak to a server; HTTP and gRPC are two."""

    @property
    def words(self) -> str:
        """How it is spoken to, for ``status``."""

    def server(self) -> ServerFacts:
        """Return what the server says of itself."""

    def require_ready(self, model: str, version: str) -> None:
        """Raise ``RemoteUnavailable`` unless the server serves the model now."""

    def model(self, model: str, version: str) -> ModelFacts:
        """Return what the server says of the model."""

    def infer(self, question: Question) -> Answer:
        """Compute one batch."""

    def close(self) -> None:
        """End the connection."""


class RemotePredictor(BatchedPredictor):
    """A ``Predictor`` whose network runs on a server.

    ``load`` and ``predict`` raise ``RemoteUnavailable``, which is retryable, when the server is not
    reachable, not ready, busy or does not let us in, and ``RuntimeFault`` when it answers something
    else than the manifest says. Neither tries again by itself: that is the queue's business.

    Parameters
    ----------
    package : ModelPackage
    access : RemoteAccess, optional
        The site's address, token and patience.

    Raises
    ------
    RuntimeFault
        Neither site nor manifest names an address, or the site's settings contradict it.
    """

    def __init__(self, package: ModelPackage, access: RemoteAccess | None = None) -> None:
        super().__init__(package, sorted({1, package.runtime.remote.largest_batch}))
        self._takes_any_size = True
        access = access or RemoteAccess()
        url = access.url or package.runtime.remote.url
        if not url:
            raise RuntimeFault(
                f"{package.at_version}: neither the manifest nor the site names the server: set "
                "url in a block of models.remote"
            )
        self._address = address_of(url)
        checked_access(access, self._address)
        self._access = access
        self._channel: Channel | None = None
        self._input_name = package.runtime.input_name
        self._output_name = package.runtime.output_name

    def load(self) -> None:
        """Ask the server for the model and hold what it says against the manifest.

        Raises
        ------
        RemoteUnavailable
            It does not answer, or does not serve the model now.
        RuntimeFault
            It serves another model than the manifest says.
        """
        channel = self._open()
        remote = self._package.runtime.remote
        server = channel.server()
        channel.require_ready(remote.model, remote.version)
        facts = channel.model(remote.model, remote.version)
        self._agree(facts)
        if self._channel is not None:
            self._channel.close()
        self._channel = channel
        name = " ".join(filter(None, [server.name, server.version])) or "unnamed server"
        self._description = PredictorDescription(
            model=self._package.at_version,
            runtime=f"{name}, Open Inference Protocol 2 over {channel.words}",
            device=self._address.text,
            precision="as the server computes",
            parameters=0,
        )
        self._require_recorded_scores()

    def close(self) -> None:
        """End the connection; ``load`` opens it again."""
        if self._channel is not None:
            self._channel.close()

    def _open(self) -> Channel:
        if not self._address.scheme.is_grpc:
            return HTTPChannel(self._address, self._access)
        # The channel's module needs libraries of an extra.
        from model.runtimes.remote.grpc_channel import GRPCChannel  # noqa: PLC0415

        return GRPCChannel(self._address, self._access)

    def _agree(self, facts: ModelFacts) -> None:
        """Hold the server's word against the manifest; some servers say nothing of a model."""
        if facts.inputs and facts.outputs:
            signature = agreed_signature(self._package, facts.inputs, facts.outputs)
            self._use(signature)
        elif not self._input_name:
            raise RuntimeFault(
                f"{self._package.at_version}: the server does not say what the model's inputs are "
                "called; name it as input in [weights] of the manifest"
            )

    def _use(self, signature: Signature) -> None:
        self._input_name, self._output_name = signature.input.name, signature.output.name
        if signature.fixed_batch is not None:
            self._sizes, self._takes_any_size = (signature.fixed_batch,), False

    def _require_recorded_scores(self) -> None:
        """Let the server score the package's probes: nothing else tells which weights it holds."""
        probes = self._package.probes
        if probes is None:
            return
        tensors = read_probes(probes.path, self._package.recipe.shape)
        scores = np.stack([self.predict(each[np.newaxis])[0] for each in tensors])
        recorded = np.array(probes.scores)
        same_number = scores.shape == recorded.shape
        difference = float(np.abs(scores - recorded).max()) if same_number else math.inf
        if difference > probes.tolerance:
            self._description = None
            raise RuntimeFault(
                f"{self._package.at_version}: {self._address.text} does not reproduce the scores "
                f"recorded for the package's probes: the largest difference is {difference:.3g}, "
                f"the tolerance {probes.tolerance:g}; it serves other weights under this name"
            )

    def _run(self, chunk: FloatArray) -> FloatArray:
        assert self._channel is not None  # noqa: S101 - predict refuses before load
        plan = self._package.runtime
        values = laid_out(chunk, plan.layout)
        question = Question(
            plan.remote.model, plan.remote.version, self._input_name, self._output_name, values
        )
        answer = self._channel.infer(question)
        self._require_same(answer)
        return answer.values

    def _require_same(self, answer: Answer) -> None:
        """Refuse the numbers of another model; a server that does not say is believed."""
        remote = self._package.runtime.remote
        asked = f"{remote.model} {remote.version}".strip()
        other_name = answer.model not in ("", remote.model)
        other_version = bool(remote.version) and answer.version not in ("", remote.version)
        if other_name or other_version:
            raise RuntimeFault(
                f"{self._package.at_version}: {self._address.text} was asked for {asked} and "
                f"answers for {answer.model} {answer.version}"
            )
