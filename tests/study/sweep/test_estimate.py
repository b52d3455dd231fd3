"""What a sweep is said to take, against what sweeps take, read, keep and hold."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import flagship
import numpy as np
import pytest
from cut_models import CUT, write_model
from hypothesis import given
from hypothesis import strategies as st
from models import CPU
from numpy.typing import NDArray

from quantkit.config.recipe import DivergenceRecipe, ImatrixRecipe, MeasureRecipe, recipe_for
from quantkit.core.progress import Progress
from quantkit.formats.gguf_writer import single_file_layout, write_shape
from quantkit.formats.logits_file import header_of, rows_bytes
from quantkit.formats.tensor_types import BY_NAME
from quantkit.formats.tensors import ModelHeader, TensorSource
from quantkit.models.choose import choose_model, open_source
from quantkit.study.divergence import LogitsWriter
from quantkit.study.sweep import estimate
from quantkit.study.sweep.cuts import cut
from quantkit.study.sweep.estimate import SweepSizes, TextShape, TextShapes, study_sizes
from quantkit.study.sweep.memory import batches_of, context_bytes, memory_of
from quantkit.study.sweep.sweep import Sweep, Texts

RECIPE = MeasureRecipe(candidates=("Q8_0", "Q4_0", "IQ4_NL"), sample_rows=8, sample_experts=2)
SHAPES = TextShapes(TextShape(3, 64), TextShape(2, 64), TextShape(3, 32))
FLAGSHIP = recipe_for("nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-BF16")
Chunks = NDArray[np.int32]


class Counting(Progress):
    done = 0.0

    def advance(self, amount: float) -> None:
        self.done += amount


def chunks_of(shape: TextShape | None, vocabulary: int) -> Chunks | None:
    if shape is None:
        return None
    random = np.random.default_rng(shape.size)
    return random.integers(0, vocabulary, (shape.chunks, shape.tokens)).astype(np.int32)


def counted(source: TensorSource) -> Callable[[], int]:
    """Returns how many bytes have been read of `source`, in the types of its tensors."""
    read = [0]
    sizes = {i.name: BY_NAME[i.type_name].size_bytes(i.row_elements) for i in source.tensors}
    stored, rows = source.read_stored, source.read_rows

    def counting_stored(name: str, start: int, stop: int) -> object:
        found = stored(name, start, stop)
        read[0] += 0 if found is None else (stop - start) * sizes[name]
        return found

    def counting_rows(name: str, start: int, stop: int) -> object:
        read[0] += (stop - start) * sizes[name]
        return rows(name, start, stop)

    source.read_stored = counting_stored  # type: ignore[method-assign, assignment]
    source.read_rows = counting_rows  # type: ignore[method-assign, assignment]
    return lambda: read[0]


def swept(source: TensorSource, shapes: TextShapes, recipe: MeasureRecipe, folder: Path) -> float:
    """Sweeps in `folder`; returns the tokens that ran."""
    folder.mkdir()
    vocabulary = SweepSizes(cut(source), source, TextShapes()).vocabulary
    texts = Texts(None, *(chunks_of(shape, vocabulary) for shape in shapes.each))
    assert texts.held_out is not None
    header = header_of("model", "text", {}, vocabulary, None, texts.held_out)
    progress = Counting()
    with LogitsWriter(folder / "base.logits", header, texts.held_out, 1) as writer:
        Sweep(
            cut(source), source, texts, folder, CPU, progress, recipe=recipe,
            on_logits=writer.write,
        ).run()  # fmt: skip
    return progress.done


@pytest.mark.parametrize(
    "name", ["nemotron_h_moe", "llama, tied, its frequencies scaled", "gemma3", "mamba"]
)
@pytest.mark.parametrize("differences", [False, True])
def test_a_sweep_takes_what_was_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, differences: bool
) -> None:
    if differences:
        monkeypatch.setattr(estimate, "EXACT_BRANCHES_BYTES", 0)
    source = write_model(name, tmp_path)
    sizes, read = SweepSizes(cut(source), source, SHAPES, RECIPE), counted(source)
    folder = tmp_path / "sweep"
    ran = swept(source, SHAPES, RECIPE, folder)

    windows = range(len(sizes.windows))
    assert ran == sum(sizes.tokens(index).total for index in windows)
    assert read() == sizes.read_bytes
    kept = {path.name: path.stat().st_size for path in folder.iterdir()}
    said = sizes.states_bytes
    for part in ("calibration", "held-out", "costs", "branches"):
        of = sum(kept.get(f"{part}.{turn}", 0) for turn in (0, 1))
        assert of == getattr(said, part.replace("-", "_")), part
    sums = {index: kept[f"sums-{index}.f64"] for index in windows if f"sums-{index}.f64" in kept}
    assert sums == {index: sizes.sums_bytes(index) for index in sums}
    assert len(sums) == len(sizes.windows)
    logits = kept["base.logits"] - rows_bytes(sizes.vocabulary, 2, 64)
    assert 0 < logits < 4096
    if not cut(source).is_whole:
        assert sizes.differences == differences


@pytest.mark.parametrize("name", CUT)
def test_all_that_can_be_cut_is_counted(tmp_path: Path, name: str) -> None:
    """Windows in memory are at least those with which the largest one runs."""
    source = write_model(name, tmp_path)
    sizes = SweepSizes(cut(source), source, SHAPES, RECIPE)
    inside = {name for window in sizes.windows for name in window.stored.values()}
    found = [info for info in source.tensors if info.name in inside]
    assert sizes.read_bytes >= sum(sizes.tensor_bytes(info.name) for info in found)
    assert max(m.windows + m.embedding for m in memory_of(sizes)) >= sizes.largest_window_bytes
    assert sizes.shapes <= len(sizes.windows)
    flop = [sizes.flop(index).total for index in range(len(sizes.windows))]
    assert flop[0] == 0
    assert all(flop[1:])


def test_without_logits_the_output_is_not_swept(tmp_path: Path) -> None:
    source = write_model("qwen3", tmp_path)
    whole = cut(source)
    only = SweepSizes(whole, source, TextShapes(SHAPES.calibration))
    assert len(only.windows) == len(whole.windows) - 1
    assert not only.branches
    assert only.spool_bytes == only.states_bytes.branches == 0
    held = SweepSizes(whole, source, TextShapes(held_out=SHAPES.held_out))
    assert len(held.windows) == len(whole.windows)


@functools.cache
def flagship_sizes() -> SweepSizes:
    model = flagship.model()
    found = study_sizes(model, cut(model), FLAGSHIP.imatrix, FLAGSHIP.measure, FLAGSHIP.divergence)
    return found.main


def test_the_flagship() -> None:
    """Against the numbers that were worked out by hand for it."""
    sizes = flagship_sizes()
    assert len(sizes.windows) == 90  # 88 layers, the embedding and the output
    assert sizes.shapes == 5
    assert sizes.read_bytes == pytest.approx(241.5e9, rel=0.001)
    flop = [sizes.flop(index) for index in range(90)]
    assert sum(part.calibration for part in flop) == pytest.approx(204_800 * 24e9, rel=0.05)
    assert sizes.differences
    memory = memory_of(sizes)
    assert max(one.gpu_bytes for one in memory) < 24e9
    assert max(one.host_bytes(16) for one in memory) < 32e9
    assert max(one.ram_bytes(16) for one in memory) < 32e9


def test_llama_cpp_plans_no_more_than_was_said(tmp_path: Path) -> None:
    """For windows of the flagship and of the demo; and not a fraction of it."""
    demo = open_source(choose_model("demo"))
    asked, said, names = [], [], []
    for sizes in (flagship_sizes(), SweepSizes(cut(demo), demo, SHAPES, RECIPE)):
        windows = dict(zip(sizes.shape_of, sizes.windows, strict=True))
        for window in windows.values():
            if window.kind == "embedding":
                continue
            folder = tmp_path / str(len(asked))
            folder.mkdir()
            layout = single_file_layout("window", window.metadata, window.tensors)
            header = str(write_shape(folder, layout))
            asked.append((header, sizes.width, batches_of(sizes, window)))
            said.append(context_bytes(sizes, window))
            names.append(window.name)
    done = subprocess.run(
        [sys.executable, "-c", PLANNED, json.dumps(asked)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    planned = json.loads(done.stdout)
    assert len(planned) == len(said) == 8
    for name, ours, theirs in zip(names, said, planned, strict=True):
        assert ours / 5 < theirs <= ours, name


PLANNED = """
import json, sys
from pathlib import Path
from quantkit.llamacpp.llama import Context, Model
from quantkit.llamacpp.memory_plan import used_memory
from quantkit.llamacpp.settings import DeviceSettings, parallel_sequences

