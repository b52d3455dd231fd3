"""Windows with their weights: read once and ahead, exchanged and restored."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from broken_artifacts import with_nan
from cut_models import write_model
from models import CPU, VOCABULARY, WIDTH, llama_arrays, llama_metadata, write_gguf, write_llama
from numpy.typing import NDArray
from waiting import wait_until

from quantkit.core.errors import EnvironmentFault, InputError
from quantkit.core.progress import SILENT
from quantkit.formats.tensor_types import BY_NAME
from quantkit.formats.tensors import Metadata, MetaValue, TensorInfo, TensorSource
from quantkit.llamacpp import ggml_kernels
from quantkit.models.gguf_source import GGUFSource
from quantkit.study.sweep import windows as opening
from quantkit.study.sweep.cuts import CutModel, Window, cut
from quantkit.study.sweep.sweep import Sweep, Texts
from quantkit.study.sweep.windows import Embedding, OpenWindow, open_windows

EMBEDDING, GATE = "token_embd.weight", "blk.0.ffn_gate.weight"


class Watched:
    """A source that notes which rows are read, and from which on it fails."""

    def __init__(self, source: TensorSource, broken: str | None = None) -> None:
        self._source, self._broken = source, broken
        self.metadata: Metadata = source.metadata
        self.tensors: Sequence[TensorInfo] = source.tensors
        self.rows: dict[str, int] = {}
        self.threads: set[int] = set()

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        self._note(name, stop - start)
        return self._source.read_rows(name, start, stop)

    def read_stored(self, name: str, start: int, stop: int) -> NDArray[np.uint8] | None:
        self._note(name, stop - start)
        return self._source.read_stored(name, start, stop)

    def _note(self, name: str, rows: int) -> None:
        if name == self._broken:
            raise InputError(f"{name} cannot be read")
        self.rows[name] = self.rows.get(name, 0) + rows
        self.threads.add(threading.get_ident())

    def has_read(self, window: Window) -> bool:
        """All of it."""
        rows = {info.name: info.rows for info in self.tensors}
        return all(self.rows.get(name) == rows[name] for name in window.stored.values())


@pytest.fixture
def tiny(tmp_path: Path) -> GGUFSource:
    return GGUFSource(write_llama(tmp_path / "tiny.gguf"))


def stacked(path: Path, layers: int) -> GGUFSource:
    """That Llama with several layers of its one layer's shapes."""
    arrays: dict[str, NDArray[np.float32]] = {}
    for layer in range(layers):
        for name, values in llama_arrays(seed=layer).items():
            arrays[name.replace("blk.0.", f"blk.{layer}.")] = values
    metadata = llama_metadata() | {"llama.block_count": MetaValue("u32", layers)}
    return GGUFSource(write_gguf(path, metadata, arrays))


def all_of(source: TensorSource, name: str) -> NDArray[np.uint8]:
    info = next(info for info in source.tensors if info.name == name)
    raw = source.read_stored(name, 0, info.rows)
    if raw is None:
        kind = BY_NAME[info.type_name]
        raw = ggml_kernels.quantize(kind, source.read_rows(name, 0, info.rows), None)
    return raw


@pytest.mark.parametrize("name", ["the demo, in Q8_0", "nemotron_h_moe", "granitehybrid"])
def test_a_window_holds_the_models_weights(tmp_path: Path, name: str) -> None:
    source = write_model(name, tmp_path)
    parts = cut(source)
    for window, opened in zip(
        parts.windows, open_windows(parts, source, tmp_path, CPU), strict=True
    ):
        assert opened.window == window
        assert opened.names == set(window.stored.values()) == {i.name for i in opened.tensors}
        for info in opened.tensors:
            assert info in source.tensors
            raw = all_of(source, info.name)
            assert np.array_equal(opened.read_stored(info.name, 0, info.rows), raw)
            assert np.array_equal(opened.read_stored(info.name, 1, info.rows)[:2], raw[1:3])
            rows = source.read_rows(info.name, 0, info.rows)
            assert np.array_equal(opened.read_rows(info.name, 0, info.rows), rows)
        for own, of in window.stored.items():
            assert opened.source_name(own) == of
    assert not list(tmp_path.glob("window*"))  # headers are removed


