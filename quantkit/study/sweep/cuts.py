"""How a model is cut into windows: small models of one layer each, which llama.cpp runs in turn.

A window is a GGUF header of the same architecture. Hidden states go in as embeddings and come out
of its last layer. The first window is the embedding, whose rows are looked up without llama.cpp;
the last one is the output: its norm and matrix behind layers of zeros, which add exactly 0. An
architecture is cut only as CUTS says; all others are one window, the whole model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from quantkit.formats.tensor_types import BY_NAME
from quantkit.formats.tensors import Metadata, MetaScalar, MetaValue, ModelHeader, TensorInfo
from quantkit.models.geometry import ModelGeometry, geometry_of
from quantkit.quantize.candidates import is_quantizable

EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"
DUMMY_VOCABULARY = 32
"""Of windows without the output: llama.cpp loads no model without an embedding."""
IDLE_TYPE = "Q4_0"
"""Of matrices of zeros: small, and every backend has it. A block of zero bytes is zeros."""
_BLOCK = re.compile(r"^blk\.(\d+)\.(.+)$")
_PREDICTION = "nextn_predict_layers"
_PATTERN = "attention.sliding_window_pattern"
_USED = "expert_used_count"
_BY_LAYER = (
    "feed_forward_length", "expert_feed_forward_length", _USED, "attention.head_count",
    "attention.head_count_kv",
)  # fmt: skip
"""Keys that may have a value for each layer, of the architectures in CUTS."""
_NOT_OF_LAYERS = re.compile(r"^(tokenizer|split|quantize|imatrix)\.|^general\.(?!architecture$)")

Scale = Callable[["_Keys"], float]
Whole = Callable[["_Keys"], str | None]


@dataclass(frozen=True)
class Cut:
    """What an architecture needs to be cut.

    Attributes:
        scale: factor of the embeddings, which llama.cpp applies in F32.
        dropped: keys that scale embeddings, and would scale hidden states again.
        sliding: period of the layers that slide, by default, all but each last one; 0: none do.
        by_layer: those of `_BY_LAYER` that llama.cpp takes for each layer from its own value; of
            the others it takes the first layer's for all.
        whole: why a model with such keys cannot be cut; None if it can.
    """

    scale: Scale = lambda _: 1.0
    dropped: tuple[str, ...] = ()
    sliding: int = 0
    by_layer: tuple[str, ...] = ()
    whole: Whole = lambda _: None


def _injects(keys: _Keys) -> str | None:
    """Granite Vision adds parts of its input, which is wider than a layer's, in later layers."""
    if any(int(place) >= 0 for place in keys.array("deepstack_mapping")):
        return "later layers take a part of its input"
    return None


def _not_of_gemma(keys: _Keys) -> str | None:
    if keys.number("block_count", 0) == 62:
        return "llama.cpp takes its attention's scale from the number of layers"
    sizes = ("attention.key_length_swa", "attention.value_length_swa", "rope.dimension_count_swa")
    if any(keys.has(key) for key in sizes):
        return "llama.cpp takes the first layer's head sizes for all"
    return None


_PLAIN = Cut()
_SCALED: Scale = lambda keys: keys.number("embedding_scale", 0.0) or 1.0  # noqa: E731
_GRANITE = Cut(_SCALED, ("embedding_scale",), whole=_injects)
_HYBRID = ("feed_forward_length", "expert_feed_forward_length", _USED, "attention.head_count_kv")
CUTS: Mapping[str, Cut] = {
    "llama": _PLAIN,
    "qwen2": _PLAIN,
    "qwen3": _PLAIN,
    "qwen3moe": _PLAIN,
    "granite": _GRANITE,
    "granitemoe": _GRANITE,
    "granitehybrid": Cut(_SCALED, ("embedding_scale",), by_layer=("attention.head_count_kv",)),
    "nemotron_h": Cut(by_layer=_HYBRID),
    "nemotron_h_moe": Cut(by_layer=_HYBRID),
    "gemma3": Cut(
        lambda keys: keys.number("embedding_length", 0.0) ** 0.5, sliding=6, whole=_not_of_gemma
    ),
}
"""Architectures that are cut; each is compared with the loaded model in tests/study/sweep."""


