"""The importance matrix of the demo model, against files that llama.cpp's own llama-imatrix wrote.

How those were made, and what may differ between CPUs, is in tests/data/imatrix/README.md.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from broken_artifacts import with_nan
from demo_artifacts import WANTS_BOS, write_demo
from models import CPU
from places import DATA
from watched import Killed, Recorder

from quantkit.config.recipe import ImatrixRecipe
from quantkit.core.errors import EnvironmentFault, InputError
from quantkit.core.files import file_sha256
from quantkit.core.progress import told_to
from quantkit.formats.gguf_file import GGUFFile
from quantkit.formats.imatrix_file import Imatrix, read_imatrix
from quantkit.models.choose import choose_model
from quantkit.study.calibration.sources import resolve_sources
from quantkit.study.imatrix import Calibration
from quantkit.study.sweep import estimate, study
from quantkit.study.sweep.study import SweepJob, measure_model

DATA = DATA / "imatrix"
TEXT = DATA / "demo-4x512.txt"
SUMMED = "blk.0.ssm_in.weight"
ANY_CPU_RMS = 2e-2
"""Of a row: kernels of another instruction set round activations otherwise, most in late layers."""


@pytest.fixture(scope="module")
def balanced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model with the router's bias changed for the one expert that it never chose."""
    base = write_demo(tmp_path_factory.mktemp("balanced") / "balanced.gguf")
    bias = GGUFFile(base).stored["blk.1.exp_probs_b.bias"]
    with base.open("r+b") as file:
        file.seek(bias.offset + 4 * np.dtype("<f4").itemsize)
        file.write(np.array([-0.4], "<f4").tobytes())
    return base


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The demo model as BF16, and the same with a vocabulary that wants BOS."""
    folder = tmp_path_factory.mktemp("bases")
    return {
        "demo": write_demo(folder / "demo.gguf"),
        "bos": write_demo(folder / "bos.gguf", changes=WANTS_BOS),
    }


def job_of(base: Path, out: Path, **changes: object) -> SweepJob:
    recipe = ImatrixRecipe.model_validate({"texts": (str(TEXT),), "chunk_tokens": 64} | changes)
    sources = resolve_sources(recipe)
    return SweepJob(choose_model(str(base)), base, calibration=recipe, sources=sources, imatrix=out)


def in_child(
    base: Path, folder: Path, told: Recorder | None = None, **changes: object
) -> tuple[Calibration, str]:
    """What a run without child processes gives, and the hash of its file."""
    out = folder / "imatrix.gguf"
    folder.mkdir(exist_ok=True)
    job, emit = job_of(base, out, **changes), told_to(told or Recorder())
    texts = study.prepare_in_child(job, folder, CPU, emit)
    facts = study.measure_in_child(job, folder, CPU, texts, emit).calibration
    assert facts is not None
    return facts, file_sha256(out)


def collected(base: Path, folder: Path, **changes: object) -> Path:
    work, out = folder / "work", folder / "imatrix.gguf"
    work.mkdir(parents=True)
    fields: dict[str, object] = {"chunk_tokens": 512, "chunks": 4}
    measure_model(job_of(base, out, **fields | changes), work, CPU)
    return out


def same_kernels(ours: Imatrix, theirs: Imatrix) -> bool:
    """Whether this CPU rounds as the one that made the reference: seen in the last layer's rows."""
    name = max(theirs.entries)
    return np.allclose(ours.entries[name].sums, theirs.entries[name].sums, rtol=1e-5)


@pytest.mark.parametrize(
    ("model", "reference"),
    [("demo", "demo-4x512.imatrix.gguf"), ("bos", "demo-4x512.bos.imatrix.gguf")],
)
def test_equal_to_llama_imatrix(
    bases: dict[str, Path], tmp_path: Path, model: str, reference: str
) -> None:
    ours = read_imatrix(collected(bases[model], tmp_path))
    theirs = read_imatrix(DATA / reference)
    assert sorted(ours.entries) == sorted(theirs.entries)
    assert (ours.chunks, ours.chunk_tokens) == (theirs.chunks, theirs.chunk_tokens)
    exact = same_kernels(ours, theirs)
    for name, expected in theirs.entries.items():
        found = ours.entries[name]
        assert found.sums.shape == expected.sums.shape
        dense = len(expected.counts) == 1
        if dense or exact:
            np.testing.assert_array_equal(found.counts, expected.counts, name)
        else:
            assert np.abs(found.counts - expected.counts).sum() <= 8, name
        if exact or name == "blk.0.ssm_in.weight":  # depends on embedding and norm alone
            np.testing.assert_allclose(found.sums, expected.sums, rtol=1e-5, err_msg=name)
        for row, wanted in zip(found.importance(), expected.importance(), strict=True):
            rms = np.sqrt(np.mean(np.square(row - wanted)) / np.mean(np.square(wanted)))
            assert rms < ANY_CPU_RMS, name