found = []
for header, width, batches in json.loads(sys.argv[1]):
    model, sizes = Model(Path(header), DeviceSettings(2, False, 0), weightless=True), []
    for batch in batches:
        context = Context(model, parallel_sequences(*batch), None, width)
        used = used_memory(context.handle).values()
        sizes.append(sum(use.context + use.compute for use in used))
        context.close()
    model.close()
    found.append(max(sizes))
print(json.dumps(found))
"""


def test_a_sweep_holds_about_what_was_said(tmp_path: Path) -> None:
    """Within a factor of two, of which Python with its libraries is a part."""
    shapes = TextShapes(TextShape(16, 512), TextShape(2, 512), TextShape(8, 128))
    demo = open_source(choose_model("demo"))
    sizes = SweepSizes(cut(demo), demo, shapes, MeasureRecipe(candidates=("Q8_0", "Q4_0")))
    said = max(memory.ram_bytes(1) for memory in memory_of(sizes))
    done = subprocess.run(
        [sys.executable, "-c", HELD, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert said / 2 < 1024 * int(done.stdout) < said


HELD = """
import re, sys
from pathlib import Path
import numpy as np
from quantkit.config.recipe import MeasureRecipe
from quantkit.core.progress import SILENT
from quantkit.llamacpp.child import give_memory_back
from quantkit.llamacpp.settings import DeviceSettings
from quantkit.models.choose import choose_model, open_source
from quantkit.study.sweep.cuts import cut
from quantkit.study.sweep.sweep import Sweep, Texts