def test_layers_of_one_shape_are_loaded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, loaded, closed = stacked(tmp_path / "m.gguf", 4), [], []

    class Counted(opening.LoadedWindow):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)  # type: ignore[arg-type]
            loaded.append(self)

        def close(self) -> None:
            closed.append(self)
            super().close()

    monkeypatch.setattr(opening, "LoadedWindow", Counted)
    parts = cut(source)
    states = np.random.default_rng(1).standard_normal((1, 16, WIDTH), np.float32)
    found = []
    for window in open_windows(parts, source, tmp_path, CPU):
        if window.window.kind == "layers":
            found.append(window.run(list(states), 1, 16).copy())
            assert (len(loaded), len(closed)) == (1, 0)
    assert len(found) == 4
    assert all(not np.array_equal(found[0], other) for other in found[1:])
    assert len(loaded) == 2  # the output too
    assert closed == loaded


@pytest.mark.parametrize("ahead_bytes", [1, 1 << 16, 1 << 62])
def test_weights_are_read_once_and_ahead(
    tmp_path: Path, ahead_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "READ_ROWS_BYTES", 1 << 14)  # blocks of a few rows
    source = Watched(stacked(tmp_path / "m.gguf", 3))
    parts = cut(source)
    for index, window in enumerate(
        open_windows(parts, source, tmp_path, CPU, ahead_bytes=ahead_bytes)
    ):
        assert source.has_read(window.window)
        if index + 1 < len(parts.windows):
            later = parts.windows[index + 1]
            if ahead_bytes > 1 << 20:
                wait_until(lambda later=later: source.has_read(later))
            elif ahead_bytes == 1:
                # one block, and no more
                wait_until(lambda later=later: any(source.rows.get(n) for n in later.stored))
                assert not source.has_read(later)
    assert threading.get_ident() not in source.threads
    rows = {info.name: info.rows for info in source.tensors}
    assert source.rows == rows  # none twice


def test_a_sweep_can_begin_later(tmp_path: Path) -> None:
    source = Watched(stacked(tmp_path / "m.gguf", 3))
    parts = cut(source)
    opened = [w.window.name for w in open_windows(parts, source, tmp_path, CPU, first=2)]
    assert opened == ["layer 1", "layer 2", "output"]
    assert not any(name.startswith(("blk.0.", EMBEDDING)) for name in source.rows)


