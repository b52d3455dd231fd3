"""What a sweep writes: costs against files with the same values, notes, and what is refused."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from checkpoints import NEMOTRON, nemotron_arrays, with_prediction_head, write_checkpoint
from demo_artifacts import write_demo
from models import CPU, write_gguf
from numpy.typing import NDArray
from places import DATA
from watched import Killed, Recorder

from quantkit.config.recipe import DivergenceRecipe, ImatrixRecipe, MeasureRecipe
from quantkit.core.errors import EnvironmentFault, InputError
from quantkit.core.progress import told_to
from quantkit.formats.imatrix_file import read_imatrix
from quantkit.formats.tensor_types import quant_type
from quantkit.llamacpp import ggml_kernels
from quantkit.llamacpp.llama import Context, Model
from quantkit.llamacpp.settings import parallel_sequences
from quantkit.models.choose import choose_model
from quantkit.models.gguf_source import GGUFSource
from quantkit.study.calibration.sources import resolve_sources
from quantkit.study.kld_statistics import BaseDistribution
from quantkit.study.sensitivity import Sensitivity
from quantkit.study.sweep import study
from quantkit.study.sweep.study import Measured, SweepJob, measure_model

TEXT = DATA / "imatrix" / "demo-4x512.txt"
MAMBA, EXPERTS, EMBEDDING = "blk.0.ssm_in.weight", "blk.1.ffn_up_exps.weight", "token_embd.weight"
CALIBRATION = ImatrixRecipe(texts=(str(TEXT),), chunk_tokens=128, chunks=4)
RECIPE = MeasureRecipe(
    candidates=("Q8_0", "Q4_0"), cost_tokens=192, cost_chunk_tokens=64, probe_error=0.0,
    sample_rows=16,
)  # fmt: skip


def job_of(base: Path, folder: Path, measure: MeasureRecipe = RECIPE) -> SweepJob:
    folder.mkdir(exist_ok=True)
    return SweepJob(
        choose_model(str(base)),
        base,
        calibration=CALIBRATION,
        sources=tuple(resolve_sources(CALIBRATION)),
        imatrix=folder / "imatrix.gguf",
        measure=measure,
        sensitivity=folder / "sensitivity.json",
        divergence=DivergenceRecipe(chunks=2, chunk_tokens=64),
        text=TEXT,
        logits=folder / "base.logits",
    )


def in_process(job: SweepJob, work: Path, told: Recorder | None = None) -> Measured:
    work.mkdir(exist_ok=True)
    emit = told_to(told or Recorder())
    texts = study.prepare_in_child(job, work, CPU, emit)
    return study.measure_in_child(job, work, CPU, texts, emit)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo(tmp_path_factory.mktemp("base") / "base.gguf", "F32")


@pytest.fixture(scope="module")
def job(base: Path, tmp_path_factory: pytest.TempPathFactory) -> SweepJob:
    return job_of(base, tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def measured(job: SweepJob, tmp_path_factory: pytest.TempPathFactory) -> Sensitivity:
    found = measure_model(job, tmp_path_factory.mktemp("work"), CPU).sensitivity
    assert found is not None
    return found


def logits_of(model: Path, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
    """Of all chunks side by side, as the measurement runs them."""
    loaded = Model(model, CPU)
    context = Context(loaded, parallel_sequences(*tokens.shape))
    logits = context.decode_together(list(tokens)).copy()
    context.close()
    loaded.close()
    return logits


@pytest.mark.parametrize("name", [MAMBA, EXPERTS, EMBEDDING])
def test_equal_to_a_file_with_the_same_values(
    job: SweepJob, measured: Sensitivity, name: str, tmp_path: Path
) -> None:
    assert measured.restored_kld == 0.0
    assert measured.cost_tokens == 192
    (probe,) = next(unit for unit in measured.costs if unit.tensors == (name,)).probes
    assert job.imatrix is not None
    source, kind = GGUFSource(job.path), quant_type("Q4_0")
    importance = read_imatrix(job.imatrix).importance()
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
    assert probe.types == {name: "Q4_0"}
    assert probe.gains == {name: 1.0}
    changed = write_gguf(
        tmp_path / "changed.gguf",
        source.metadata,
        {**arrays, name: np.stack(lossy).reshape(arrays[name].shape)},
    )
    (tmp_path / "work").mkdir()
    texts = study.prepare_in_child(job, tmp_path / "work", CPU, told_to(Recorder()))
    assert texts.costs is not None
    own, other = (logits_of(path, texts.costs) for path in (job.path, changed))
    with ThreadPoolExecutor(1) as pool:
        kld = BaseDistribution.of(own).divergence(other, pool)
    assert probe.kld == pytest.approx(kld.mean(), rel=1e-9)
    assert probe.kld > 1e-6
    assert probe.chunk_klds == pytest.approx(kld.reshape(3, 64).mean(axis=1), rel=1e-9)


def test_small_errors_are_amplified(base: Path, measured: Sensitivity, tmp_path: Path) -> None:
    aim = 4 * measured.errors[MAMBA]["Q4_0"]
    recipe = RECIPE.model_copy(update={"probe_error": aim})
    found = in_process(job_of(base, tmp_path / "out", recipe), tmp_path / "work").sensitivity
    assert found is not None
    probe, plain = (
        next(unit for unit in of.costs if unit.tensors == (MAMBA,)).probes[0]
        for of in (found, measured)
    )
    assert probe.gains[MAMBA] == pytest.approx(2.0)
    assert probe.error == pytest.approx(4 * plain.error, rel=1e-3)
    assert 2 < probe.kld / plain.kld < 6


def test_the_floor_is_what_a_tiny_error_costs(measured: Sensitivity) -> None:
    floors = {unit.tensors[0]: unit.floor for unit in measured.costs}
    for unit in measured.costs:
        assert 0 <= unit.floor < 0.5 * unit.probes[0].kld
    assert len(set(floors.values())) > 2  # it is by layer


def test_a_killed_study_gives_the_same_files(
    job: SweepJob, measured: Sensitivity, base: Path, tmp_path: Path
) -> None:
    again, work = job_of(base, tmp_path / "again"), tmp_path / "work"
    told = Recorder()
    in_process(job_of(base, tmp_path / "counted"), tmp_path / "counting", told)
    for advances in (1, told.advances // 3, told.advances // 3):
        with pytest.raises(Killed):
            in_process(again, work, Recorder(kill_after=advances))
    in_process(again, work)
    for ours, theirs in ((again.imatrix, job.imatrix), (again.sensitivity, job.sensitivity),
                         (again.logits, job.logits)):  # fmt: skip
        assert ours is not None
        assert theirs is not None
        assert ours.read_bytes() == theirs.read_bytes()


def test_a_damaged_line_is_refused(base: Path, tmp_path: Path) -> None:
    again, work = job_of(base, tmp_path / "again"), tmp_path / "work"
    with pytest.raises(Killed):
        in_process(again, work, Recorder(kill_after=30))
    journal = work / "sweep" / "windows.jsonl"
    content = journal.read_text()
    for damage in (('"window": 1', '"window": "1"'), ('"errors": [', '"errors": [3, '),
                   ('"rows": ', '"rows": -')):  # fmt: skip
        journal.write_text(content.replace(*damage, 1))
        assert journal.read_text() != content
        with pytest.raises(InputError, match=r"windows\.jsonl, line"):
            in_process(again, work)


def test_a_base_in_four_bits(tmp_path: Path) -> None:
    coarse = write_demo(tmp_path / "coarse.gguf", "Q4_0")
    recipe = MeasureRecipe(
        candidates=("Q8_0", "Q4_0", "Q4_K"), cost_tokens=128, cost_chunk_tokens=64, sample_rows=16
    )
    found = in_process(job_of(coarse, tmp_path / "out", recipe), tmp_path / "work").sensitivity
    assert found is not None
    (unit,) = (unit for unit in found.costs if unit.tensors == (MAMBA,))
    assert set(unit.probes[0].types.values()) == {"Q4_K"}  # its own has no error
    assert unit.floor < 0.1 * unit.probes[0].kld


def test_errors_alone(base: Path, tmp_path: Path) -> None:
    recipe = RECIPE.model_copy(update={"cost_tokens": 0})
    found = in_process(job_of(base, tmp_path / "out", recipe), tmp_path / "work").sensitivity
    assert found is not None
    assert found.errors
    assert not found.costs
    assert found.cost_tokens == 0


def test_a_text_that_is_too_short(base: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("four score and seven", encoding="utf-8")
    job = job_of(base, tmp_path / "out")
    calibration = CALIBRATION.model_copy(update={"texts": (str(short),)})
    sources = tuple(resolve_sources(calibration))
    for broken in (
        dataclasses.replace(job, calibration=calibration, sources=sources),
        dataclasses.replace(job, text=short),
    ):
        with pytest.raises(InputError, match=r"128|64"):
            in_process(broken, tmp_path / "work")


def test_weights_that_are_not_restored_are_seen(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quantkit.study.sweep.windows import OpenWindow

    monkeypatch.setattr(OpenWindow, "restore", lambda self: self._held.clear())
    with pytest.raises(EnvironmentFault, match="itself"):
        in_process(job_of(base, tmp_path / "out"), tmp_path / "work")


def test_a_study_of_an_uncut_model_says_so(tmp_path: Path) -> None:
    from cut_models import gguf_of, write_model

    source = write_model("mamba", tmp_path)
    path = gguf_of(source, tmp_path)
    job = SweepJob(
        choose_model(str(path)), path, divergence=DivergenceRecipe(chunks=1, chunk_tokens=64),
        text=TEXT, logits=tmp_path / "base.logits",
    )  # fmt: skip
    told = Recorder()
    found = in_process(job, tmp_path / "work", told)
    assert found.logits is not None
    assert found.logits.positions == 31
    assert any("mamba" in note for note in told.notes)


def test_layers_that_no_text_runs_through_have_errors(tmp_path: Path) -> None:
    """Those of a prediction head: without errors they would stay as large as they are."""
    config = NEMOTRON | {"num_nextn_predict_layers": 1, "mtp_hybrid_override_pattern": "*E"}
    arrays = with_prediction_head(nemotron_arrays(config))
    folder = write_checkpoint(tmp_path / "m", config, arrays)
    job = dataclasses.replace(
        job_of(folder, tmp_path / "out", RECIPE.model_copy(update={"cost_tokens": 64})),
        keep_prediction=True, logits=None,
    )  # fmt: skip
    found = in_process(job, tmp_path / "work").sensitivity
    assert found is not None
    head, trunk = "blk.4.attn_q.weight", "blk.2.attn_q.weight"  # twice the values of layer 2
    for kind, error in found.errors[trunk].items():  # which has weights of columns
        assert found.errors[head][kind] == pytest.approx(error, rel=0.6)
    assert "blk.4.nextn.eh_proj.weight" in found.errors
    assert all(head not in unit.tensors for unit in found.costs)
    assert found.tensor_costs()[head]["Q4_0"] > 0
