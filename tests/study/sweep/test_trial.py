"""The trial before a sweep: when there is one, what it loads, and that it changes nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cut_models import write_model
from models import CPU

from quantkit.config.recipe import MeasureRecipe
from quantkit.core.progress import Progress
from quantkit.formats.tensors import TensorSource
from quantkit.study.sweep import trial, windows
from quantkit.study.sweep.cuts import Window, cut
from quantkit.study.sweep.estimate import SweepSizes, TextShape, TextShapes
from quantkit.study.sweep.sweep import Sweep, Swept, Texts

RECIPE = MeasureRecipe(candidates=("Q8_0", "Q4_0"), sample_rows=8)


class Said(Progress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, sentence: str) -> None:
        self.notes.append(sentence)


def swept(source: TensorSource, folder: Path, said: Said) -> Swept:
    folder.mkdir()
    vocabulary = next(i.rows for i in source.tensors if i.name == "token_embd.weight")
    random = np.random.default_rng(7)
    chunks = [random.integers(0, vocabulary, (2, 64)).astype(np.int32) for _ in range(2)]
    texts = Texts(None, chunks[0], None, chunks[1])
    return Sweep(cut(source), source, texts, folder, CPU, said, recipe=RECIPE).run()


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[Window]:
    """The windows that are loaded, one after the other."""
    found: list[Window] = []
    load = windows.load

    def noted(window: Window, *rest: object) -> object:
        found.append(window)
        return load(window, *rest)  # type: ignore[arg-type]

    for module in (windows, trial):
        monkeypatch.setattr(module, "load", noted)
    return found


def test_a_short_sweep_has_no_trial(tmp_path: Path, loaded: list[Window]) -> None:
    said = Said()
    swept(write_model("qwen3", tmp_path), tmp_path / "short", said)
    assert not said.notes
    shapes = [window.shape for window in loaded]
    assert len(set(shapes)) == len(shapes)


@pytest.mark.parametrize("name", ["nemotron_h_moe", "qwen3moe", "mamba"])
def test_a_trial_changes_nothing_and_loads_layers_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loaded: list[Window], name: str
) -> None:
    source = write_model(name, tmp_path)
    expected = swept(source, tmp_path / "without", Said())
    loaded.clear()
    monkeypatch.setattr(trial, "WORTH_SECONDS", 0.0)
    said = Said()
    found = swept(source, tmp_path / "with", said)
    assert len(said.notes) == 1
    again = [window.kind for window in loaded]
    for kind in ("layers", "whole"):
        shapes = {window.shape for window in loaded if window.kind == kind}
        assert again.count(kind) == len(shapes)
    assert again.count("output") in (0, 2)  # it is not kept, so that memory is not taken for it
    if "output" in again:
        assert again[0] == "output"
    for weight, sums in expected.sums.items():
        assert np.array_equal(found.sums[weight].squares, sums.squares), weight
    for number, kld in expected.klds.items():
        assert np.array_equal(found.klds[number], kld), expected.branches[number]
    assert found.errors == expected.errors


def test_a_sweep_that_goes_on_tries_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loaded: list[Window]
) -> None:
    monkeypatch.setattr(trial, "WORTH_SECONDS", 0.0)
    source = write_model("nemotron_h_moe", tmp_path)
    shapes = TextShapes(TextShape(2, 64), None, TextShape(2, 64))
    sizes = SweepSizes(cut(source), source, shapes, RECIPE)
    said = Said()
    kept = trial.announce(sizes, cut(source), tmp_path, CPU, len(sizes.windows) - 1, said)
    assert not kept
    assert [window.kind for window in loaded] == ["output"]
    assert len(said.notes) == 1
    assert f"{sizes.tokens(len(sizes.windows) - 1).total:,}" in said.notes[0]


def test_quantizing_counts_both_types_of_an_exchange(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_model("qwen3", tmp_path)
    shapes = TextShapes(costs=TextShape(2, 64))
    sizes = SweepSizes(cut(source), source, shapes, RECIPE)
    monkeypatch.setattr(trial, "kernel_speeds", lambda kinds: {kind.name: 10.0 for kind in kinds})
    measured, exchanged = sizes.measured_elements(), sizes.exchanged_elements()
    assert measured.keys() == {"Q8_0", "Q4_0"}
    assert {pair[0] for pair in exchanged} == {"Q4_0"}
    expected = (measured.total() + 2 * exchanged.total()) / 10 / 4
    assert trial.quantizing_seconds(sizes, 4) == pytest.approx(expected)
