"""The importance matrix of the demo model, against files that llama.cpp's own llama-imatrix wrote.

How those were made, and what may differ between CPUs, is in tests/data/imatrix/README.md.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from places import DATA

from quantkit.config.recipe import ImatrixRecipe
from quantkit.core.errors import EnvironmentFault
from quantkit.core.files import file_sha256
from quantkit.core.progress import SILENT
from quantkit.formats.gguf_writer import lay_out
from quantkit.formats.imatrix_file import Imatrix, read_imatrix
from quantkit.formats.tensors import MetaValue
from quantkit.llamacpp.activations import Sums
from quantkit.llamacpp.settings import DeviceSettings
from quantkit.models.choose import choose_model, open_source
from quantkit.quantize.encode import write_shards
from quantkit.study import imatrix as stage
from quantkit.study.calibration.sources import resolve_sources
from quantkit.study.imatrix import (
    chunks_per_batch,
    collect_imatrix,
    collect_in_child,
    uncovered,
)

DATA = DATA / "imatrix"
TEXT = DATA / "demo-4x512.txt"
DEVICES = DeviceSettings(threads=2, use_extra_buffers=False, gpu_layers=0)
ANY_CPU_RMS = 2e-2
"""Of a row: kernels of another instruction set round activations otherwise, most in late layers."""


@pytest.fixture(scope="module")
def balanced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model with the router's bias changed for the one expert that it never chose."""
    folder = tmp_path_factory.mktemp("balanced")
    source = open_source(choose_model("demo"))
    layouts = lay_out("balanced", source.metadata, source.tensors)
    (base,) = write_shards(folder, folder, layouts, source, {}, SILENT, workers=2)
    with base.open("r+b") as file:
        file.seek(layouts[0].offsets["blk.1.exp_probs_b.bias"] + 4 * np.dtype("<f4").itemsize)
        file.write(np.array([-0.4], "<f4").tobytes())
    return base


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The demo model as BF16, and the same with a vocabulary that wants BOS."""
    folder = tmp_path_factory.mktemp("bases")
    source = open_source(choose_model("demo"))
    found = {}
    for name, wants_bos in (("demo", False), ("bos", True)):
        metadata = {**source.metadata, "tokenizer.ggml.add_bos_token": MetaValue("bool", wants_bos)}
        layouts = lay_out(name, metadata, source.tensors)
        (found[name],) = write_shards(folder, folder, layouts, source, {}, SILENT, workers=2)
    return found


def collected(base: Path, folder: Path, **changes: object) -> Path:
    fields: dict[str, object] = {"texts": (str(TEXT),), "chunk_tokens": 512, "chunks": 4}
    recipe = ImatrixRecipe.model_validate(fields | changes)
    work, out = folder / "work", folder / "imatrix.gguf"
    work.mkdir(parents=True)
    collect_imatrix(base, recipe, resolve_sources(recipe), out, work, DEVICES)
    return out


def same_kernels(ours: Imatrix, theirs: Imatrix) -> bool:
    """Whether this CPU rounds as the one that made the reference: seen in the last layer's rows."""
    name = max(theirs.entries)
    return np.allclose(ours.entries[name].sums, theirs.entries[name].sums, rtol=1e-3)


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


def ignored(_: object) -> None:
    """A message that no test looks at."""


