"""Relative errors: of all rows, of samples, with statistics and without."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from models import WIDTH, llama_metadata, write_gguf, write_llama
from numpy.typing import NDArray

from quantkit.config.recipe import MeasureRecipe
from quantkit.formats.tensor_types import quant_type
from quantkit.llamacpp import ggml_kernels
from quantkit.models.gguf_source import GGUFSource
from quantkit.quantize import encode
from quantkit.quantize.candidates import is_quantizable
from quantkit.study import errors as module
from quantkit.study.errors import (
    TensorErrors,
    column_weights,
    elements_of_errors,
    relative_error,
    sample,
    tensor_errors,
)

NEEDY, ALWAYS = ("IQ2_XXS",), ("Q8_0", "Q4_K")
RECIPE = MeasureRecipe(candidates=(*ALWAYS, *NEEDY), sample_rows=16, sample_experts=1)
KNOWN = "blk.0.attn_q.weight"
STACK = "blk.0.ffn_up_exps.weight"
Importance = Mapping[str, NDArray[np.float32]]
Measure = Callable[..., dict[str, TensorErrors]]


@pytest.fixture
def source(tmp_path: Path) -> GGUFSource:
    return GGUFSource(write_llama(tmp_path / "m.gguf"))


@pytest.fixture
def run() -> Measure:
    def measure(
        source: GGUFSource, importance: Importance, recipe: MeasureRecipe = RECIPE
    ) -> dict[str, TensorErrors]:
        infos = [info for info in source.tensors if is_quantizable(info)]
        with ThreadPoolExecutor(2) as pool:
            found = [tensor_errors(source, info, importance, recipe, pool) for info in infos]
        return {entry.name: entry for entry in found if entry.errors}

    return measure


def test_without_statistics_no_type_that_needs_them(source: GGUFSource, run: Measure) -> None:
    importance = np.linspace(0.1, 9, WIDTH, dtype=np.float32)[None]
    found = run(source, {KNOWN: importance})
    assert set(found[KNOWN].errors) == {*ALWAYS, *NEEDY}
    others = set(found) - {KNOWN}
    # the embedding, the output, and a layer that the calibration never ran
    assert {"token_embd.weight", "output.weight", "blk.0.ffn_down.weight"} <= others
    for name in others:
        assert set(found[name].errors) == set(ALWAYS), name


def test_the_error_is_the_weighted_share_of_the_energy(source: GGUFSource, run: Measure) -> None:
    column = np.linspace(0.1, 9, WIDTH, dtype=np.float32)
    recipe = RECIPE.model_copy(update={"sample_rows": 0})
    found = run(source, {KNOWN: column[None]}, recipe)[KNOWN]
    rows = source.read_rows(KNOWN, 0, WIDTH)
    for name in (*ALWAYS, *NEEDY):
        kind = quant_type(name)
        restored = ggml_kernels.dequantize(kind, ggml_kernels.quantize(kind, rows, column), WIDTH)
        lost = (column * np.square(rows - restored, dtype=np.float64)).sum()
        total = (column * np.square(rows, dtype=np.float64)).sum()
        assert found.errors[name] == pytest.approx(lost / total, rel=1e-9)
    assert found.rows == WIDTH
    assert found.standard_error == 0.0


def test_without_statistics_columns_count_alike(source: GGUFSource, run: Measure) -> None:
    found = run(source, {})["output.weight"].errors["Q8_0"]
    info = next(info for info in source.tensors if info.name == "output.weight")
    flat = np.ones((1, info.row_elements), np.float32)
    weighted, _ = relative_error(quant_type("Q8_0"), sample(source, info, flat, RECIPE), flat)
    assert weighted == pytest.approx(found, rel=1e-3)


@pytest.fixture
def uneven(tmp_path: Path) -> GGUFSource:
    """Six experts of 512 rows; one row in a hundred has a thousand times the others' energy."""
    random = np.random.default_rng(5)
    stack = random.standard_normal((6, 512, 64), np.float32)
    stack[:, ::100] *= 40
    return GGUFSource(write_gguf(tmp_path / "uneven.gguf", llama_metadata(), {STACK: stack}))


