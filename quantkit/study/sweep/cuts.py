"""How a model is cut into windows: small models of one layer each, which llama.cpp runs in turn.

A window is a GGUF header of the same architecture. Hidden states go in as embeddings and come out
of its last layer. The first window is the embedding, whose rows are looked up without llama.cpp;
the last one is the output: its norm and matrix behind layers of zeros, which add exactly 0. An
architecture is cut only as CUTS says; all others are one window, the whole model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from quantkit.formats.tensor_types import BY_NAME
from quantkit.formats.tensors import Metadata, MetaValue, ModelHeader, TensorInfo
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
_NOT_BY_LAYER = ("rope.dimension_sections",)
"""Arrays of an architecture's own keys that have no value for each layer, whatever their length."""
_NOT_OF_LAYERS = re.compile(r"^(tokenizer|split|quantize|imatrix)\.|^general\.(?!architecture$)")

Scale = Callable[["_Keys"], float]


@dataclass(frozen=True)
class Cut:
    """What an architecture needs to be cut.

    Attributes:
        scale: factor of the embeddings, which llama.cpp applies in F32.
        dropped: keys that scale embeddings, and would scale hidden states again.
        sliding: period of the layers that slide, by default, all but each last one; 0: none do.
        whole: says of a model's number of layers why it cannot be cut, if so.
    """

    scale: Scale = lambda _: 1.0
    dropped: tuple[str, ...] = ()
    sliding: int = 0
    whole: Mapping[int, str] = field(default_factory=dict)


_PLAIN = Cut()
_GRANITE = Cut(lambda keys: keys.number("embedding_scale", 0.0) or 1.0, ("embedding_scale",))
CUTS: Mapping[str, Cut] = {
    "llama": _PLAIN,
    "qwen2": _PLAIN,
    "qwen3": _PLAIN,
    "qwen3moe": _PLAIN,
    "granite": _GRANITE,
    "granitemoe": _GRANITE,
    "granitehybrid": _GRANITE,
    "nemotron_h": _PLAIN,
    "nemotron_h_moe": _PLAIN,
    "gemma3": Cut(
        lambda keys: keys.number("embedding_length", 0.0) ** 0.5,
        sliding=6,
        whole={62: "llama.cpp takes its attention's scale from the number of layers"},
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
    count = geometry.trunk_layers
    if found is None:
        why = f"how layers of {geometry.architecture} can run alone is not known"
        return _uncut(model, geometry, why)
    if count in found.whole:
        return _uncut(model, geometry, found.whole[count])
    return _Cutting(model, geometry, found).cut()


def _uncut(model: ModelHeader, geometry: ModelGeometry, why: str) -> CutModel:
    tensors = tuple(model.tensors)
    names = {info.name: info.name for info in tensors}
    whole = Window("model", "whole", model.metadata, tensors, names, 0)
    return CutModel((whole,), geometry.embedding_elements, why_whole=why)


class _Keys:
    """An architecture's own keys."""

    def __init__(self, metadata: Metadata, architecture: str) -> None:
        self.metadata, self.prefix = metadata, f"{architecture}."

    def number(self, key: str, default: float) -> float:
        found = self.metadata.get(self.prefix + key)
        return float(found.value) if found and isinstance(found.value, int | float) else default


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
        found = self._metadata.get(self._keys.prefix + _PATTERN)
        value = found.value if found else self._how.sliding
        if isinstance(value, tuple):
            return [bool(slides) for slides in value[:count]]
        period = int(value)
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
        prefix, found = self._keys.prefix, Metadata()
        count = int(self._keys.number("block_count", 0))
        dropped = {prefix + key for key in (*self._how.dropped, _PREDICTION, _PATTERN)}
        for key, value in self._metadata.items():
            if key in dropped or _NOT_OF_LAYERS.match(key):
                continue
            by_layer = isinstance(value.value, tuple) and len(value.value) == count
            if by_layer and key.startswith(prefix) and key[len(prefix) :] not in _NOT_BY_LAYER:
                assert isinstance(value.value, tuple)
                value = MetaValue(value.kind, tuple(value.value[layer] for layer in layers))
            found[key] = value
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
