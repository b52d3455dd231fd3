"""How models are cut: what each window holds, and which models are left whole."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import flagship
import pytest
from cut_models import CUT, WHOLE, write_model
from memory_kinds import write_gemma

from quantkit.formats.tensor_types import BY_NAME
from quantkit.formats.tensors import Metadata, MetaValue, ModelHeader, TensorInfo
from quantkit.models.geometry import geometry_of
from quantkit.models.gguf_source import GGUFSource
from quantkit.study.sweep.cuts import CUTS, DUMMY_VOCABULARY, EMBEDDING, OUTPUT, Window, cut


@dataclass(frozen=True)
class Header:
    metadata: Metadata
    tensors: list[TensorInfo]


@pytest.fixture(scope="module")
def headers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Header]:
    found = {}
    for number, name in enumerate([*CUT, *WHOLE]):
        source = write_model(name, tmp_path_factory.mktemp(f"model-{number}"))
        found[name] = Header(source.metadata, list(source.tensors))
    return found


def layers_in(window: Window) -> int:
    names = (info.name.split(".") for info in window.tensors)
    return len({parts[1] for parts in names if parts[0] == "blk"})


def own(window: Window, key: str) -> object:
    """A value of the window's architecture."""
    architecture = window.metadata["general.architecture"].value
    found = window.metadata.get(f"{architecture}.{key}")
    return None if found is None else found.value


def with_keys(header: ModelHeader, **changes: MetaValue) -> Header:
    architecture = header.metadata["general.architecture"].value
    keys = {f"{architecture}.{key.replace('__', '.')}": v for key, v in changes.items()}
    return Header(header.metadata | keys, list(header.tensors))


def test_every_architecture_that_is_cut_is_compared(headers: dict[str, Header]) -> None:
    architectures = {headers[name].metadata["general.architecture"].value for name in CUT}
    assert architectures == CUTS.keys()


@pytest.mark.parametrize("name", CUT)
def test_each_tensor_is_in_one_window(headers: dict[str, Header], name: str) -> None:
    header = headers[name]
    found = cut(header)
    layers = geometry_of(header.metadata).trunk_layers
    expected = ["embedding", *(f"layer {layer}" for layer in range(layers)), "output"]
    assert [window.name for window in found.windows] == expected
    places = Counter(of for window in found.windows for of in window.stored.values())
    tied = OUTPUT not in {info.name for info in header.tensors}
    for info in header.tensors:
        block = info.name.split(".")[1] if info.name.startswith("blk.") else None
        if block is None and not info.name.startswith(("token_embd", "output")):
            assert places.pop(info.name) == layers + 1  # of all layers, the output's idle ones too
        elif block is not None and int(block) >= layers:
            assert info.name not in places  # of the prediction head
        else:
            assert places.pop(info.name) == (2 if tied and info.name == EMBEDDING else 1)
    assert not places


@pytest.mark.parametrize("name", CUT)
def test_a_window_is_a_model_of_its_own(headers: dict[str, Header], name: str) -> None:
    header, found = headers[name], cut(headers[name])
    infos = {info.name: info for info in header.tensors}
    vocabulary = infos[EMBEDDING].rows
    for index, window in enumerate(found.windows[1:]):
        named = {info.name: info for info in window.tensors}
        assert len(named) == len(window.tensors)
        output = window.kind == "output"
        assert window.layers == (0 if output else 1)
        assert own(window, "block_count") == layers_in(window) >= 1
        rows = vocabulary if output else DUMMY_VOCABULARY
        assert own(window, "vocab_size") == named[EMBEDDING].rows == rows
        assert window.metadata["tokenizer.ggml.model"].value == "none"
        assert "tokenizer.ggml.tokens" not in window.metadata
        assert not own(window, "nextn_predict_layers")
        for key, value in window.metadata.items():
            if isinstance(value.value, tuple) and value.kind != "str":  # those are labels
                assert len(value.value) == layers_in(window), key
        for its, of in window.stored.items():
            assert (named[its].shape, named[its].type_name) == (
                infos[of].shape,
                infos[of].type_name,
            )
            if its.startswith("blk."):
                assert its.split(".", 2)[1] == "0"
                assert of == f"blk.{index}.{its.split('.', 2)[2]}"