def spread(
    source: GGUFSource, recipe: MeasureRecipe, seeds: int = 40
) -> tuple[float, float, float]:
    """(mean error, its deviation over seeds, mean of the standard errors that were stated)."""
    (info,) = source.tensors
    kind = quant_type("Q4_0")
    found = [
        relative_error(
            kind, sample(source, info, None, recipe.model_copy(update={"seed": seed})), None
        )
        for seed in range(seeds)
    ]
    means, stated = np.array(found).T
    return float(means.mean()), float(means.std()), float(stated.mean())


@pytest.mark.parametrize(("rows", "experts"), [(96, 0), (96, 3), (0, 3)])
def test_a_sample_is_unbiased_and_knows_its_error(
    uneven: GGUFSource, rows: int, experts: int
) -> None:
    recipe = MeasureRecipe(candidates=("Q4_0",), sample_rows=0, sample_experts=0)
    truth, none, _ = spread(uneven, recipe, seeds=2)
    assert none == 0.0
    changed = recipe.model_copy(update={"sample_rows": rows, "sample_experts": experts})
    mean, deviation, stated = spread(uneven, changed)
    assert mean == pytest.approx(truth, abs=4 * deviation / 40**0.5)
    assert deviation < 0.1 * truth  # equal chances for rows give 0.3 and more
    assert 0.6 * deviation < stated < 4 * deviation  # equidistant points do better than stated


def test_a_seed_draws_the_same_sample_for_ever(
    uneven: GGUFSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recorded results name their seed. Blocks of 100 rows: each expert has six, the last of 12."""
    monkeypatch.setattr(encode, "ROWS_BYTES", 4 * 64 * 100)
    (info,) = uneven.tensors
    stack = uneven.read_rows(STACK, 0, info.rows).reshape(info.shape)
    importance = np.linspace(0.5, 4, 6 * 64, dtype=np.float32).reshape(6, 64)
    recipe = MeasureRecipe(candidates=("Q4_0",), sample_rows=36, sample_experts=3, seed=7)
    drawn = sample(uneven, info, importance, recipe)
    assert drawn.matrices == 6
    expected = {
        1: {0: 3, 100: 2, 200: 2, 300: 1, 374: 1, 400: 1, 500: 2},
        3: {0: 2, 100: 2, 200: 2, 300: 2, 317: 1, 400: 2, 500: 1},
        5: {0: 1, 67: 1, 100: 1, 200: 2, 239: 1, 300: 1, 388: 1, 400: 1, 478: 1, 500: 2},
    }
    assert [piece.matrix for piece in drawn.pieces] == list(expected)
    for piece, counts in zip(drawn.pieces, expected.values(), strict=True):
        assert piece.counts.tolist() == list(counts.values())
        assert np.array_equal(piece.rows, stack[piece.matrix, list(counts)])
        column = column_weights(importance, piece.matrix, 64)
        every = np.square(stack[piece.matrix], dtype=np.float64) @ column
        assert piece.energy == pytest.approx(every.sum(), rel=1e-12)
        assert piece.energies == pytest.approx(every[list(counts)], rel=1e-12)
        assert not piece.whole


def test_the_weight_of_a_column_is_capped() -> None:
    importance = np.array([[1, 2, 3, 0, 2e6], [0, 0, 0, 0, 0]], np.float32)
    assert column_weights(importance, 0, 5).tolist() == [1, 2, 3, 0, module.LARGEST_WEIGHT * 2.5]
    assert column_weights(importance, 1, 5).tolist() == [0] * 5
    assert column_weights(None, 7, 3).tolist() == [1, 1, 1]


def test_a_tensor_of_zeros_has_no_error(tmp_path: Path, run: Measure) -> None:
    arrays = {"blk.0.attn_q.weight": np.zeros((64, 256), np.float32)}
    source = GGUFSource(write_gguf(tmp_path / "zero.gguf", llama_metadata(), arrays))
    assert run(source, {})["blk.0.attn_q.weight"].errors == {"Q8_0": 0.0, "Q4_K": 0.0}


def test_elements_are_counted_by_rows_and_types(source: GGUFSource) -> None:
    infos = [info for info in source.tensors if info.name == KNOWN]
    found = elements_of_errors(infos, (), RECIPE)
    assert found.total() == 2 * 16 * WIDTH
    everything = RECIPE.model_copy(update={"sample_rows": 0})
    assert set(elements_of_errors(infos, (KNOWN,), everything).values()) == {WIDTH * WIDTH}
    assert len(elements_of_errors(infos, (KNOWN,), everything)) == 3
