"""What errors cost: weights exchanged in the loaded demo model, against files of those values."""

from __future__ import annotations

import dataclasses
import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from demo_artifacts import write_demo
from models import write_gguf
from places import DATA
from watched import Killed, Recorder

from quantkit.config.recipe import ImatrixRecipe, MeasureRecipe
from quantkit.core.errors import InputError
from quantkit.core.progress import told_to
from quantkit.formats.imatrix_file import Imatrix, ImatrixEntry, read_imatrix, write_imatrix
from quantkit.formats.tensor_types import quant_type
from quantkit.llamacpp import ggml_kernels
from quantkit.llamacpp.llama import Context, Model
from quantkit.llamacpp.settings import DeviceSettings, parallel_sequences
from quantkit.models.gguf_source import GGUFSource
from quantkit.study.calibration.sources import resolve_sources
from quantkit.study.costs import (
    CostInputs,
    CostJob,
    MeasuredCosts,
    held_out,
    measure_costs,
    measure_in_child,
)
from quantkit.study.kld_statistics import BaseDistribution

TEXT = DATA / "imatrix" / "demo-4x512.txt"
DEVICES = DeviceSettings(threads=1, use_extra_buffers=False, gpu_layers=0)
MAMBA, EXPERTS = "blk.0.ssm_in.weight", "blk.1.ffn_up_exps.weight"
EMBEDDING, NEVER_RUN = "token_embd.weight", "blk.7.nextn.eh_proj.weight"
CALIBRATION = ImatrixRecipe(texts=(str(TEXT),), chunk_tokens=128, chunks=4)
RECIPE = MeasureRecipe(
    candidates=("Q8_0", "Q4_0"), cost_chunks=3, cost_chunk_tokens=64, probe_error=0.0
)
ERRORS = {name: {"Q8_0": 3e-5, "Q4_0": 7e-3} for name in (MAMBA, EXPERTS, EMBEDDING)}


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> CostJob:
    folder = tmp_path_factory.mktemp("costs")
    base = write_demo(folder / "base.gguf", "F32")
    random = np.random.default_rng(2)
    entries = {}
    for info in GGUFSource(base).tensors:
        if info.name in (MAMBA, EXPERTS):
            sums = random.uniform(0.5, 2, (info.matrices, info.row_elements)).astype(np.float32)
            entries[info.name] = ImatrixEntry(sums, np.ones(info.matrices, np.float32))
    write_imatrix(folder / "imatrix.gguf", Imatrix(entries, 128, 4, ("text",)))
    units = ((EMBEDDING,), (MAMBA,), (EXPERTS,), (NEVER_RUN,))
    sources = tuple(resolve_sources(CALIBRATION))
    inputs = CostInputs(base, folder / "imatrix.gguf", CALIBRATION, sources, used_chunks=4)
    return CostJob(inputs, units, ERRORS, RECIPE)


def with_inputs(job: CostJob, **changes: Any) -> CostJob:  # noqa: ANN401
    return dataclasses.replace(job, inputs=dataclasses.replace(job.inputs, **changes))


@pytest.fixture(scope="module")
def measured(job: CostJob, tmp_path_factory: pytest.TempPathFactory) -> MeasuredCosts:
    return measure_costs(job, tmp_path_factory.mktemp("work"), DEVICES)


def logits_of(model: Path, tokens: np.ndarray) -> np.ndarray:
    """Of all chunks side by side, as the measurement runs them."""
    count, size = tokens.shape
    loaded = Model(model, DEVICES)
    context = Context(loaded, parallel_sequences(count, size))
    logits = context.decode_together(list(tokens)).copy()
    context.close()
    loaded.close()
    return logits