give_memory_back()
source, recipe = open_source(choose_model("demo")), MeasureRecipe(candidates=("Q8_0", "Q4_0"))
chunks = [np.ones(shape, np.int32) for shape in ((16, 512), (2, 512), (8, 128))]
devices = DeviceSettings(1, False, 0)
Sweep(
    cut(source), source, Texts(None, *chunks), Path(sys.argv[1]), devices, SILENT,
    recipe=recipe, on_logits=lambda _, parts: [part.sum() for part in parts],
).run()
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


TEXTS = st.builds(TextShape, st.integers(1, 500), st.sampled_from([32, 128, 512, 2048]))


@given(TEXTS, TEXTS, TEXTS)
def test_estimates_grow_with_the_texts(a: TextShape, b: TextShape, c: TextShape) -> None:
    model = flagship.model()
    whole = flagship_cut()
    of = functools.partial(SweepSizes, whole, model)
    one = of(TextShapes(a, b, c))
    two = of(TextShapes(TextShape(2 * a.chunks, a.tokens), b, TextShape(c.chunks + 1, c.tokens)))
    for index in (0, 1, 2, 8, 89):
        assert two.flop(index).calibration == 2 * one.flop(index).calibration
        assert two.flop(index).held_out == one.flop(index).held_out
        assert two.tokens(index).costs == one.tokens(index).costs + c.tokens
    assert two.read_bytes == one.read_bytes
    assert two.states_bytes.total > one.states_bytes.total
    assert two.states_written_bytes > one.states_written_bytes
    for window in one.windows:
        batch = one.batch_tokens(window)
        assert batch % estimate.ROWS == 0
        assert estimate.ROWS <= batch <= estimate.BATCH_TOKENS
        assert 1 <= one.capacity(window, a.tokens) <= estimate.MAX_SEQUENCES
        assert one.capacity(window, a.tokens) * a.tokens <= max(batch, a.tokens)


@functools.cache
def flagship_cut() -> object:
    return cut(flagship.model())


def test_covering_experts_takes_a_sweep_of_its_own() -> None:
    model: ModelHeader = flagship.model()
    plain, covering = (
        study_sizes(
            model, cut(model), ImatrixRecipe(chunks=50, until_covered=n), None, DivergenceRecipe()
        )
        for n in (0, 10)
    )
    assert len(plain.sweeps) == 1
    first, second = covering.sweeps
    assert first.texts == TextShapes(TextShape(64, 512))
    assert second.texts.calibration is None
    assert covering.read_bytes > 1.9 * plain.read_bytes
    assert plain.logits_bytes == covering.logits_bytes > 0


def test_the_recipe_may_leave_costs_out() -> None:
    model = flagship.model()
    recipe = MeasureRecipe(cost_tokens=0)
    found = study_sizes(model, cut(model), None, recipe, None)
    assert found.main.texts == TextShapes()
    assert not found.main.branches
    assert found.flop.total == found.tokens.total == 0
    assert found.main.measured_elements().total() > 0
    json.dumps(found.main.measured_elements())