@dataclass(frozen=True)
class Window:
    """A part of a model as a model of its own.

    Attributes:
        name: for people: `layer 3`, `output`.
        kind: `embedding` gives hidden states of tokens, `layers` of hidden states; `output` gives
            logits of hidden states; `whole` gives logits of tokens.
        stored: its tensor → the model's tensor; the others are zeros.
        layers: how many of its layers are the model's; the idle ones come after them.
    """

    name: str
    kind: Literal["embedding", "layers", "output", "whole"]
    metadata: Metadata
    tensors: tuple[TensorInfo, ...]
    stored: Mapping[str, str]
    layers: int

    @property
    def shape(self) -> tuple[object, ...]:
        """Equal for windows that can use one loaded model in turn."""
        return self.kind, tuple(self.metadata.items()), self.tensors

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(BY_NAME[info.type_name].size_bytes(info.elements) for info in self.tensors)


@dataclass(frozen=True)
class CutModel:
    """A model's windows in order.

    Attributes:
        width: of hidden states.
        embedding_scale: factor of the embedding's rows.
        why_whole: why it is one window, where it is.
    """

    windows: tuple[Window, ...]
    width: int
    embedding_scale: float = 1.0
    why_whole: str | None = None

    @property
    def is_whole(self) -> bool:
        return self.why_whole is not None


def cut(model: ModelHeader) -> CutModel:
    """Cut `model` into windows of one layer, or not at all."""
    geometry = geometry_of(model.metadata)
    found = CUTS.get(geometry.architecture)
    if found is None:
        why = f"how layers of {geometry.architecture} can run alone is not known"
        return _uncut(model, geometry, why)
    keys = _Keys(model.metadata, geometry.architecture)
    if (why_not := found.whole(keys) or _uneven(keys, found)) is not None:
        return _uncut(model, geometry, why_not)
    return _Cutting(model, geometry, found).cut()


def _uneven(keys: _Keys, how: Cut) -> str | None:
    """Why layers that differ cannot run alone, if so."""
    for key in _BY_LAYER:
        if key not in how.by_layer and len(set(keys.array(key))) > 1:
            return f"llama.cpp takes the first layer's {key} for all"
    return None


def _uncut(model: ModelHeader, geometry: ModelGeometry, why: str) -> CutModel:
    tensors = tuple(model.tensors)
    names = {info.name: info.name for info in tensors}
    whole = Window("model", "whole", model.metadata, tensors, names, 0)
    return CutModel((whole,), geometry.embedding_elements, why_whole=why)


class _Keys:
    """An architecture's own keys."""

    def __init__(self, metadata: Metadata, architecture: str) -> None:
        self.metadata, self.prefix = metadata, f"{architecture}."

    def has(self, key: str) -> bool:
        return self.prefix + key in self.metadata

    def number(self, key: str, default: float) -> float:
        found = self.metadata.get(self.prefix + key)
        return float(found.value) if found and isinstance(found.value, int | float) else default

    def array(self, key: str) -> tuple[MetaScalar, ...]:
        """Empty where there is none."""
        found = self.metadata.get(self.prefix + key)
        return found.value if found and isinstance(found.value, tuple) else ()