@pytest.mark.parametrize("name", [MAMBA, EXPERTS, EMBEDDING])
def test_equal_to_a_file_with_the_same_values(
    job: CostJob, measured: MeasuredCosts, name: str, tmp_path: Path
) -> None:
    assert measured.restored_kld == 0.0
    assert measured.tokens == 3 * 64
    assert [unit.tensors for unit in measured.units] == [(EMBEDDING,), (MAMBA,), (EXPERTS,)]
    (probe,) = next(unit for unit in measured.units if unit.tensors == (name,)).probes

    source, kind = GGUFSource(job.inputs.base), quant_type("Q4_0")
    importance = read_imatrix(job.inputs.imatrix).importance()
    arrays = {
        info.name: source.read_rows(info.name, 0, info.rows).reshape(info.shape)
        for info in source.tensors
    }
    width = arrays[name].shape[-1]
    weights = importance.get(name, np.ones((1, width), np.float32))
    parts, lossy = arrays[name].reshape(len(weights), -1, width), []
    for part, column in zip(parts, weights, strict=True):
        raw = ggml_kernels.quantize(kind, part, column if name in importance else None)
        lossy.append(ggml_kernels.dequantize(kind, raw, width))
    lost = np.square(parts - np.stack(lossy), dtype=np.float64)
    total = np.square(parts, dtype=np.float64)
    column = weights[:, None, :].astype(np.float64)
    assert probe.types == {name: "Q4_0"}
    assert probe.gains == {name: 1.0}
    assert probe.errors[name] == pytest.approx(
        (lost * column).sum() / (total * column).sum(), rel=1e-6
    )
    changed = write_gguf(
        tmp_path / "changed.gguf",
        source.metadata,
        {**arrays, name: np.stack(lossy).reshape(arrays[name].shape)},
    )
    model = Model(job.inputs.base, DEVICES)
    text = model.vocab.tokenize(TEXT.read_text(encoding="utf-8"), parse_special=False)
    model.close()
    tokens = text[4 * 128 : 7 * 128].reshape(3, 128)[:, :64]
    base, other = (logits_of(path, tokens) for path in (job.inputs.base, changed))
    with ThreadPoolExecutor(1) as pool:
        kld = BaseDistribution.of(base).divergence(other, pool)
    assert probe.kld == pytest.approx(kld.mean(), rel=1e-9)
    assert probe.kld > 1e-6


def test_small_errors_are_amplified(job: CostJob, measured: MeasuredCosts, tmp_path: Path) -> None:
    recipe = RECIPE.model_copy(update={"probe_error": 0.028})
    amplified = dataclasses.replace(job, recipe=recipe, units=((MAMBA,),))
    (unit,) = measure_costs(amplified, tmp_path, DEVICES).units
    (probe,) = unit.probes
    assert probe.gains[MAMBA] == pytest.approx(2.0)  # of an error of 7e-3
    (plain,) = (unit for unit in measured.units if unit.tensors == (MAMBA,))
    assert probe.error == pytest.approx(4 * plain.probes[0].error, rel=1e-3)
    assert 2 < probe.kld / plain.probes[0].kld < 6


def test_the_floor_is_what_a_tiny_error_costs(measured: MeasuredCosts) -> None:
    for unit in measured.units:
        assert 0 <= unit.floor < 0.5 * unit.probes[0].kld


def test_a_killed_run_resumes_and_gives_the_same(
    job: CostJob, measured: MeasuredCosts, tmp_path: Path
) -> None:
    def run(job: CostJob, kill_after: int | None = None) -> tuple[MeasuredCosts, Recorder]:
        told = Recorder(kill_after)
        return measure_in_child(job, tmp_path, DEVICES, told_to(told)), told

    with pytest.raises(Killed):
        run(job, kill_after=2)
    assert len((tmp_path / "costs.jsonl").read_text().splitlines()) == 1 + 2
    found, told = run(job)
    assert found == measured
    assert (told.starts, told.advances) == ([(2, 3)], 1)
    assert any("192" in note for note in told.notes)
    found, told = run(job)  # which was killed at its very end
    assert (found, told.advances) == (measured, 0)
    _, told = run(with_inputs(job, used_chunks=0))  # another text: nothing is reused
    assert told.starts == [(0, 3)]


