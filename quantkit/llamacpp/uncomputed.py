"""A context that computes nothing, to see what a model's memory does at full length in seconds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from quantkit.llamacpp.llama import Context, Logits, Model, Span
from quantkit.llamacpp.settings import ContextSettings


class Uncomputed(Context):
    """A context whose logits are made up: `token` always follows.

    llama.cpp finds room for tokens, copies and removes sequences and makes each graph as ever. Of a
    graph only the first operation is computed, which looks the tokens' embeddings up: it stops
    where the callback says so (ggml_backend_sched_compute_splits).
    """

    def __init__(self, model: Model, settings: ContextSettings, token: int) -> None:
        super().__init__(model, settings, lambda _tensor, asked: asked)
        self._token = token

    def _decode(self, spans: Sequence[Span]) -> Logits:
        logits = np.zeros(super()._decode(spans).shape, np.float32)
        logits[:, self._token] = 1
        return logits
