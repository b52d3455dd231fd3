"""Memory geometry of a model, read from its GGUF metadata: what each layer keeps for a token.

Sources: llama.cpp `llama-hparams.cpp` (n_embd_r, n_embd_s, n_embd_k_gqa), `llama-kv-cache.cpp`,
`llama-memory-recurrent.cpp`, and for which layers are recurrent each architecture's own file in
`src/models/` (is_recr_impl) with the filters in `llama-model.cpp` (create_memory).
tests/models/test_geometry.py compares with the buffer sizes that llama.cpp logs.
"""

from __future__ import annotations

from dataclasses import dataclass

from quantkit.config.target import MOST_CONTEXT_TOKENS
from quantkit.core.errors import InputError
from quantkit.formats.tensor_types import quant_type
from quantkit.formats.tensors import Metadata

MAX_LAYERS = 512
"""LLAMA_MAX_LAYERS of llama.cpp's `llama-hparams.h`: it loads no model that has more."""

# Which layers are recurrent, by architecture; in all others none is.
_WITHOUT_KV_HEADS = (
    "bailingmoe3 glm5-next granitehybrid jamba kimi-k3 kimi-linear lfm2 lfm2moe plamo2".split()
)
_WITHOUT_KV_HEADS_AND_FFN = "nemotron_h nemotron_h_moe".split()
_EVERY_LAYER = "arwkv7 falcon-h1 mamba mamba2 rwkv6 rwkv6qwen2 rwkv7".split()
# All but each Nth, where the file does not list them.
_BUT_EACH_NTH = {"minimax-01": 8, "qwen35": 4, "qwen35moe": 4, "qwen3next": 4, "qwen4exp": 4}

# Attends in the layers that are recurrent too.
_ATTENDS_IN_EVERY_LAYER = ("falcon-h1",)

# Hybrids without a filter of their own: their prediction layers get a KV cache that nothing uses.
_KEEPS_PREDICTION = ("bailingmoe3",)

# llama.cpp can run their prediction layers (DECODER_MTP in src/models/).
_PREDICTS = (
    "bailingmoe3 cohere2moe deepseek2 deepseek32 deepseek4 glm-dsa glm4moe glm5-next hy_v3 "
    "mimo2 nemotron_h_moe qwen35 qwen35moe qwen3next step35"
).split()

# More than one of them (nextn_layer_offset in src/models/); the others assert that there is one.
_CHAINS_PREDICTIONS = "hy_v3 mimo2 step35".split()

# Their recurrent state is kept once more for each drafted token (llm_arch_supports_rs_rollback).
_ROLLS_BACK = (
    "bailingmoe3 deepseek4 glm5-next kimi-k3 lfm2 lfm2moe nemotron_h nemotron_h_moe qwen35 "
    "qwen35moe qwen4exp"
).split()

# Granite-4 models of attention alone, whose files describe a mixer that they do not have.
_NO_LAYER = "granite granitemoe".split()
_STATE_KEYS = ("ssm.state_size", "wkv.head_size", "shortconv.l_cache", "kda.head_dim")