def test_what_cannot_be_read_is_raised_where_it_is_needed(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    source = Watched(stacked(tmp_path / "m.gguf", 3), broken="blk.1.attn_k.weight")
    opened = open_windows(cut(source), source, tmp_path, CPU)
    assert [next(opened).window.name for _ in range(2)] == ["embedding", "layer 0"]
    with pytest.raises(InputError, match=r"blk\.1\.attn_k"):
        next(opened)
    assert set(threading.enumerate()) == before


def test_reading_ends_with_who_wanted_it(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    source = Watched(stacked(tmp_path / "m.gguf", 3))
    parts = cut(source)
    opened = open_windows(parts, source, tmp_path, CPU, ahead_bytes=1)
    next(opened)
    assert set(threading.enumerate()) - before
    opened.close()  # type: ignore[attr-defined]
    assert set(threading.enumerate()) == before
    assert not source.has_read(parts.windows[2])  # it does not read the rest first


@contextmanager
def first_layer(source: TensorSource, folder: Path) -> Iterator[OpenWindow]:
    opened = open_windows(cut(source), source, folder, CPU, first=1)
    yield next(opened)
    opened.close()  # type: ignore[attr-defined]


def test_what_is_exchanged_is_run_and_then_restored(tiny: GGUFSource, tmp_path: Path) -> None:
    states = [np.random.default_rng(1).standard_normal((32, WIDTH), np.float32)]
    raw = all_of(tiny, GATE)
    arrays = llama_arrays()
    arrays[GATE][3:103] = 0
    other = GGUFSource(write_gguf(tmp_path / "zeros.gguf", llama_metadata(), arrays))
    with first_layer(other, tmp_path) as window:
        expected = window.run(states, 1, 32).copy()
    with first_layer(tiny, tmp_path) as window:
        before = window.run(states, 1, 32).copy()
        window.hold([GATE])
        window.exchange(GATE, np.zeros_like(raw[:100]), 3 * raw.shape[1])
        changed = window.run(states, 1, 32).copy()
        assert np.array_equal(changed, expected)
        assert not np.array_equal(changed, before)
        # rows are still those that were there
        assert np.array_equal(window.read_stored(GATE, 0, len(raw)), raw)
        assert np.array_equal(window.read_rows(GATE, 2, 9), tiny.read_rows(GATE, 2, 9))
        window.restore()
        assert np.array_equal(window.read_stored(GATE, 0, len(raw)), raw)
        assert np.array_equal(window.run(states, 1, 32), before)
        window.restore()  # of nothing


def test_runs_do_not_see_earlier_ones(tiny: GGUFSource, tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    states = [random.standard_normal((32, WIDTH), np.float32) for _ in range(3)]
    with first_layer(tiny, tmp_path) as window:
        alone = [window.run([part], 3, 32).copy() for part in states]
        assert np.array_equal(window.run(states, 3, 32), np.concatenate(alone))
        assert np.array_equal(window.run(states[::-1], 3, 32), np.concatenate(alone[::-1]))


@pytest.mark.parametrize("kind", ["F32", "BF16", "F16", "Q8_0", "Q6_K", "Q4_0"])
def test_the_embedding_looks_up_rows(kind: str) -> None:
    rows = llama_arrays()[EMBEDDING]
    info = TensorInfo(EMBEDDING, rows.shape, kind)
    raw = ggml_kernels.quantize(BY_NAME[kind], rows, None)
    expected = ggml_kernels.dequantize(BY_NAME[kind], raw, WIDTH)
    tokens = [np.array([3, 1, 3], np.int32), np.array([63, 0, 5], np.int32)]
    picked = expected[np.concatenate(tokens)]
    for scale in (1.0, 12.0):
        window = Embedding(info, scale)
        for at in (0, 32):
            window.set(EMBEDDING, raw[at : at + 32], at * raw.shape[1])
        assert np.array_equal(window.run(tokens), picked * np.float32(scale))
        # of what is exchanged only rows that were asked for are kept
        window.exchange(EMBEDDING, raw[::-1][:40].copy(), 0)
        window.exchange(EMBEDDING, raw[::-1][40:].copy(), 40 * raw.shape[1])
        other = expected[::-1][np.concatenate(tokens)]
        assert np.array_equal(window.run(tokens), other * np.float32(scale))
        assert np.array_equal(window.get(EMBEDDING, 0, raw.nbytes), raw.reshape(-1))
        window.restore()
        assert np.array_equal(window.run(tokens), picked * np.float32(scale))
        assert VOCABULARY == len(raw)


def test_a_graph_without_a_weight_of_the_window_is_refused(
    tiny: GGUFSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its zeros would be run in the weight's place."""

    class Blind(opening.LoadedWindow):
        @property
        def names(self) -> frozenset[str]:
            return super().names - {"blk.0.ffn_norm.weight"}

    monkeypatch.setattr(opening, "LoadedWindow", Blind)
    with pytest.raises(EnvironmentFault, match=r"layer 0.*ffn_norm"):
        list(open_windows(cut(tiny), tiny, tmp_path, CPU))
    assert not list(tmp_path.glob("window*"))


def test_a_window_that_llama_cpp_refuses(tiny: GGUFSource, tmp_path: Path) -> None:
    parts = cut(tiny)

    def without_norm(window: Window) -> Window:
        kept = tuple(info for info in window.tensors if "attn_norm" not in info.name)
        return dataclasses.replace(window, tensors=kept)

    broken = CutModel(tuple(map(without_norm, parts.windows)), parts.width)
    with pytest.raises(InputError, match="attn_norm"):
        list(open_windows(broken, tiny, tmp_path, CPU))


def test_activations_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    plain = stacked(tmp_path / "m.gguf", 3)
    (path,) = plain.paths
    source = GGUFSource(with_nan(path, tmp_path / "nan.gguf", "blk.1.ffn_norm.weight"))
    chunks = np.random.default_rng(1).integers(0, VOCABULARY, (4, 32)).astype(np.int32)
    (tmp_path / "work").mkdir()
    sweep = Sweep(cut(source), source, Texts(None, chunks), tmp_path / "work", CPU, SILENT)
    with pytest.raises((EnvironmentFault, InputError), match=r"blk\.1\.ffn"):
        sweep.run()
