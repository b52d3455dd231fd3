"""Windows in llama.cpp: where their weights and outputs are, against numpy and the loaded model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from models import CPU, VOCABULARY, WIDTH, llama_arrays, llama_metadata
from numpy.typing import NDArray

from quantkit.core.errors import EnvironmentFault
from quantkit.formats.gguf_writer import single_file_layout, write_shape
from quantkit.formats.tensors import Metadata, MetaValue, TensorInfo
from quantkit.llamacpp import windows
from quantkit.llamacpp.activations import Collector
from quantkit.llamacpp.llama import Model
from quantkit.llamacpp.windows import LoadedWindow

TOKENS = 32
GATE = "blk.0.ffn_gate.weight"


def header(folder: Path, changes: Metadata | None = None) -> Path:
    infos = [TensorInfo(name, array.shape, "F32") for name, array in llama_arrays().items()]
    metadata = llama_metadata() | (changes or {})
    return write_shape(folder, single_file_layout("window", metadata, infos))


def filled(window: LoadedWindow) -> LoadedWindow:
    for name, values in llama_arrays().items():
        window.set(name, values.reshape(-1).view(np.uint8))
    return window


@pytest.fixture
def states() -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal((TOKENS, WIDTH), np.float32)


@pytest.fixture
def layer(tmp_path: Path) -> Iterator[LoadedWindow]:
    path = header(tmp_path)
    window = LoadedWindow(path, CPU, llama_arrays().keys(), WIDTH, 1)
    path.unlink()
    yield filled(window)
    window.close()


def test_every_weight_is_found(layer: LoadedWindow) -> None:
    assert layer.names == llama_arrays().keys()
    for name, values in llama_arrays().items():
        raw = values.reshape(-1).view(np.uint8)
        assert np.array_equal(layer.get(name, 0, raw.nbytes), raw)
        assert np.array_equal(layer.get(name, 8, 40), raw[8:40])
    assert "no.such.weight" not in layer.names


def test_a_part_of_a_weight_is_set(layer: LoadedWindow) -> None:
    before = layer.get(GATE, 0, 4 * 2 * WIDTH * WIDTH)
    layer.set(GATE, np.full(8, 7, np.uint8), at=24)
    expected = before.copy()
    expected[24:32] = 7
    assert np.array_equal(layer.get(GATE, 0, len(before)), expected)


@pytest.mark.parametrize("at", [-4, 4])
def test_a_weight_is_not_set_beyond_its_end(layer: LoadedWindow, at: int) -> None:
    whole = layer.get(GATE, 0, 4 * 2 * WIDTH * WIDTH)
    with pytest.raises(ValueError, match="bytes"):
        layer.set(GATE, whole, at=at)


def test_the_states_are_those_before_the_last_norm(
    layer: LoadedWindow, states: NDArray[np.float32], tmp_path: Path
) -> None:
    found = layer.context(1, TOKENS).run([states]).copy()
    assert found.shape == (TOKENS, WIDTH)
    output = filled(LoadedWindow(header(tmp_path), CPU, llama_arrays().keys(), WIDTH, 0))
    logits = output.context(1, TOKENS).run([states]).copy()
    output.close()
    wide = found.astype(np.float64)
    normed = wide / np.sqrt(np.square(wide).mean(axis=1, keepdims=True) + 1e-5)
    expected = normed @ llama_arrays()["output.weight"].T.astype(np.float64)
    assert logits.shape == (TOKENS, VOCABULARY)
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())


def test_a_collector_sees_the_layer(layer: LoadedWindow, states: NDArray[np.float32]) -> None:
    collector = Collector()
    context = layer.context(1, TOKENS)
    plain = context.run([states]).copy()
    assert np.array_equal(context.run([states], collector), plain)
    assert collector.sums.keys() == {
        name for name, array in llama_arrays().items() if "blk" in name and array.ndim > 1
    }
    normed = states / np.sqrt(np.square(states).mean(axis=1, keepdims=True) + 1e-5)
    sums = collector.sums["blk.0.attn_q.weight"]
    np.testing.assert_allclose(sums.squares[0], np.square(normed).sum(axis=0), rtol=1e-4)
    # and no run after it
    context.run([states])
    assert sums.counts.tolist() == [TOKENS]


def test_a_context_is_kept_until_another_is_wanted(layer: LoadedWindow) -> None:
    first = layer.context(2, TOKENS)
    assert layer.context(2, TOKENS) is first
    assert layer.context(1, TOKENS) is not first


def test_states_of_another_width_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama.cpp would read beyond them."""
    monkeypatch.setattr(Model, "input_width", 2 * WIDTH)
    with pytest.raises(EnvironmentFault, match=str(2 * WIDTH)):
        LoadedWindow(header(tmp_path), CPU, llama_arrays().keys(), WIDTH, 1)


def test_a_graph_without_the_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="weights"):
        LoadedWindow(header(tmp_path), CPU, ["other"], WIDTH, 1)


@pytest.mark.parametrize("layers", [2, 3])
def test_a_window_of_fewer_layers_than_wanted_is_refused(tmp_path: Path, layers: int) -> None:
    with pytest.raises(EnvironmentFault, match="layers"):
        LoadedWindow(header(tmp_path), CPU, llama_arrays().keys(), WIDTH, layers)


def test_a_graph_whose_last_norm_has_another_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows, "LAST_NORM", b"other_norm")
    with pytest.raises(EnvironmentFault, match="layers"):
        LoadedWindow(header(tmp_path), CPU, llama_arrays().keys(), WIDTH, 1)


def test_a_whole_model_takes_tokens(tmp_path: Path) -> None:
    window = filled(LoadedWindow(header(tmp_path), CPU, llama_arrays().keys(), 0, 0))
    tokens = np.arange(TOKENS, dtype=np.int32)
    from_tokens = window.context(1, TOKENS).run([tokens]).copy()
    window.close()
    layered = filled(LoadedWindow(header(tmp_path), CPU, llama_arrays().keys(), WIDTH, 0))
    rows = llama_arrays()["token_embd.weight"][tokens]
    assert np.array_equal(layered.context(1, TOKENS).run([rows]), from_tokens)
    layered.close()


def test_a_header_may_name_more_layers_than_are_run(tmp_path: Path) -> None:
    """Idle layers come after the wanted ones, and are not computed."""
    arrays = llama_arrays()
    idle = {n.replace("blk.0.", "blk.1."): a for n, a in arrays.items() if "blk.0." in n}
    infos = [TensorInfo(name, a.shape, "F32") for name, a in (arrays | idle).items()]
    metadata = llama_metadata() | {"llama.block_count": MetaValue("u32", 2)}
    path = write_shape(tmp_path, single_file_layout("window", metadata, infos))
    window = filled(LoadedWindow(path, CPU, (arrays | idle).keys(), WIDTH, 1))
    collector = Collector()
    states = np.random.default_rng(1).standard_normal((TOKENS, WIDTH), np.float32)
    found = window.context(1, TOKENS).run([states], collector).copy()
    assert all(name.startswith("blk.0.") for name in collector.sums)
    one = filled(LoadedWindow(header(tmp_path), CPU, arrays.keys(), WIDTH, 1))
    assert np.array_equal(one.context(1, TOKENS).run([states]), found)
    window.close()
    one.close()
