"""The imatrix file: gguf reads it, llama.cpp's own layout, and experts that were never seen."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import gguf
import numpy as np
import pytest
from models import write_llama
from places import DATA

from quantkit.core.errors import InputError
from quantkit.formats.gguf_writer import write_gguf
from quantkit.formats.imatrix_file import Imatrix, ImatrixEntry, read_imatrix, write_imatrix
from quantkit.formats.tensors import Metadata, MetaValue, TensorInfo

REFERENCES = DATA / "imatrix"
REFERENCE, OLD_REFERENCE = "demo-4x512.imatrix.gguf", "demo-4x512.imatrix.dat"


def example() -> Imatrix:
    sums = np.arange(12, dtype=np.float32).reshape(3, 4)
    entries = {
        "blk.0.ffn_up_exps.weight": ImatrixEntry(sums, np.array([2, 0, 4], np.float32)),
        "blk.0.attn_q.weight": ImatrixEntry(sums[:1], np.array([8], np.float32)),
    }
    return Imatrix(entries, chunk_tokens=512, chunks=3, datasets=("a.txt",))


def test_round_trip_and_layout(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.gguf"
    write_imatrix(path, example())
    again = read_imatrix(path)
    assert (again.chunks, again.chunk_tokens, again.datasets) == (3, 512, ("a.txt",))
    for name, entry in example().entries.items():
        assert np.array_equal(again.entries[name].sums, entry.sums)
        assert np.array_equal(again.entries[name].counts, entry.counts)
    reader = gguf.GGUFReader(path)
    assert reader.fields["general.type"].contents() == "imatrix"
    assert [t.name for t in reader.tensors] == [
        "blk.0.attn_q.weight.in_sum2",
        "blk.0.attn_q.weight.counts",
        "blk.0.ffn_up_exps.weight.in_sum2",
        "blk.0.ffn_up_exps.weight.counts",
    ]
    assert [list(t.shape) for t in reader.tensors] == [[4], [1], [4, 3], [1, 3]]


@pytest.mark.parametrize(
    ("stored", "name"),
    [
        ("c.txt", "c.txt"),
        ("/home/me/calib.txt", "calib.txt"),
        ("../texts/calib.txt", "calib.txt"),
        ("C:\\me\\b.txt", "b.txt"),
        ("C:\\me/mixed\\b.txt", "b.txt"),
        ("\\\\nas\\share\\b.txt", "b.txt"),
        ("/home/me/texts/", "texts"),
        ("file:///home/me/calib.txt", "calib.txt"),
        ("http://nas.local/me/calib.txt", "calib.txt"),
        ("hf://datasets/a/b@c0ffee", "hf://datasets/a/b@c0ffee"),
        ("", ""),
    ],
)
def test_names_of_datasets_have_no_folders(stored: str, name: str) -> None:
    assert dataclasses.replace(example(), datasets=(stored,)).dataset_names == (name,)


def test_unseen_expert_gets_the_mean_of_the_others() -> None:
    entry = example().entries["blk.0.ffn_up_exps.weight"]
    importance = entry.importance()
    assert entry.unseen == 1
    assert np.allclose(importance[0], entry.sums[0] / 2)
    assert np.allclose(importance[1], (importance[0] + importance[2]) / 2)


@pytest.mark.parametrize("name", [REFERENCE, "demo-4x512.bos.imatrix.gguf"])
def test_what_llama_imatrix_wrote_is_written_again_byte_for_byte(name: str, tmp_path: Path) -> None:
    found = read_imatrix(REFERENCES / name)
    assert (found.chunks, found.chunk_tokens) == (4, 512)
    assert found.datasets == ("demo-4x512.txt",)
    assert len(found.entries) == 33
    assert found.entries["blk.1.ffn_up_exps.weight"].unseen == 1
    write_imatrix(tmp_path / "again.gguf", found)
    assert (tmp_path / "again.gguf").read_bytes() == (REFERENCES / name).read_bytes()


def test_both_forms_of_one_run_read_equal() -> None:
    new = read_imatrix(REFERENCES / REFERENCE)
    rows = {name: entry.sums.shape[1] for name, entry in new.entries.items()}
    old = read_imatrix(REFERENCES / OLD_REFERENCE, rows)
    assert sorted(old.entries) == sorted(new.entries)
    assert (old.chunks, old.datasets) == (new.chunks, new.datasets)
    assert new.counts_are_exact
    assert not old.counts_are_exact
    for name, entry in new.entries.items():
        again = old.entries[name]
        assert np.allclose(again.importance(), entry.importance(), rtol=1e-6, atol=0), name
        assert ((again.tokens > 0) == (entry.tokens > 0)).all(), name


def written(path: Path, sums: list[list[float]], counts: list[list[float]] | None) -> Path:
    """An imatrix with tensors of just these shapes."""
    metadata: Metadata = {"general.type": MetaValue("str", "imatrix")}
    arrays = {"w.in_sum2": np.array(sums, "<f4")}
    if counts is not None:
        arrays["w.counts"] = np.array(counts, "<f4")
    infos = [TensorInfo(name, array.shape, "F32") for name, array in arrays.items()]
    data = [(name, array.reshape(-1).view(np.uint8)) for name, array in arrays.items()]
    write_gguf(path, metadata, infos, data)
    return path


def test_dimensions_of_one_may_be_there(tmp_path: Path) -> None:
    entry = read_imatrix(written(tmp_path / "i.gguf", [[2, 4]], [[2]])).entries["w"]
    assert (entry.sums.shape, entry.counts.shape) == ((1, 2), (1,))
    assert entry.importance().tolist() == [[1, 2]]


def test_one_count_for_a_whole_stack_stays_one(tmp_path: Path) -> None:
    path = written(tmp_path / "i.gguf", [[2, 4], [6, 8]], [[2]])
    entry = read_imatrix(path).entries["w"]
    assert entry.importance().tolist() == [[1, 2], [3, 4]]
    assert (entry.counts.tolist(), entry.tokens.tolist(), entry.unseen) == ([2], [2, 2], 0)


NAN = float("nan")


@pytest.mark.parametrize(
    ("sums", "counts", "words"),
    [
        ([[1, 2]], None, "no counts"),
        ([[1, 2], [1, 2]], [[1], [1], [1]], "2 sums for 3 counts"),
        ([[1, -2]], [[1]], "negative"),
        ([[], []], [[1]], "no columns|impossible"),
        ([[1, 2]], [[NAN]], "not finite"),
    ],
)
def test_entries_that_contradict_themselves(
    sums: list[list[float]], counts: list[list[float]] | None, words: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=words):
        read_imatrix(written(tmp_path / "i.gguf", sums, counts))


def test_files_that_are_no_imatrix(tmp_path: Path) -> None:
    for path in (tmp_path / "none.gguf", write_llama(tmp_path / "m.gguf")):
        with pytest.raises(InputError, match=path.name):
            read_imatrix(path)