def test_labels_are_no_values_by_layer(headers: dict[str, Header]) -> None:
    labels = ("yes", "no")  # as many as layers
    windows = cut(headers["qwen3, ranking"]).windows[1:]
    assert all(own(window, "classifier.output_labels") == labels for window in windows)


def test_only_the_embedding_is_scaled(headers: dict[str, Header]) -> None:
    granite, gemma = headers["granite"], headers["gemma3"]
    assert own_of(granite, "embedding_scale") == 12
    found = cut(granite)
    assert found.embedding_scale == 12
    assert all(own(window, "embedding_scale") is None for window in found.windows[1:])
    assert cut(gemma).embedding_scale == 8  # √64
    assert cut(headers["qwen3"]).embedding_scale == 1
    without = {k: v for k, v in granite.metadata.items() if k != "granite.embedding_scale"}
    assert cut(Header(without, granite.tensors)).embedding_scale == 1


def own_of(header: Header, key: str) -> object:
    return header.metadata[f"{header.metadata['general.architecture'].value}.{key}"].value


def test_layers_of_one_shape_use_one_window(headers: dict[str, Header]) -> None:
    shapes = [window.shape for window in cut(headers["gemma3"]).windows]
    assert len(set(shapes)) == 4  # embedding, sliding, full, output
    sliding = set(shapes[1:6])
    assert len(sliding) == 1
    assert shapes[6] not in sliding
    assert {shapes[7], shapes[8]} == sliding


@pytest.mark.parametrize(
    ("pattern", "slides"),
    [
        (None, [True, True, True, True, True, False, True]),
        (MetaValue("u32", 2), [True, False, True, False, True, False, True]),
        (MetaValue("u32", 0), [True] * 7),
        (MetaValue("bool", (False, True, True, True, True, True, True)), [False] + [True] * 6),
        (MetaValue("i32", (1, 0, 1, 0, 0, 1, 1)), [True, False, True, False, False, True, True]),
    ],
)
def test_each_layer_slides_as_it_did(
    tmp_path: Path, pattern: MetaValue | None, slides: list[bool]
) -> None:
    changes = {} if pattern is None else {"attention__sliding_window_pattern": pattern}
    source = GGUFSource(write_gemma(tmp_path / "gemma.gguf", 7, **changes))
    windows = cut(source).windows[1:-1]
    found = [own(window, "attention.sliding_window_pattern") for window in windows]
    assert all(isinstance(pattern, tuple) for pattern in found)
    assert [pattern[0] for pattern in found if isinstance(pattern, tuple)] == slides
    for window, pattern_of in zip(windows, found, strict=True):
        # a layer of each kind that the model has, in each window
        assert isinstance(pattern_of, tuple)
        assert set(pattern_of) == set(slides)
        assert own(window, "block_count") == len(pattern_of)


def test_a_gemma_that_does_not_slide_has_no_pattern(headers: dict[str, Header]) -> None:
    windows = cut(headers["gemma3, not sliding, its logits capped"]).windows[1:]
    assert all(own(window, "attention.sliding_window_pattern") is None for window in windows)
    assert all(layers_in(window) == 1 for window in windows)


def test_hybrids_have_an_idle_layer_of_each_kind(headers: dict[str, Header]) -> None:
    windows = cut(headers["nemotron_h_moe"]).windows[1:]  # ME*E
    assert [layers_in(window) for window in windows] == [2, 3, 2, 3, 2]
    kinds = [own(window, "attention.head_count_kv") for window in windows]
    assert kinds[:4] == [(0, 2), (0, 2, 0), (2, 0), (0, 2, 0)]
    idle = [i for i in windows[0].tensors if i.name not in windows[0].stored]
    assert {info.name for info in idle if "attn_q" in info.name} == {"blk.1.attn_q.weight"}
    assert next(i.type_name for i in idle if "attn_q" in i.name) == "Q4_0"  # zeros, and small