@dataclass(frozen=True)
class LayerGeometry:
    """What one layer keeps in memory for a context.

    Attributes:
        key_elements: a token's keys, over all KV heads; 0 where there is no attention.
        value_elements: a token's values.
        recurrent_elements: F32 elements of recurrent state a sequence; 0 without one.
    """

    key_elements: int
    value_elements: int
    recurrent_elements: int

    def context_bytes(
        self, context_tokens: int, kv_type: str, sequences: int = 1, snapshots: int = 0
    ) -> int:
        """KV cache in `kv_type`, and F32 recurrent state with `snapshots` to take tokens back."""
        kind = quant_type(kv_type)
        cells = -(-context_tokens // 256) * 256  # llama.cpp pads the cache to 256 cells
        kv = kind.size_bytes(cells * (self.key_elements + self.value_elements))
        return kv + 4 * self.recurrent_elements * sequences * (1 + snapshots)


@dataclass(frozen=True)
class ModelGeometry:
    """Geometry of a whole model.

    Attributes:
        architecture: `general.architecture`.
        trained_context_tokens: `{arch}.context_length`.
        activation_elements: the widest intermediate of a layer for one token, F32 elements.
        trunk_layers: layers before those of a prediction head (MTP), which come last.
        attention_heads: the most that a layer has.
        prediction: what the layers of the prediction head keep in a context of their own, if they
            draft tokens.
        predicts: whether llama.cpp can let so many of this architecture.
        rolls_back: whether the recurrent state is kept for each drafted token.
    """

    architecture: str
    layers: tuple[LayerGeometry, ...]
    embedding_elements: int
    vocabulary: int
    trained_context_tokens: int
    activation_elements: int
    trunk_layers: int
    attention_heads: int
    prediction: tuple[LayerGeometry, ...]
    predicts: bool
    rolls_back: bool

    @property
    def longest_context_tokens(self) -> int:
        """The longest context that is planned: a file may say any number."""
        return min(self.trained_context_tokens, MOST_CONTEXT_TOKENS)


def geometry_of(metadata: Metadata) -> ModelGeometry:
    """The geometry that `metadata` describes.

    Layers of a prediction head (MTP) keep nothing: llama.cpp's main context does not run them.

    Raises:
        InputError: a key that every model has is missing or not a number, there are more than
            `MAX_LAYERS`, or the model keeps a recurrent state and it is not known in which layers.
    """
    read = _Reader(metadata)
    count = read.one("block_count")
    if count > MAX_LAYERS:
        raise InputError(
            f"{read.architecture}.block_count is {count}, and llama.cpp loads at most {MAX_LAYERS} "
            "layers; convert the model again"
        )
    heads = read.each("attention.head_count", count)
    kv_heads = read.each("attention.head_count_kv", count, heads)
    embedding = read.one("embedding_length")
    widest = max(heads, default=0)
    head_size = embedding // widest if widest else 0
    key_length = read.one("attention.key_length", head_size)
    value_length = read.one("attention.value_length", head_size)
    forward = read.each("feed_forward_length", count, (0,) * count)
    recurrent = _recurrent_layers(read, kv_heads, forward)
    state = _state_elements(read, widest, key_length)
    trunk = count - read.one("nextn_predict_layers", 0)
    if trunk <= 0:  # A head in a file of its own.
        trunk = count
    caches = count if read.architecture in _KEEPS_PREDICTION else trunk
    everywhere = read.architecture in _ATTENDS_IN_EVERY_LAYER
    attends = [i < caches and (everywhere or not recurrent[i]) for i in range(count)]
    layers = tuple(
        LayerGeometry(
            key_elements=kv_heads[i] * key_length if attends[i] else 0,
            value_elements=kv_heads[i] * value_length if attends[i] else 0,
            recurrent_elements=state if i < trunk and recurrent[i] else 0,
        )
        for i in range(count)
    )
    prediction = tuple(
        LayerGeometry(kv_heads[i] * key_length, kv_heads[i] * value_length, recurrent_elements=0)
        for i in range(trunk, count)
    )
    used = max(read.each("expert_used_count", count, (0,) * count), default=0)
    experts = used * read.one("expert_feed_forward_length", 0)
    inner = read.one("ssm.inner_size", 0)
    ssm = 2 * inner + 2 * read.one("ssm.group_count", 0) * read.one("ssm.state_size", 0)
    tokens = metadata.get("tokenizer.ggml.tokens")
    stored = len(tokens.value) if tokens and isinstance(tokens.value, tuple) else 0
    return ModelGeometry(
        architecture=read.architecture,
        layers=layers,
        embedding_elements=embedding,
        vocabulary=read.one("vocab_size", stored),
        trained_context_tokens=read.one("context_length"),
        activation_elements=max(2 * experts, 2 * max(forward, default=0), 2 * ssm, embedding),
        trunk_layers=trunk,
        attention_heads=widest,
        prediction=prediction,
        predicts=read.architecture in (_PREDICTS if len(prediction) == 1 else _CHAINS_PREDICTIONS),
        rolls_back=read.architecture in _ROLLS_BACK,
    )


def _recurrent_layers(
    read: _Reader, kv_heads: tuple[int, ...], forward: tuple[int, ...]
) -> list[bool]:
    architecture, count = read.architecture, len(kv_heads)
    if architecture in _EVERY_LAYER:
        return [True] * count
    if architecture in _WITHOUT_KV_HEADS:
        return [not heads for heads in kv_heads]
    if architecture in _WITHOUT_KV_HEADS_AND_FFN:
        return [not heads and not inner for heads, inner in zip(kv_heads, forward, strict=True)]
    if architecture in _BUT_EACH_NTH:
        nth = read.one("full_attention_interval", _BUT_EACH_NTH[architecture])
        if not nth:
            raise InputError(f"{architecture}.full_attention_interval is 0")
        default = tuple(int((index + 1) % nth != 0) for index in range(count))
        return [bool(kind) for kind in read.each("attention.recurrent_layers", count, default)]
    if architecture not in _NO_LAYER and any(read.one(key, 0) for key in _STATE_KEYS):
        raise InputError(
            f"the architecture {architecture} keeps a recurrent state, but which of its layers do "
            "is not known; add it to quantkit/models/geometry.py"
        )
    return [False] * count


def _state_elements(read: _Reader, heads: int, key_length: int) -> int:
    """F32 elements of a recurrent layer's convolution and state (n_embd_r + n_embd_s)."""
    embedding, kernel = read.one("embedding_length"), read.one("ssm.conv_kernel", 0)
    if size := read.one("wkv.head_size", 0):
        return embedding * (read.one("token_shift_count", 2) + size)
    if size := read.one("kda.head_dim", 0):
        return 3 * (kernel - 1 if kernel else 3) * heads * size + size * size * heads
    inner, state = read.one("ssm.inner_size", 0), read.one("ssm.state_size", 0)
    mixed = inner + 2 * read.one("ssm.group_count", 0) * state
    convolution = max(kernel - 1, 0) * mixed
    if size := read.one("shortconv.l_cache", 0):
        convolution = embedding * (size - 1)
    if read.architecture == "minimax-01":
        return convolution + key_length**2 * heads
    return convolution + state * inner


class _Reader:
    """Integers of the architecture's own keys."""

    def __init__(self, metadata: Metadata) -> None:
        self._metadata = metadata
        named = metadata.get("general.architecture")
        if named is None or not isinstance(named.value, str):
            raise InputError("the model's metadata has no general.architecture")
        self.architecture = named.value

    def one(self, key: str, default: int | None = None) -> int:
        return max(self._find(key, None if default is None else (default,)))

    def each(self, key: str, count: int, default: tuple[int, ...] | None = None) -> tuple[int, ...]:
        found = self._find(key, default)
        if len(found) == 1:
            return found * count
        if len(found) < count:
            raise InputError(f"{self.architecture}.{key} has {len(found)} values, {count} layers")
        return found[:count]

    def _find(self, key: str, default: tuple[int, ...] | None) -> tuple[int, ...]:
        found = self._metadata.get(f"{self.architecture}.{key}")
        value = found.value if found else ()
        values = value if isinstance(value, tuple) else (value,)
        if not values:
            if default is None:
                raise InputError(f"the model's metadata has no {self.architecture}.{key}")
            return default
        counts = tuple(int(v) for v in values if isinstance(v, int) and v >= 0)
        if len(counts) < len(values):
            raise InputError(f"{self.architecture}.{key} is not a count: {value!r}")
        return counts
