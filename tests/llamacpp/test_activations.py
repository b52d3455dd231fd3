"""The imatrix' sums against numpy, on activations that can be worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from models import CPU, VOCABULARY, WIDTH, llama_arrays, llama_metadata, write_gguf, write_llama

from quantkit.llamacpp import activations, ggml
from quantkit.llamacpp.activations import GROUP_TOKENS, Collector, dense_sums, expert_sums
from quantkit.llamacpp.ggml import GgmlTensor, weight_name
from quantkit.llamacpp.llama import Context, Model
from quantkit.llamacpp.settings import ContextSettings

TOKENS = 48


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_llama(tmp_path / "m.gguf")


def drawn() -> np.ndarray:
    return np.random.default_rng(2).integers(0, VOCABULARY, TOKENS, dtype=np.int32)


def collect(path: Path, tokens: np.ndarray) -> Collector:
    model = Model(path, CPU)
    collector = Collector()
    settings = ContextSettings(TOKENS * 2, batch_tokens=TOKENS, all_outputs=True)
    context = Context(model, settings, collector)
    context.decode_together([tokens])
    context.close()
    model.close()
    return collector


def test_first_layer_input_is_the_normalised_embedding(tiny: Path) -> None:
    arrays, tokens = llama_arrays(), drawn()
    collector = collect(tiny, tokens)
    x = arrays["token_embd.weight"][tokens].astype(np.float64)
    normalised = x / np.sqrt(np.square(x).mean(axis=1, keepdims=True) + 1e-5)
    entry = collector.sums["blk.0.attn_q.weight"]
    assert entry.counts.tolist() == [TOKENS]
    assert np.allclose(entry.squares[0], np.square(normalised).sum(axis=0), rtol=1e-5)
    # every matrix of the layer is seen, the output is not: llama-imatrix' own default
    assert sorted(collector.sums) == sorted(
        n for n, a in arrays.items() if "blk" in n and a.ndim > 1
    )
    assert collector.sums["blk.0.ffn_down.weight"].squares.shape == (1, 2 * WIDTH)


def test_activations_on_a_device_are_read_from_there(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = collect(tiny, drawn()).sums
    monkeypatch.setattr(ggml.base_library(), "ggml_backend_buffer_is_host", lambda _: False)
    read = collect(tiny, drawn()).sums
    assert sorted(read) == sorted(seen)
    for name, entry in read.items():
        np.testing.assert_array_equal(entry.squares, seen[name].squares, name)


def test_what_only_logits_need_is_not_computed(tiny: Path) -> None:
    model = Model(tiny, CPU)
    asked: dict[bool, list[bytes]] = {}
    for leaves in (False, True):
        collector, names = Collector(), asked.setdefault(leaves, [])

        def look(address: int, ask: bool, c: Collector = collector, n: list[bytes] = names) -> bool:
            n.append(GgmlTensor.from_address(address).name)
            return c(address, ask)

        with pytest.MonkeyPatch.context() as patch:
            if not leaves:
                patch.setattr(activations, "LAST_NORM", b"")
            settings = ContextSettings(64, batch_tokens=64, all_outputs=True)
            Context(model, settings, look).decode_together([drawn()])
    assert b"result_output" in asked[False]
    assert b"result_output" not in asked[True]
    assert asked[True][-1] == b"result_norm"


def test_infinite_activations_are_named(tmp_path: Path) -> None:
    arrays = llama_arrays()
    arrays["blk.0.attn_norm.weight"][7] = np.inf
    tokens = np.zeros(TOKENS, np.int32)
    collector = collect(write_gguf(tmp_path / "m.gguf", llama_metadata(), arrays), tokens)
    assert collector.broken is not None
    assert collector.broken.startswith("blk.0.attn_")


@pytest.mark.parametrize("tokens", [1, GROUP_TOKENS - 1, 4 * GROUP_TOKENS, 5 * GROUP_TOKENS + 3])
def test_groups_in_f32_stay_within_its_rounding(tokens: int) -> None:
    matrices, columns = 3, 40
    values = np.random.default_rng(4).standard_normal((matrices, tokens, columns), np.float32)
    found = dense_sums(values[None], matrices, GROUP_TOKENS)
    expected = np.square(values.astype(np.float64)).sum(axis=1)
    assert np.allclose(found.squares, expected, rtol=5e-7, atol=0)
    assert found.counts == tokens
    values[1, -1, 7] = np.nan  # the last token is the one that belongs to no whole group
    found = dense_sums(values[None], matrices, GROUP_TOKENS)
    assert np.argwhere(np.isnan(found.squares)).tolist() == [[1, 7]]


@pytest.mark.parametrize(("chunk", "group"), [(64, GROUP_TOKENS), (50, 2), (33, 1)])
def test_sums_do_not_depend_on_what_lies_side_by_side(chunk: int, group: int) -> None:
    values = np.random.default_rng(6).standard_normal((6, chunk, 24), np.float32)
    together = dense_sums(values.reshape(1, -1, 24), 1, group).squares
    apart = sum(dense_sums(part[None], 1, group).squares for part in values)
    np.testing.assert_array_equal(np.float32(together), np.float32(apart))


@pytest.mark.parametrize("block_bytes", [activations.BLOCK_BYTES, 8 * 8 * 7, 8 * 8])
def test_experts_are_summed_by_the_tokens_that_chose_them(
    block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activations, "BLOCK_BYTES", block_bytes)  # one block, several, sorted
    random = np.random.default_rng(5)
    tokens, used, experts, columns = 40, 3, 6, 8
    ids = np.stack(
        [random.permutation(experts - 1)[:used] for _ in range(tokens)]
    )  # never expert 5
    for width in (1, used):  # one input for all chosen experts, or one for each
        values = random.standard_normal((tokens, width, columns), np.float32)
        found = expert_sums(values, ids.astype(np.int32))
        expected = np.zeros((experts, columns))
        counts = np.zeros(experts, int)
        for t in range(tokens):
            for slot in range(used):
                expected[ids[t, slot]] += values[t, slot % width].astype(np.float64) ** 2
                counts[ids[t, slot]] += 1
        assert found.rows.tolist() == sorted(set(ids.reshape(-1).tolist()))
        assert 5 not in found.rows
        assert np.allclose(found.squares, expected[found.rows], rtol=1e-6)
        assert found.counts.tolist() == counts[found.rows].tolist()


def test_backend_prefixes_are_removed() -> None:
    assert weight_name(b"blk.0.attn_k.weight") == "blk.0.attn_k.weight"
    assert weight_name(b"CUDA0#blk.1.x.weight#0") == "blk.1.x.weight"