def test_chunks_side_by_side_change_nothing(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashes = set()
    for together in (1, 2, 4):
        monkeypatch.setattr(stage, "chunks_per_batch", lambda *_, n=together: n)
        work, out = tmp_path / f"work{together}", tmp_path / f"{together}.gguf"
        work.mkdir()
        recipe = ImatrixRecipe(texts=(str(TEXT),), chunk_tokens=256, chunks=7)
        collect_in_child(
            bases["demo"], recipe, resolve_sources(recipe), out, work, DEVICES, ignored
        )
        hashes.add(file_sha256(out))
    assert len(hashes) == 1


def test_a_killed_collection_gives_the_same_bits(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception):
        pass

    def run(folder: Path, kill_after: int | None) -> Path:
        folder.mkdir(exist_ok=True)
        tokens = 0

        def emit(message: tuple[str, int]) -> None:
            nonlocal tokens
            if message[0] == "advance":
                tokens += message[1]
                if kill_after is not None and tokens >= kill_after:
                    raise Killed

        recipe = ImatrixRecipe(texts=(str(TEXT),), chunk_tokens=64, chunks=24)
        out = folder / "imatrix.gguf"
        collect_in_child(bases["demo"], recipe, resolve_sources(recipe), out, folder, DEVICES, emit)
        return out

    monkeypatch.setattr(stage, "SAVE_EVERY_CHUNKS", 4)
    whole = run(tmp_path / "whole", None)
    for tokens in (64 * 6, 64 * 14):
        with pytest.raises(Killed):
            run(tmp_path / "killed", tokens)
    assert (tmp_path / "killed" / "sums.npz").exists()
    assert file_sha256(run(tmp_path / "killed", None)) == file_sha256(whole)


def least_tokens(path: Path) -> int:
    entries = read_imatrix(path).entries.values()
    return int(min(entry.counts.min() for entry in entries if entry.counts.size > 1))


def test_goes_on_until_every_expert_is_covered(
    balanced: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "SAVE_EVERY_CHUNKS", 4)
    at = {n: tmp_path / f"{n}.gguf" for n in range(8, 33, 4)}
    for n, out in at.items():
        recipe = ImatrixRecipe(texts=(str(TEXT),), chunk_tokens=64, chunks=n)
        (tmp_path / str(n)).mkdir()
        collect_in_child(
            balanced, recipe, resolve_sources(recipe), out, tmp_path / str(n), DEVICES, ignored
        )
    least = {n: least_tokens(path) for n, path in at.items()}
    (stops, *_) = [n for n in range(12, 29, 4) if least[n - 4] < least[n]]
    wanted = least[stops]

    kept: list[object] = []
    stop_at: int | None = 9 * 64

    class Killed(Exception):
        pass

    def emit(message: tuple[str, object]) -> None:
        kept.append(message)
        done = sum(value for kind, value in kept if kind == "advance")
        if stop_at is not None and done >= stop_at:
            raise Killed

    fields = {"texts": (str(TEXT),), "chunk_tokens": 64}
    recipe = ImatrixRecipe.model_validate(fields | {"chunks": 3, "until_covered": wanted})
    out = tmp_path / "imatrix.gguf"
    with pytest.raises(Killed):
        collect_in_child(balanced, recipe, resolve_sources(recipe), out, tmp_path, DEVICES, emit)
    stop_at = None
    facts = collect_in_child(
        balanced, recipe, resolve_sources(recipe), out, tmp_path, DEVICES, emit
    )
    assert (facts.chunks, facts.uncovered_experts) == (stops, 0)
    assert file_sha256(out) == file_sha256(at[stops])

    # more than the text can give: it ends, and says so
    kept.clear()
    recipe = recipe.model_copy(update={"until_covered": least[32] + 1})
    (tmp_path / "all").mkdir()
    facts = collect_in_child(
        balanced, recipe, resolve_sources(recipe), out, tmp_path / "all", DEVICES, emit
    )
    assert facts.chunks == 32
    assert facts.uncovered_experts > 0
    assert any(kind == "note" and "text ended" in str(value) for kind, value in kept)


def test_a_dense_model_is_covered_at_once() -> None:
    sums = {"blk.0.attn_k.weight": Sums(np.ones((1, 4)), np.array([3]))}
    assert uncovered(sums, 100) == 0
    sums["blk.0.ffn_up_exps.weight"] = Sums(np.ones((3, 4)), np.array([0, 99, 100]))
    sums["blk.0.ffn_down_exps.weight"] = Sums(np.ones((3, 4)), np.array([0, 99, 100]))
    sums["blk.1.ffn_down_exps.weight"] = Sums(np.ones((3, 4)), np.array([5, 100, 100]))
    assert [uncovered(sums, n) for n in (0, 1, 100)] == [0, 1, 3]


def test_a_kept_state_of_another_text_is_not_taken_up(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "SAVE_EVERY_CHUNKS", 4)
    own = tmp_path / "own.txt"
    results = []
    for text in (TEXT.read_text(encoding="utf-8"), "Other words. " * 2000):
        own.write_text(text, encoding="utf-8")
        recipe = ImatrixRecipe(texts=(str(own),), chunk_tokens=64, chunks=8)
        out = tmp_path / "imatrix.gguf"
        collect_in_child(
            bases["demo"], recipe, resolve_sources(recipe), out, tmp_path, DEVICES, ignored
        )
        results.append(file_sha256(out))  # sums.npz of all eight chunks is left in the folder
    fresh = collected(
        bases["demo"], tmp_path / "fresh", texts=(str(own),), chunk_tokens=64, chunks=8
    )
    assert results[1] == file_sha256(fresh) != results[0]


def test_nan_names_weight_and_chunk_and_keeps_what_was_saved(tmp_path: Path) -> None:
    source = open_source(choose_model("demo"))
    layouts = lay_out("broken", source.metadata, source.tensors)
    (base,) = write_shards(tmp_path, tmp_path, layouts, source, {}, SILENT, workers=2)
    offset = layouts[0].offsets["blk.2.attn_norm.weight"]
    with base.open("r+b") as file:
        file.seek(offset)
        file.write(np.array([np.nan], "<f4").tobytes())
    with pytest.raises(EnvironmentFault, match=r"blk\.2\.attn_\w+\.weight .*chunks 1 to 4 of 4"):
        collected(base, tmp_path / "out")


def test_what_it_will_take_is_said_before_it_starts(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashes = set()
    for name, pays in (("told", 1), ("silent", 1000)):
        monkeypatch.setattr(stage, "TRIAL_CHUNKS", pays)
        folder = tmp_path / name
        folder.mkdir()
        messages: list[tuple[str, object]] = []
        recipe = ImatrixRecipe(texts=(str(TEXT),), chunk_tokens=64, chunks=32)
        out = folder / "imatrix.gguf"
        collect_in_child(
            bases["demo"], recipe, resolve_sources(recipe), out, folder, DEVICES, messages.append
        )
        hashes.add(file_sha256(out))
        if name == "told":
            kinds = [kind for kind, _ in messages]
            (note,) = [str(value) for kind, value in messages if kind == "note"]
            assert kinds.index("note") < kinds.index("advance")
            assert "2,048 tokens" in note
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
