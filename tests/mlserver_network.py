"""The tiny network as MLServer serves it; imported by MLServer, in its own environment."""

from __future__ import annotations

import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class TinyNetwork(MLModel):
    """Raw outputs from the mean of each input: weight times mean, and bias, for each label."""

    async def load(self) -> bool:
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        values = NumpyCodec.decode_input(payload.inputs[0])
        means = values.reshape(len(values), -1).mean(axis=1, keepdims=True)
        told = self.settings.parameters.extra
        raw = (means * [told["weights"]] + [told["biases"]]).astype(np.float32)
        output = NumpyCodec.encode_output("scores", raw)
        return InferenceResponse(model_name=self.name, model_version=self.version, outputs=[output])
