"""The importance matrix of the demo model, against files that llama.cpp's own llama-imatrix wrote.

How those were made, and what may differ between CPUs, is in tests/data/imatrix/README.md.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from broken_artifacts import with_nan
from demo_artifacts import WANTS_BOS, write_demo
from models import CPU
from places import DATA
from watched import Killed, Recorder

from quantkit.config.recipe import ImatrixRecipe
from quantkit.core.errors import EnvironmentFault
from quantkit.core.files import file_sha256
from quantkit.core.progress import told_to
from quantkit.formats.gguf_file import GGUFFile
from quantkit.formats.imatrix_file import Imatrix, read_imatrix
from quantkit.study import imatrix as stage
from quantkit.study.calibration.sources import resolve_sources
from quantkit.study.imatrix import (
    Calibration,
    chunks_per_batch,
    collect_imatrix,
    collect_in_child,
)

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


def in_child(
    base: Path, folder: Path, told: Recorder | None = None, **changes: object
) -> tuple[Calibration, str]:
    """What a run without a child process gives, and the hash of its file."""
    fields: dict[str, object] = {"texts": (str(TEXT),), "chunk_tokens": 64}
    recipe = ImatrixRecipe.model_validate(fields | changes)
    out = folder / "imatrix.gguf"
    folder.mkdir(exist_ok=True)
    emit = told_to(told or Recorder())
    facts = collect_in_child(base, recipe, resolve_sources(recipe), out, folder, CPU, emit)
    return facts, file_sha256(out)


def collected(base: Path, folder: Path, **changes: object) -> Path:
    fields: dict[str, object] = {"texts": (str(TEXT),), "chunk_tokens": 512, "chunks": 4}
    recipe = ImatrixRecipe.model_validate(fields | changes)
    work, out = folder / "work", folder / "imatrix.gguf"
    work.mkdir(parents=True)
    collect_imatrix(base, recipe, resolve_sources(recipe), out, work, CPU)
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


def test_chunks_side_by_side_change_nothing(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashes = set()
    for together in (1, 2, 4):
        monkeypatch.setattr(stage, "chunks_per_batch", lambda *_, n=together: n)
        found = in_child(bases["demo"], tmp_path / f"{together}", chunk_tokens=256, chunks=7)
        hashes.add(found[1])
    assert len(hashes) == 1


def test_a_killed_collection_gives_the_same_bits(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "SAVE_EVERY_CHUNKS", 4)
    whole = in_child(bases["demo"], tmp_path / "whole", chunks=24)
    for advances in (2, 3):
        with pytest.raises(Killed):
            in_child(bases["demo"], tmp_path / "killed", Recorder(advances), chunks=24)
    assert (tmp_path / "killed" / "sums.npz").exists()
    told = Recorder()
    assert in_child(bases["demo"], tmp_path / "killed", told, chunks=24) == whole
    assert told.starts[0][0] > 0


Arrays = dict[str, np.ndarray]
DAMAGED: dict[str, Callable[[Arrays], Arrays]] = {
    "counts are missing": lambda a: {n: v for n, v in a.items() if n != f"{SUMMED}/counts"},
    "no text": lambda a: {n: v for n, v in a.items() if n != "text"},
    "more chunks than there are": lambda a: a | {"next_chunk": np.int64(1 << 20)},
    "fewer than none": lambda a: a | {"next_chunk": np.int64(-4)},
    "no number": lambda a: a | {"next_chunk": np.array("four")},
    "several": lambda a: a | {"next_chunk": np.arange(3)},
    "NaN": lambda a: a | {f"{SUMMED}/squares": a[f"{SUMMED}/squares"] * np.nan},
    "negative": lambda a: a | {f"{SUMMED}/squares": -a[f"{SUMMED}/squares"]},
    "wider": lambda a: a | {f"{SUMMED}/squares": np.ones((1, 7))},
    "text in place of numbers": lambda a: a | {f"{SUMMED}/squares": np.array([["x"]])},
    "fractions": lambda a: a | {f"{SUMMED}/counts": a[f"{SUMMED}/counts"] * 1.5},
    "another weight": lambda a: a | {"blk.9.x.weight/squares": np.ones((1, 8)),
                                     "blk.9.x.weight/counts": np.ones(1, np.int64)},
    "objects": lambda a: a | {f"{SUMMED}/squares": np.array([[None]])},
}  # fmt: skip


def test_damaged_sums_are_not_used(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "SAVE_EVERY_CHUNKS", 4)
    sums, run = tmp_path / "sums.npz", {"chunk_tokens": 32, "chunks": 8}
    whole = in_child(bases["demo"], tmp_path, **run)
    with np.load(sums) as saved:
        kept = dict(saved)

    def resumed() -> int:
        told = Recorder()
        assert in_child(bases["demo"], tmp_path, told, **run) == whole
        return told.starts[0][0]

    for change in DAMAGED.values():
        np.savez(sums, **change(kept))
        assert resumed() == 0
    content = bytearray(sums.read_bytes())
    for damaged in (b"", b"PK", bytes(content[:-30]), bytes(content[:500])):
        sums.write_bytes(damaged)
        assert resumed() == 0
    sums.write_bytes(content)
    assert resumed() > 0
    content[len(content) // 2] ^= 1
    sums.write_bytes(content)
    assert resumed() == 0
    np.savez_compressed(sums, **kept | {"bomb": np.zeros(1 << 26, np.uint8)})
    assert resumed() == 0


def least_tokens(path: Path) -> int:
    entries = read_imatrix(path).entries.values()
    return int(min(entry.counts.min() for entry in entries if entry.counts.size > 1))


def test_goes_on_until_every_expert_is_covered(
    balanced: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "SAVE_EVERY_CHUNKS", 4)
    hashes, least = {}, {}
    for chunks in range(8, 33, 4):
        folder = tmp_path / str(chunks)
        _, hashes[chunks] = in_child(balanced, folder, chunks=chunks)
        least[chunks] = least_tokens(folder / "imatrix.gguf")
    (stops, *_) = [n for n in range(12, 29, 4) if least[n - 4] < least[n]]
    covered = {"chunks": 3, "until_covered": least[stops]}
    with pytest.raises(Killed):
        in_child(balanced, tmp_path / "killed", Recorder(kill_after=3), **covered)
    facts, found = in_child(balanced, tmp_path / "killed", **covered)
    assert (facts.chunks, facts.uncovered_experts) == (stops, 0)
    assert found == hashes[stops]

    # more than the text can give: it ends, and a note says so
    told = Recorder()
    facts, _ = in_child(balanced, tmp_path / "all", told, chunks=3, until_covered=least[32] + 1)
    assert facts.chunks == 32
    assert facts.uncovered_experts > 0
    assert any("ended" in note for note in told.notes)


def test_the_saved_sums_of_another_text_are_not_used(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "SAVE_EVERY_CHUNKS", 4)
    own = tmp_path / "own.txt"
    fields = {"texts": (str(own),), "chunks": 8}
    results = []
    for text in (TEXT.read_text(encoding="utf-8"), "Other words. " * 2000):
        own.write_text(text, encoding="utf-8")  # sums.npz of all eight chunks stays in the folder
        results.append(in_child(bases["demo"], tmp_path / "work", **fields)[1])
    fresh = collected(bases["demo"], tmp_path / "fresh", **fields, chunk_tokens=64)
    assert results[1] == file_sha256(fresh) != results[0]


def test_nan_names_weight_and_chunks(bases: dict[str, Path], tmp_path: Path) -> None:
    base = with_nan(bases["demo"], tmp_path / "nan.gguf", "blk.2.attn_norm.weight")
    with pytest.raises(EnvironmentFault, match=r"blk\.2\.attn_\w+\.weight .*chunks 1 to 4 of 4"):
        collected(base, tmp_path / "out")


def test_time_and_memory_are_estimated_before_it_starts(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, hashes = Recorder(), set()
    for recorder, chunks in ((told, 1), (Recorder(), 1000)):
        monkeypatch.setattr(stage, "TRIAL_CHUNKS", chunks)
        hashes.add(in_child(bases["demo"], tmp_path / f"{chunks}", recorder, chunks=32)[1])
    (note,) = told.notes
    assert "2,048" in note
    assert "MiB" in note
    assert len(hashes) == 1  # the trial was not counted


@pytest.mark.parametrize(
    ("chunk_tokens", "vocabulary", "together"),
    [
        (512, 2048, 16),
        (512, 131072, 2),
        (512, 262144, 1),
        (128, 2048, 16),
        (4096, 2048, 2),
        (512, 49152, 4),
    ],
)
def test_batches_stay_small_enough(chunk_tokens: int, vocabulary: int, together: int) -> None:
    assert chunks_per_batch(chunk_tokens, vocabulary) == together
