"""Measuring errors: what has no statistics is unweighted, and never at a type that needs them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from models import WIDTH, write_llama

from quantkit.formats.gguf_file import GGUFSource
from quantkit.quant_types import BY_NAME, quant_type
from quantkit.recipe import MeasureRecipe
from quantkit.stages.measure import admissible, measure, relative_error, sample

NEEDY, ALWAYS = ("IQ2_XXS",), ("Q8_0", "Q4_K")
RECIPE = MeasureRecipe(candidates=(*ALWAYS, *NEEDY), sample_rows=16, sample_experts=1)
KNOWN = "blk.0.attn_q.weight"


@pytest.fixture
def source(tmp_path: Path) -> GGUFSource:
    return GGUFSource(write_llama(tmp_path / "m.gguf"))


def test_without_statistics_no_type_that_needs_them(source: GGUFSource, tmp_path: Path) -> None:
    importance = np.linspace(0.1, 9, WIDTH, dtype=np.float32)[None]
    (tmp_path / "work").mkdir()
    found = measure(source, {KNOWN: importance}, RECIPE, tmp_path / "s.json", tmp_path / "work", 1)
    assert set(found.errors[KNOWN]) == {*ALWAYS, *NEEDY}
    others = set(found.errors) - {KNOWN}
    # the embedding, the output, and a layer that the calibration never ran
    assert {"token_embd.weight", "output.weight", "blk.0.ffn_down.weight"} <= others
    for name in others:
        assert set(found.errors[name]) == set(ALWAYS), name


def test_without_statistics_columns_count_alike(source: GGUFSource, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    found = measure(source, {}, RECIPE, tmp_path / "s.json", tmp_path / "work", 1)
    info = next(info for info in source.tensors if info.name == "output.weight")
    pieces = sample(source, info, RECIPE)
    expected = relative_error(quant_type("Q4_K"), pieces, None)
    assert found.errors["output.weight"]["Q4_K"] == expected
    flat = np.ones((1, info.row_elements), np.float32)
    assert relative_error(quant_type("Q8_0"), pieces, flat) == pytest.approx(
        found.errors["output.weight"]["Q8_0"], rel=1e-3
    )


def test_the_rule_holds_for_every_type(source: GGUFSource) -> None:
    info = next(info for info in source.tensors if info.name == "token_embd.weight")
    names = tuple(name for name, kind in BY_NAME.items() if kind.is_quantized)
    allowed = {kind.name for kind in admissible(info, False, names)}
    assert allowed == {
        kind.name for kind in admissible(info, True, names) if not kind.needs_imatrix
    }
    assert not allowed & {"IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_S", "IQ1_M"}