@pytest.mark.parametrize(
    "change",
    [
        {"tensors": ["blk.9.ssm_in.weight"]}, {"tensors": 3}, {"probes": []}, {"floor": None},
        {"floor": math.nan}, {"probes": [{"kld": 1}]}, {"kld": math.nan}, {"kld": "1"},
        {"standard_error": -1}, {"errors": {}}, {"types": {MAMBA: 3}}, {"gains": {MAMBA: math.inf}},
    ],
)  # fmt: skip
def test_a_damaged_line_is_refused(
    change: dict[str, object], job: CostJob, measured: MeasuredCosts, tmp_path: Path
) -> None:
    one = dataclasses.replace(job, units=((MAMBA,),))
    (unit,) = (unit for unit in measured.units if unit.tensors == (MAMBA,))
    kept, line = tmp_path / "costs.jsonl", dataclasses.asdict(unit)
    if change.keys() <= line.keys():
        line |= change
    else:
        line["probes"] = [probe | change for probe in line["probes"]]
    with pytest.raises(Killed):
        measure_in_child(one, tmp_path, DEVICES, told_to(Recorder(kill_after=1)))
    purpose, _ = kept.read_text().splitlines()
    kept.write_text(f"{purpose}\n{json.dumps(line)}\n")
    with pytest.raises(InputError, match=r"costs\.jsonl, line 2"):
        measure_in_child(one, tmp_path, DEVICES, told_to(Recorder()))


def test_one_unit_of_everything(job: CostJob, tmp_path: Path) -> None:
    one = dataclasses.replace(job, units=((EMBEDDING, MAMBA, EXPERTS),))
    (unit,) = measure_costs(one, tmp_path, DEVICES).units
    assert set(unit.probes[0].errors) == {EMBEDDING, MAMBA, EXPERTS}
    assert unit.floor == 0.0  # it begins before the layers, where none was measured


def test_the_floor_is_by_layer_whatever_the_order_of_units(job: CostJob, tmp_path: Path) -> None:
    names = [f"blk.{layer}.ssm_in.weight" for layer in (4, 0)]
    errors = dict.fromkeys(names, ERRORS[MAMBA])
    found = []
    for order in (names, names[::-1]):
        changed = dataclasses.replace(job, units=tuple((n,) for n in order), errors=errors)
        units = measure_costs(changed, tmp_path / order[0], DEVICES).units
        found.append({unit.tensors[0]: unit.floor for unit in units})
    assert found[0] == found[1]
    assert found[0][names[1]] != found[0][names[0]]


def test_a_base_in_four_bits(job: CostJob, tmp_path: Path) -> None:
    base = write_demo(tmp_path / "coarse.gguf", "Q4_0")
    exact = {name: {"Q8_0": 3e-5, "Q4_0": 0.0, "Q4_K": 5e-3} for name in (MAMBA, EMBEDDING)}
    recipe = RECIPE.model_copy(
        update={"candidates": ("Q8_0", "Q4_0", "Q4_K"), "probe_error": 0.02, "cost_chunks": 2}
    )
    coarse = dataclasses.replace(
        with_inputs(job, base=base), units=((MAMBA,), (EMBEDDING,)), errors=exact, recipe=recipe
    )
    units = measure_costs(coarse, tmp_path, DEVICES).units
    assert len(units) == 2
    for unit in units:
        (probe,) = unit.probes
        assert unit.floor < 0.1 * probe.kld
        assert set(probe.types.values()) == {"Q4_K"}  # its own has no error
        assert probe.kld > 0


def test_a_text_that_is_too_short(job: CostJob, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("four score and seven", encoding="utf-8")
    calibration = CALIBRATION.model_copy(update={"texts": (str(tmp_path / "short.txt"),)})
    sources = tuple(resolve_sources(calibration))
    short = with_inputs(job, calibration=calibration, sources=sources, used_chunks=0)
    with pytest.raises(InputError, match="128"):
        measure_costs(short, tmp_path, DEVICES)


def test_chunks_longer_than_the_calibrations_are_told(job: CostJob, tmp_path: Path) -> None:
    recipe = RECIPE.model_copy(update={"cost_chunk_tokens": 512})
    told = Recorder()
    longer = dataclasses.replace(job, recipe=recipe, units=((MAMBA,),))
    assert measure_in_child(longer, tmp_path, DEVICES, told_to(told)).tokens == 3 * 128
    assert any("512" in note for note in told.notes)


def test_text_that_the_imatrix_did_not_see() -> None:
    chunks = np.arange(20).reshape(10, 2)
    found, overlap = held_out(chunks, used=6, count=3)
    assert found.tolist() == chunks[6:9].tolist()
    assert overlap == 0
    found, overlap = held_out(chunks, used=8, count=3)
    assert sorted(found[:, 0]) == [14, 16, 18]
    assert overlap == 1
    found, overlap = held_out(chunks, used=10, count=30)
    assert len(found) == overlap == 10
