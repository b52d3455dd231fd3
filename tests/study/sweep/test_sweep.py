"""The sweep measures what the whole model, loaded by llama.cpp at once, measures: bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cut_models import CUT, WHOLE, gguf_of, write_model
from loaded_model import LoadedModel
from models import CPU
from numpy.typing import NDArray

from quantkit.config.recipe import MeasureRecipe
from quantkit.core.progress import SILENT, Progress
from quantkit.formats.logits_file import LogitsHeader, header_of, vocabulary_id
from quantkit.formats.tensors import TensorSource
from quantkit.study.divergence import LogitsWriter
from quantkit.study.sweep import estimate
from quantkit.study.sweep.cuts import cut
from quantkit.study.sweep.sweep import Sweep, Swept, Texts, entry_of

RECIPE = MeasureRecipe(candidates=("Q8_0", "Q4_0", "IQ4_NL"), sample_rows=8, sample_experts=2)


def texts_of(source: TensorSource, bos: int | None = 1) -> Texts:
    """A few chunks of random tokens; those of costs are shorter."""
    vocabulary = next(i.rows for i in source.tensors if i.name == "token_embd.weight")
    random = np.random.default_rng(7)

    def chunks(count: int, size: int) -> NDArray[np.int32]:
        return random.integers(0, vocabulary, (count, size)).astype(np.int32)

    return Texts(bos, chunks(3, 64), chunks(2, 64), chunks(3, 32))


def header_for(source: TensorSource, texts: Texts) -> LogitsHeader:
    vocabulary = next(i.rows for i in source.tensors if i.name == "token_embd.weight")
    assert texts.held_out is not None
    identity = vocabulary_id(source.metadata)
    return header_of("model", "text", identity, vocabulary, texts.bos, texts.held_out)


@contextmanager
def swept_in(
    folder: Path,
    source: TensorSource,
    texts: Texts,
    progress: Progress = SILENT,
    recipe: MeasureRecipe = RECIPE,
    importance: dict[str, NDArray[np.float32]] | None = None,
) -> Iterator[Sweep]:
    """A sweep whose logits are in `folder` / base.logits when the block ends."""
    folder.mkdir(exist_ok=True)
    held_out = texts.held_out
    assert held_out is not None
    header = header_for(source, texts)
    with LogitsWriter(folder / "base.logits", header, held_out, 2) as writer:
        yield Sweep(
            cut(source), source, texts, folder, CPU, progress,
            importance=importance, recipe=recipe, on_logits=writer.write,
        )  # fmt: skip


def sweep_of(folder: Path, source: TensorSource, texts: Texts, **more: object) -> Swept:
    with swept_in(folder, source, texts, **more) as sweep:  # type: ignore[arg-type]
        return sweep.run()


def assert_same(found: Swept, expected: Swept) -> None:
    """Equal in every bit."""
    assert found.errors == expected.errors
    assert found.sums.keys() == expected.sums.keys()
    for name, sums in expected.sums.items():
        assert np.array_equal(found.sums[name].squares, sums.squares), name
        assert np.array_equal(found.sums[name].counts, sums.counts), name
    assert found.exchanged == expected.exchanged
    for number, kld in expected.klds.items():
        assert np.array_equal(found.klds[number], kld), expected.branches[number]


@pytest.mark.parametrize("name", [*CUT, *WHOLE])
def test_a_sweep_equals_the_loaded_model(tmp_path: Path, name: str) -> None:
    source = write_model(name, tmp_path)
    assert cut(source).is_whole == (name in WHOLE)
    texts = texts_of(source)
    swept = sweep_of(tmp_path / "sweep", source, texts)
    loaded = LoadedModel(gguf_of(source, tmp_path), texts.bos)

    assert texts.calibration is not None
    sums = loaded.sums(texts.calibration)
    assert swept.sums.keys() == sums.keys()
    for weight, of in sums.items():
        ours, theirs = entry_of(swept.sums[weight]), entry_of(of)
        assert np.array_equal(ours.sums, theirs.sums), weight
        assert np.array_equal(ours.counts, theirs.counts), weight

    assert texts.held_out is not None
    expected = loaded.logits_file(texts.held_out, header_for(source, texts))
    assert (tmp_path / "sweep" / "base.logits").read_bytes() == expected

    assert texts.costs is not None
    errors = {entry.name: entry.errors for entry in swept.errors}
    importance = {weight: entry_of(of).importance() for weight, of in sums.items()}
    klds = loaded.klds(swept.branches, texts.costs, errors, importance, RECIPE.probe_error)
    assert klds.keys() == swept.klds.keys()
    moved = 0
    for number, (exchanged, kld) in klds.items():
        branch = swept.branches[number]
        ours = swept.exchanged[number]
        assert (ours.types, ours.gains) == (exchanged.types, exchanged.gains), branch
        assert ours.errors == pytest.approx(exchanged.errors, rel=1e-9), branch
        assert np.array_equal(swept.klds[number], kld), branch
        moved += bool(kld.any())
    assert moved > len(klds) // 2  # else a sweep that exchanges nothing would pass
    assert not swept.klds[len(swept.branches) - 1].any()  # the null branch
    loaded.close()


class Stopped(Exception):
    """In the place of a kill."""


class Stopping(Progress):
    """Raises once `tokens` layer-tokens are done."""

    def __init__(self, tokens: float) -> None:
        self._left = tokens

    def start(self, total: float, unit: str, what: str = "", done: float = 0) -> None:
        self._left -= done

    def advance(self, amount: float) -> None:
        self._left -= amount
        if self._left < 0:
            raise Stopped


class Counting(Progress):
    total = done = 0.0

    def start(self, total: float, unit: str, what: str = "", done: float = 0) -> None:
        self.total, self.done = total, done

    def advance(self, amount: float) -> None:
        self.done += amount


@pytest.fixture
def model(tmp_path: Path) -> TensorSource:
    return write_model("nemotron_h_moe", tmp_path)


def test_an_interrupted_sweep_gives_the_same(tmp_path: Path, model: TensorSource) -> None:
    texts, counting = texts_of(model), Counting()
    expected = sweep_of(tmp_path / "whole", model, texts, progress=counting)
    logits = (tmp_path / "whole" / "base.logits").read_bytes()
    assert counting.done == counting.total
    random = np.random.default_rng(3)
    again = tmp_path / "again"
    for at in np.sort(random.uniform(0, counting.total, 12)):
        with pytest.raises(Stopped):
            sweep_of(again, model, texts, progress=Stopping(at))
    resumed = Counting()
    assert_same(sweep_of(again, model, texts, progress=resumed), expected)
    assert (again / "base.logits").read_bytes() == logits
    assert resumed.done == resumed.total == counting.total


def test_a_window_that_is_done_is_not_run_again(tmp_path: Path, model: TensorSource) -> None:
    texts, counting = texts_of(model), Counting()
    sweep_of(tmp_path / "whole", model, texts, progress=counting)
    with pytest.raises(Stopped):
        sweep_of(tmp_path / "again", model, texts, progress=Stopping(counting.total * 0.6))
    lines = (tmp_path / "again" / "windows.jsonl").read_text().splitlines()[1:]
    began: list[float] = []

    class Begins(Counting):
        def start(self, total: float, unit: str, what: str = "", done: float = 0) -> None:
            began.append(done)

    sweep_of(tmp_path / "again", model, texts, progress=Begins())
    assert 0 < len(lines) < len(cut(model).windows)
    assert 0 < began[0] <= counting.total * 0.6


def test_another_text_begins_anew(tmp_path: Path, model: TensorSource) -> None:
    texts = texts_of(model)
    with pytest.raises(Stopped):
        sweep_of(tmp_path / "again", model, texts, progress=Stopping(2000))
    assert texts.costs is not None
    other = replace(texts, costs=texts.costs[::-1].copy())
    found = sweep_of(tmp_path / "again", model, other)
    assert_same(found, sweep_of(tmp_path / "other", model, other))


@pytest.mark.parametrize("name", ["nemotron_h_moe", "llama, tied, its frequencies scaled", "mamba"])
def test_batches_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    source = write_model(name, tmp_path)
    texts = texts_of(source)
    expected = sweep_of(tmp_path / "large", source, texts)
    monkeypatch.setattr(estimate, "COMPUTE_BYTES", (1, 1))
    monkeypatch.setattr(estimate, "LOGITS_BYTES", (1, 1))
    monkeypatch.setattr(estimate, "AHEAD_BYTES", (1, 1))
    found = sweep_of(tmp_path / "small", source, texts)
    assert found.errors == expected.errors
    for weight, sums in expected.sums.items():
        assert np.array_equal(entry_of(found.sums[weight]).sums, entry_of(sums).sums)
    for number, kld in expected.klds.items():
        assert np.array_equal(found.klds[number], kld)
    small, large = tmp_path / "small" / "base.logits", tmp_path / "large" / "base.logits"
    assert small.read_bytes() == large.read_bytes()


def test_differences_in_f16_are_exact_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: TensorSource
) -> None:
    """KLD within a thousandth of a probe's: the rest of its 8 % standard error does not show it."""
    texts = texts_of(model)
    exact = sweep_of(tmp_path / "exact", model, texts)
    monkeypatch.setattr(estimate, "EXACT_BRANCHES_BYTES", 0)
    found = sweep_of(tmp_path / "f16", model, texts)
    sizes = [
        sum(path.stat().st_size for path in (tmp_path / kind).glob("branches.*"))
        for kind in ("exact", "f16")
    ]
    assert sizes[1] < 0.6 * sizes[0]
    for number, branch in enumerate(exact.branches):
        if branch.kind == "probe":
            assert found.klds[number].mean() == pytest.approx(exact.klds[number].mean(), rel=2e-3)
    assert not found.klds[len(found.branches) - 1].any()


