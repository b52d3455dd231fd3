"""The importance matrix of the demo model, against files that llama.cpp's own llama-imatrix wrote.

How those were made, and what may differ between CPUs, is in tests/data/imatrix/README.md.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from quantkit.encoding import write_shards
from quantkit.errors import EnvironmentFault
from quantkit.formats.gguf_writer import lay_out
from quantkit.formats.imatrix_file import Imatrix, read_imatrix
from quantkit.models import choose_model, open_source
from quantkit.native.settings import DeviceSettings
from quantkit.progress import SILENT
from quantkit.receipts import file_sha256
from quantkit.recipe import ImatrixRecipe
from quantkit.stages import imatrix as stage
from quantkit.stages.imatrix import chunks_together, collect_imatrix, collect_in_child
from quantkit.values import MetaValue

DATA = Path(__file__).parents[1] / "data" / "imatrix"
TEXT = DATA / "demo-4x512.txt"
DEVICES = DeviceSettings(threads=2, use_extra_buffers=False, gpu_layers=0)
ANY_CPU_RMS = 2e-2
"""Of a row: kernels of another instruction set round activations otherwise, most in late layers."""


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
    collect_imatrix(base, recipe, out, work, DEVICES)
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


def test_chunks_side_by_side_change_nothing(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def emit(_: object) -> None:
        pass

    hashes = set()
    for together in (1, 2, 4):
        monkeypatch.setattr(stage, "chunks_together", lambda *_, n=together: n)
        work, out = tmp_path / f"work{together}", tmp_path / f"{together}.gguf"
        work.mkdir()
        recipe = ImatrixRecipe(texts=(str(TEXT),), chunk_tokens=256, chunks=7)
        collect_in_child(bases["demo"], recipe, out, work, DEVICES, emit)
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
        collect_in_child(bases["demo"], recipe, out, folder, DEVICES, emit)
        return out

    monkeypatch.setattr(stage, "SAVE_EVERY_CHUNKS", 4)
    whole = run(tmp_path / "whole", None)
    for tokens in (64 * 6, 64 * 14):
        with pytest.raises(Killed):
            run(tmp_path / "killed", tokens)
    assert (tmp_path / "killed" / "sums.npz").exists()
    assert file_sha256(run(tmp_path / "killed", None)) == file_sha256(whole)


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
        monkeypatch.setattr(stage, "TRIAL_PAYS", pays)
        folder = tmp_path / name
        folder.mkdir()
        messages: list[tuple[str, object]] = []
        recipe = ImatrixRecipe(texts=(str(TEXT),), chunk_tokens=64, chunks=32)
        out = folder / "imatrix.gguf"
        collect_in_child(bases["demo"], recipe, out, folder, DEVICES, messages.append)
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
        (512, 2048, 4),
        (512, 131072, 2),
        (512, 262144, 1),
        (128, 2048, 16),
        (4096, 2048, 1),
        (512, 49152, 4),
    ],
)
def test_batches_stay_small_enough(chunk_tokens: int, vocabulary: int, together: int) -> None:
    assert chunks_together(chunk_tokens, vocabulary) == together
