"""Memory geometry of a model, read from its GGUF metadata: what each layer keeps for a token.

Sources: llama.cpp `llama-hparams.cpp` (n_embd_r, n_embd_s, n_embd_k_gqa) and `llama-kv-cache.cpp`.
"""

from __future__ import annotations

from dataclasses import dataclass

from quantkit.errors import InputError
from quantkit.quant_types import quant_type
from quantkit.values import Metadata


@dataclass(frozen=True)
class LayerGeometry:
    """What one layer keeps.

    Attributes:
        key_elements: a token's keys, over all KV heads; 0 where there is no attention.
        value_elements: a token's values.
        recurrent_elements: F32 elements of recurrent state a sequence; 0 without one.
    """

    key_elements: int
    value_elements: int
    recurrent_elements: int

    def context_bytes(self, context_tokens: int, kv_type: str, sequences: int = 1) -> int:
        """KV cache for `context_tokens` in `kv_type`, and recurrent state in F32."""
        kind = quant_type(kv_type)
        cells = -(-context_tokens // 256) * 256  # llama.cpp pads the cache to 256 cells
        kv = kind.size_bytes(cells * (self.key_elements + self.value_elements))
        return kv + 4 * self.recurrent_elements * sequences


@dataclass(frozen=True)
class ModelGeometry:
    """Geometry of a whole model.

    Attributes:
        architecture: `general.architecture`.
        trained_context_tokens: `{arch}.context_length`.
        activation_elements: the widest intermediate of a layer for one token, F32 elements.
    """

    architecture: str
    layers: tuple[LayerGeometry, ...]
    embedding_elements: int
    vocabulary: int
    trained_context_tokens: int
    activation_elements: int


def geometry_of(metadata: Metadata) -> ModelGeometry:
    """The geometry that `metadata` describes.

    Raises:
        InputError: a key that every model has is missing or is no number.
    """
    read = _Reader(metadata)
    count = read.one("block_count")
    heads = read.each("attention.head_count", count)
    kv_heads = read.each("attention.head_count_kv", count, heads)
    embedding = read.one("embedding_length")
    widest = max(heads, default=0)
    head_size = embedding // widest if widest else 0
    key_length = read.one("attention.key_length", head_size)
    value_length = read.one("attention.value_length", head_size)
    inner, state = read.one("ssm.inner_size", 0), read.one("ssm.state_size", 0)
    groups, kernel = read.one("ssm.group_count", 0), read.one("ssm.conv_kernel", 0)
    recurrent = max(kernel - 1, 0) * (inner + 2 * groups * state) + state * inner
    forward = read.each("feed_forward_length", count, (0,) * count)
    layers = tuple(
        LayerGeometry(
            key_elements=kv_heads[i] * key_length,
            value_elements=kv_heads[i] * value_length,
            # a layer of a hybrid is recurrent if and only if it has neither attention nor FFN
            recurrent_elements=recurrent if not kv_heads[i] and not forward[i] else 0,
        )
        for i in range(count)
    )
    used = max(read.each("expert_used_count", count, (0,) * count), default=0)
    experts = used * read.one("expert_feed_forward_length", 0)
    ssm = 2 * inner + 2 * groups * state
    tokens = metadata.get("tokenizer.ggml.tokens")
    stored = len(tokens.value) if tokens and isinstance(tokens.value, tuple) else 0
    return ModelGeometry(
        architecture=read.architecture,
        layers=layers,
        embedding_elements=embedding,
        vocabulary=read.one("vocab_size", stored),
        trained_context_tokens=read.one("context_length"),
        activation_elements=max(2 * experts, 2 * max(forward, default=0), 2 * ssm, embedding),
    )


class _Reader:
    """Integers of the architecture's own keys."""

    def __init__(self, metadata: Metadata) -> None:
        self._metadata = metadata
        named = metadata.get("general.architecture")
        if named is None or not isinstance(named.value, str):
            raise InputError("the model's metadata has no general.architecture")
        self.architecture = named.value

    def _find(self, key: str) -> tuple[int, ...] | None:
        found = self._metadata.get(f"{self.architecture}.{key}")
        if found is None:
            return None
        values = found.value if isinstance(found.value, tuple) else (found.value,)
        if not all(isinstance(value, int) and value >= 0 for value in values):
            raise InputError(f"{self.architecture}.{key} is not a count: {found.value!r}")
        return tuple(int(value) for value in values)

    def one(self, key: str, default: int | None = None) -> int:
        found = self._find(key)
        if found:
            return max(found)
        if default is None:
            raise InputError(f"the model's metadata has no {self.architecture}.{key}")
        return default

    def each(self, key: str, count: int, default: tuple[int, ...] | None = None) -> tuple[int, ...]:
        found = self._find(key)
        if found is None:
            if default is None:
                raise InputError(f"the model's metadata has no {self.architecture}.{key}")
            return default
        if len(found) == 1:
            return found * count
        if len(found) < count:
            raise InputError(f"{self.architecture}.{key} has {len(found)} values, {count} layers")
        return found[:count]