def test_a_unit_of_several_windows_is_exchanged_in_each(tmp_path: Path) -> None:
    source = write_model("llama, untied", tmp_path)
    recipe = RECIPE.model_copy(update={"groups": (r"(ffn_down)\.weight",)})
    texts = texts_of(source)
    swept = sweep_of(tmp_path / "sweep", source, texts, recipe=recipe)
    number = next(n for n, b in enumerate(swept.branches) if len(b.unit) > 1)
    assert swept.exchanged[number].types.keys() == set(swept.branches[number].unit)
    loaded = LoadedModel(gguf_of(source, tmp_path), texts.bos)
    errors = {entry.name: entry.errors for entry in swept.errors}
    importance = {weight: entry_of(of).importance() for weight, of in swept.sums.items()}
    branch = [swept.branches[number]]
    assert texts.costs is not None
    klds = loaded.klds(branch, texts.costs, errors, importance, recipe.probe_error)
    assert np.array_equal(swept.klds[number], klds[0][1])
    loaded.close()


def test_a_ready_importance_weighs_errors_and_probes(tmp_path: Path, model: TensorSource) -> None:
    texts = texts_of(model)
    collected = sweep_of(tmp_path / "collected", model, texts)
    importance = {name: entry_of(sums).importance() for name, sums in collected.sums.items()}
    without = replace(texts, calibration=None)
    found = sweep_of(tmp_path / "ready", model, without, importance=importance)
    assert not found.sums
    assert_same(replace(found, sums=collected.sums), collected)