def test_every_layer_of_a_window_says_that_it_uses_experts(headers: dict[str, Header]) -> None:
    """llama.cpp ends the process where a model with experts uses none in any layer."""
    header = headers["nemotron_h_moe, of uneven layers"]
    assert own_of(header, "expert_used_count") == (1, 0, 0, 3)
    windows = cut(header).windows[1:-1]
    used = [own(window, "expert_used_count") for window in windows]
    assert all(isinstance(counts, tuple) and min(counts) > 0 for counts in used)
    assert [counts[0] for counts in used if isinstance(counts, tuple)][::3] == [1, 3]
    widths = [own(window, "expert_feed_forward_length") for window in windows]
    assert [width[0] for width in widths if isinstance(width, tuple)] == [32, 0, 0, 64]


@pytest.mark.parametrize("name", WHOLE)
def test_what_is_whole_says_why(headers: dict[str, Header], name: str) -> None:
    found = cut(headers[name])
    assert found.is_whole
    assert found.why_whole
    (window,) = found.windows
    assert window.kind == "whole"
    assert window.stored == {info.name: info.name for info in headers[name].tensors}
    assert window.metadata == headers[name].metadata


@pytest.mark.parametrize(
    "key",
    ["feed_forward_length", "expert_used_count", "attention.head_count", "attention.head_count_kv"],
)
@pytest.mark.parametrize("name", ["llama, untied", "qwen3moe", "granitehybrid", "gemma3"])
def test_values_by_layer_that_llama_cpp_does_not_take_by_layer(
    headers: dict[str, Header], name: str, key: str
) -> None:
    header = headers[name]
    count = geometry_of(header.metadata).trunk_layers
    if name == "granitehybrid" and key == "attention.head_count_kv":
        return  # there it does
    changes = {key.replace(".", "__"): MetaValue("u32", (4,) * count)}
    assert not cut(with_keys(header, **changes)).is_whole
    changes = {key.replace(".", "__"): MetaValue("u32", (4,) * (count - 1) + (2,))}
    assert key in (cut(with_keys(header, **changes)).why_whole or "")


@pytest.mark.parametrize(
    "key", ["attention.key_length_swa", "attention.value_length_swa", "rope.dimension_count_swa"]
)
def test_a_gemma_of_other_heads_where_it_slides_is_whole(
    headers: dict[str, Header], key: str
) -> None:
    changes = {key.replace(".", "__"): MetaValue("u32", 16)}
    assert cut(with_keys(headers["gemma3"], **changes)).is_whole


def test_a_gemma_of_62_layers_is_whole(tmp_path: Path) -> None:
    assert not cut(GGUFSource(write_gemma(tmp_path / "61.gguf", 61))).is_whole
    assert cut(GGUFSource(write_gemma(tmp_path / "62.gguf", 62))).is_whole


def test_a_granite_that_injects_nothing_is_cut(headers: dict[str, Header]) -> None:
    plain = MetaValue("i32", (-1, -1, -1))
    assert not cut(with_keys(headers["granite"], deepstack_mapping=plain)).is_whole


def test_the_flagship() -> None:
    model = flagship.model()
    found = cut(model)
    assert len(found.windows) == 1 + 88 + 1
    assert found.width == 4096
    assert len({window.shape for window in found.windows}) == 5  # of three kinds of layers

    def size(info: TensorInfo) -> int:
        return BY_NAME[info.type_name].size_bytes(info.elements)

    infos = {info.name: info for info in model.tensors}
    stored = [infos[of] for window in found.windows for of in window.stored.values()]
    assert sum(map(size, stored)) == sum(map(size, model.tensors))
    # what is beside the model's own weights: idle layers in 4.5 bits, and a small embedding
    for window in found.windows[1:-1]:
        its = sum(size(infos[of]) for of in window.stored.values())
        assert window.size_bytes - its < 90e6
    assert max(window.size_bytes for window in found.windows) < 7e9