def test_a_killed_collection_gives_the_same_bits(bases: dict[str, Path], tmp_path: Path) -> None:
    whole = in_child(bases["demo"], tmp_path / "whole", chunks=24)
    for advances in (2, 3):
        with pytest.raises(Killed):
            in_child(bases["demo"], tmp_path / "killed", Recorder(advances), chunks=24)
    told = Recorder()
    assert in_child(bases["demo"], tmp_path / "killed", told, chunks=24) == whole
    assert told.starts[0][0] > 0


def test_damaged_sums_are_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    run = {"chunk_tokens": 32, "chunks": 8}
    whole = in_child(bases["demo"], tmp_path / "whole", **run)
    folder = tmp_path / "killed"
    with pytest.raises(Killed):
        in_child(bases["demo"], folder, Recorder(kill_after=3), **run)
    sums = folder / "sweep" / "sums-1.f64"
    content = sums.read_bytes()
    for damaged in (b"", content[:-8], content + b"\0"):
        sums.write_bytes(damaged)
        with pytest.raises(InputError, match=r"sums-1\.f64"):
            in_child(bases["demo"], folder, **run)
    sums.unlink()
    with pytest.raises(InputError, match=r"sums-1\.f64"):
        in_child(bases["demo"], folder, **run)
    sums.write_bytes(content)
    assert in_child(bases["demo"], folder, **run) == whole


def least_tokens(path: Path) -> int:
    entries = read_imatrix(path).entries.values()
    return int(min(entry.counts.min() for entry in entries if entry.counts.size > 1))


def test_goes_on_until_every_expert_is_covered(
    balanced: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "ROUND_CHUNKS", 4)
    hashes, least = {}, {}
    for chunks in (4, 8, 16, 32):
        folder = tmp_path / str(chunks)
        _, hashes[chunks] = in_child(balanced, folder, chunks=chunks)
        least[chunks] = least_tokens(folder / "imatrix.gguf")
    stops = 16
    assert least[8] < least[16] < least[32]
    covered = {"chunks": 3, "until_covered": least[8] + 1}
    with pytest.raises(Killed):
        in_child(balanced, tmp_path / "killed", Recorder(kill_after=20), **covered)
    facts, found = in_child(balanced, tmp_path / "killed", **covered)
    assert (facts.chunks, facts.uncovered_experts) == (stops, 0)
    assert found == hashes[stops]

    # more than the text can give: it ends, and a note says so
    told = Recorder()
    facts, found = in_child(balanced, tmp_path / "all", told, chunks=3, until_covered=10**6)
    assert facts.chunks == 32
    assert found == hashes[32]
    assert facts.uncovered_experts > 0
    assert any("ended" in note for note in told.notes)


def test_the_saved_sums_of_another_text_are_not_used(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    own = tmp_path / "own.txt"
    fields = {"texts": (str(own),), "chunks": 8}
    results = []
    for text in (TEXT.read_text(encoding="utf-8"), "Other words. " * 2000):
        own.write_text(text, encoding="utf-8")  # the folder of the sweep stays
        results.append(in_child(bases["demo"], tmp_path / "work", **fields)[1])
    fresh = collected(bases["demo"], tmp_path / "fresh", **fields, chunk_tokens=64)
    assert results[1] == file_sha256(fresh) != results[0]


def test_nan_names_weight_and_chunks(bases: dict[str, Path], tmp_path: Path) -> None:
    base = with_nan(bases["demo"], tmp_path / "nan.gguf", "blk.2.attn_norm.weight")
    with pytest.raises(EnvironmentFault, match=r"blk\.2\.attn_\w+\.weight .*chunks 1 to \d of 4"):
        collected(base, tmp_path / "out")