@pytest.mark.parametrize("name", ["nemotron_h_moe", "mamba"])
def test_importance_alone_needs_no_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    source = write_model(name, tmp_path)
    texts = texts_of(source)
    expected = sweep_of(tmp_path / "all", source, texts)
    folder = tmp_path / "alone"
    folder.mkdir()
    only = Texts(texts.bos, calibration=texts.calibration)
    found = Sweep(cut(source), source, only, folder, CPU, SILENT).run()
    assert not found.errors
    assert not found.branches
    for weight, sums in expected.sums.items():
        assert np.array_equal(entry_of(found.sums[weight]).sums, entry_of(sums).sums)


def test_weights_are_read_once(tmp_path: Path, model: TensorSource) -> None:
    rows: dict[str, int] = {}

    def counted(read: Callable[[str, int, int], object]) -> Callable[[str, int, int], object]:
        def reading(name: str, start: int, stop: int) -> object:
            rows[name] = rows.get(name, 0) + stop - start
            return read(name, start, stop)

        return reading

    model.read_stored = counted(model.read_stored)  # type: ignore[method-assign, assignment]
    sweep_of(tmp_path / "sweep", model, texts_of(model))
    inside = {name for window in cut(model).windows for name in window.stored.values()}
    for info in model.tensors:
        if info.name in inside and info.name != "rope_freqs.weight":
            assert rows[info.name] == info.rows, info.name