class _Cutting:
    def __init__(self, model: ModelHeader, geometry: ModelGeometry, how: Cut) -> None:
        self._how, self._geometry = how, geometry
        self._keys = _Keys(model.metadata, geometry.architecture)
        self._metadata = model.metadata
        self._tensors = {info.name: info for info in model.tensors}
        self._layers: dict[int, list[TensorInfo]] = {i: [] for i in range(geometry.trunk_layers)}
        self._global: list[TensorInfo] = []
        for info in model.tensors:
            block = _BLOCK.match(info.name)
            if block is None:
                if info.name != EMBEDDING and not info.name.startswith("output"):
                    self._global.append(info)
            elif int(block[1]) in self._layers:
                self._layers[int(block[1])].append(info)
        self._slides = self._sliding_layers()
        kinds = [self._kind(layer) for layer in self._layers]
        self._kinds = {layer: kind for layer, kind in enumerate(kinds) if kind}
        first = {kind: layer for layer, kind in reversed(self._kinds.items())}
        self._templates: dict[str, int] = {kind: first[kind] for kind in sorted(first)}

    def cut(self) -> CutModel:
        info = self._tensors[EMBEDDING]
        first = Window("embedding", "embedding", {}, (info,), {EMBEDDING: EMBEDDING}, 0)
        layers = [self._window(f"layer {layer}", [layer]) for layer in self._layers]
        scale = self._how.scale(self._keys)
        return CutModel((first, *layers, self._output()), self._geometry.embedding_elements, scale)

    def _sliding_layers(self) -> list[bool] | None:
        """Which layers attend within a window of tokens; None where the architecture has none."""
        count = self._geometry.trunk_layers
        if not self._how.sliding or not self._keys.number("attention.sliding_window", 0):
            return None
        if stored := self._keys.array(_PATTERN):
            return [bool(slides) for slides in stored[:count]]
        period = int(self._keys.number(_PATTERN, self._how.sliding))
        return [period == 0 or layer % period < period - 1 for layer in range(count)]

    def _kind(self, layer: int) -> str:
        """The kind of memory that a layer has: llama.cpp wants a layer of each kind in a model."""
        keeps = self._geometry.layers[layer]
        parts = ["recurrent"] if keeps.recurrent_elements else []
        if keeps.key_elements:
            parts.append("sliding" if self._slides and self._slides[layer] else "attention")
        return " and ".join(parts)

    def _window(self, name: str, layers: Sequence[int]) -> Window:
        present = {self._kinds.get(layer) for layer in layers}
        idle = [layer for kind, layer in self._templates.items() if kind not in present]
        tensors, stored = self._blocks(layers, idle)
        width = self._geometry.embedding_elements
        tensors.append(TensorInfo(EMBEDDING, (DUMMY_VOCABULARY, width), "F32"))
        tensors += [i for n, i in self._tensors.items() if n.startswith("output_norm")]
        metadata = self._metadata_of([*layers, *idle], DUMMY_VOCABULARY)
        return Window(name, "layers", metadata, tuple(tensors), stored, len(layers))

    def _output(self) -> Window:
        """The output norm and matrix, behind idle layers that add 0."""
        idle = list(self._templates.values()) or [0]
        tensors, stored = self._blocks([], idle)
        vocabulary = self._tensors[EMBEDDING].rows
        # As if it were tied to an embedding, which llama.cpp wants, and for which zeros would
        # take as much memory.
        matrix = self._tensors.get(OUTPUT, self._tensors[EMBEDDING])
        tensors.append(TensorInfo(EMBEDDING, matrix.shape, matrix.type_name))
        stored[EMBEDDING] = matrix.name
        for name, info in self._tensors.items():
            if name.startswith("output") and name != OUTPUT:
                tensors.append(info)
                stored[name] = name
        metadata = self._metadata_of(idle, vocabulary)
        return Window("output", "output", metadata, tuple(tensors), stored, 0)

    def _blocks(
        self, layers: Sequence[int], idle: Sequence[int]
    ) -> tuple[list[TensorInfo], dict[str, str]]:
        """Tensors of `layers` and of `idle` ones after them, and which of the model's they are."""
        tensors, stored = [*self._global], {info.name: info.name for info in self._global}
        for at, layer in enumerate([*layers, *idle]):
            for info in self._layers[layer]:
                block = _BLOCK.match(info.name)
                assert block is not None
                named = TensorInfo(f"blk.{at}.{block[2]}", info.shape, info.type_name)
                if at < len(layers):
                    stored[named.name] = info.name
                    tensors.append(named)
                else:
                    tensors.append(_idle(named))
        return tensors, stored

    def _metadata_of(self, layers: Sequence[int], vocabulary: int) -> Metadata:
        prefix = self._keys.prefix
        dropped = {prefix + key for key in (*self._how.dropped, _PREDICTION, _PATTERN)}
        found: Metadata = {
            key: value
            for key, value in self._metadata.items()
            if key not in dropped and not _NOT_OF_LAYERS.match(key)
        }
        for key in _BY_LAYER:
            if stored := self._keys.array(key):
                values = tuple(stored[layer] for layer in layers)
                if key == _USED:  # llama.cpp wants a model with experts to use some in a layer
                    values = tuple(value or max(stored) for value in values)
                found[prefix + key] = MetaValue(found[prefix + key].kind, values)
        found[f"{prefix}block_count"] = MetaValue("u32", len(layers))
        found[f"{prefix}vocab_size"] = MetaValue("u32", vocabulary)
        if self._slides is not None:
            slides = tuple(self._slides[layer] for layer in layers)
            found[prefix + _PATTERN] = MetaValue("bool", slides)
        found["tokenizer.ggml.model"] = MetaValue("str", "none")
        return found


def _idle(info: TensorInfo) -> TensorInfo:
    """The tensor in the smallest type, for zeros."""
    if is_quantizable(info) and BY_NAME[IDLE_TYPE].fits_row(info.row_elements):
        return info.with_type(IDLE_TYPE)
    return info
