"""Imatrix files: gguf reads them, llama.cpp's own layout, unseen experts, and the legacy .dat."""

from __future__ import annotations

import dataclasses
import os
import re
import struct
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
from models import write_llama
from places import DATA

from quantkit.core.errors import InputError
from quantkit.formats.gguf_writer import write_gguf
from quantkit.formats.imatrix_file import (
    MAX_BYTES,
    MAX_VALUES,
    SMALLEST_IMPORTANCE,
    Imatrix,
    ImatrixEntry,
    read_imatrix,
    write_imatrix,
)
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


def test_unseen_expert_gets_the_mean_of_all_tokens() -> None:
    entry = example().entries["blk.0.ffn_up_exps.weight"]
    importance = entry.importance()
    assert entry.unseen == 1
    assert np.array_equal(importance[2], entry.sums[2] / 4)
    tokens = float(entry.counts.sum())
    total = entry.sums[[0, 2]].sum(axis=0)
    assert np.allclose(importance[1], (total + total.mean() / tokens) / (tokens + 1))
    assert (entry.means()[1] == 1).all()  # llama-quantize's


def test_columns_without_activations_have_the_mean_of_one_token() -> None:
    stack = ImatrixEntry(np.array([[0, 8], [40, 0], [2, 6]], "f4"), np.array([1, 4, 2], "f4"))
    prior = (np.array([42, 14]) + 4) / 8  # 56 of 7 tokens in 2 columns are 4 each
    expected = [prior / 2 + [0, 4], np.add(prior, [40, 0]) / 5, [1, 3]]
    assert np.allclose(stack.importance(), expected)
    assert np.array_equal(stack.importance()[2], stack.means()[2])
    dense = ImatrixEntry(np.array([[0, 30]], "f4"), np.array([2], "f4"))
    assert np.allclose(dense.importance(), [[7.5 / 3, 37.5 / 3]])
    for sums, counts in (([[0, 0]], [3]), ([[0, 0]], [0]), ([[0, 0], [0, 0]], [0, 5])):
        nothing = ImatrixEntry(np.array(sums, "f4"), np.array(counts, "f4"))
        assert (nothing.importance() == 1).all()
    assert (stack.importance() >= SMALLEST_IMPORTANCE).all()


@pytest.mark.parametrize("name", [REFERENCE, "demo-4x512.bos.imatrix.gguf"])
def test_what_llama_imatrix_wrote_is_written_again_byte_for_byte(name: str, tmp_path: Path) -> None:
    found = read_imatrix(REFERENCES / name)
    assert (found.chunks, found.chunk_tokens, found.datasets) == (4, 512, ("demo-4x512.txt",))
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
        assert np.allclose(again.means(), entry.means(), rtol=1e-6, atol=0), name
        assert ((again.tokens > 0) == (entry.tokens > 0)).all(), name


def written(
    path: Path,
    sums: list[list[float]],
    counts: list[list[float]] | None,
    more: Metadata | None = None,
) -> Path:
    """An imatrix with tensors of just these shapes."""
    metadata: Metadata = {"general.type": MetaValue("str", "imatrix"), **(more or {})}
    arrays = {"w.in_sum2": np.array(sums, "<f4")}
    if counts is not None:
        arrays["w.counts"] = np.array(counts, "<f4")
    infos = [TensorInfo(name, array.shape, "F32") for name, array in arrays.items()]
    data = [(name, array.reshape(-1).view(np.uint8)) for name, array in arrays.items()]
    write_gguf(path, metadata, infos, data)
    return path


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    """Of a text, as the path of another system: it is only shown. Of a weight: refused."""
    path = tmp_path / "i.gguf"
    write_imatrix(path, dataclasses.replace(example(), datasets=("caf\udce9.txt",)))
    assert read_imatrix(path).datasets == ("caf\ufffd.txt",)
    path.write_bytes(path.read_bytes().replace(b"blk.0.attn_q", b"blk.0.attn_\xff"))
    with pytest.raises(InputError):
        read_imatrix(path)


@pytest.mark.parametrize("sums", [[[2, 4]], [[2, 4], [6, 8]]])  # a matrix, and a whole stack
def test_one_count_stays_one(sums: list[list[float]], tmp_path: Path) -> None:
    entry = read_imatrix(written(tmp_path / "i.gguf", sums, [[2]])).entries["w"]
    assert entry.importance().tolist() == [[1, 2], [3, 4]][: len(sums)]
    assert (entry.counts.tolist(), entry.tokens.tolist()) == ([2], [2] * len(sums))
    assert entry.unseen == 0


def test_a_part_of_an_imatrix_is_none(tmp_path: Path) -> None:
    part: Metadata = {"split.no": MetaValue("u16", 0), "split.count": MetaValue("u16", 2)}
    path = written(tmp_path / "i.gguf", [[2, 4]], [[2]], part)
    for name in ("i.gguf", "i-00001-of-00002.gguf"):
        with pytest.raises(InputError, match=name):
            read_imatrix(path.replace(tmp_path / name))


@pytest.mark.parametrize("start", [b"GGUF\x03\0\0\0", struct.pack("<ii", 1, 1) + b"w"])
def test_a_sparse_file_is_not_read(start: bytes, tmp_path: Path) -> None:
    path = tmp_path / "i"
    path.write_bytes(start)
    os.truncate(path, MAX_BYTES + 1)
    with pytest.raises(InputError, match=str(MAX_BYTES)):
        read_imatrix(path)


@pytest.mark.parametrize(
    "start",
    [
        struct.pack("<ii", 1, 100 * 1024),  # a name's length
        struct.pack("<ii", 1, 1) + b"w" + struct.pack("<ii", 1, MAX_VALUES + 1),
    ],
)
def test_one_entry_that_takes_all_memory(start: bytes, tmp_path: Path) -> None:
    """A sparse file holds what its lengths say, and is read to the end before it is refused."""
    path = tmp_path / "i.dat"
    path.write_bytes(start)
    os.truncate(path, len(start) + 4 * (MAX_VALUES + 1) + 8)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="limit"):
            read_imatrix(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


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


STACK = "blk.0.ffn_up_exps.weight"


def dat_text(value: bytes, length: int | None = None) -> bytes:
    return struct.pack("<i", len(value) if length is None else length) + value


def dat_entry(
    name: bytes,
    calls: int,
    values: list[float],
    length: int | None = None,
    count: int | None = None,
) -> bytes:
    size = len(values) if count is None else count
    floats = struct.pack(f"<{len(values)}f", *values)
    return dat_text(name, length) + struct.pack("<ii", calls, size) + floats


Q = dat_entry(b"blk.0.attn_q.weight", 3, [3, 6, 9, 12])
UP = dat_entry(STACK.encode(), 2, [4, 8, 2, 2, 2, 6])
END = struct.pack("<i", 3) + dat_text(b"a.txt")
WHOLE = struct.pack("<i", 2) + Q + UP + END


def dat(folder: Path, content: bytes) -> Path:
    path = folder / "i.dat"
    path.write_bytes(content)
    return path


def test_means_are_exact_and_unseen_experts_known_from_the_rows(tmp_path: Path) -> None:
    found = read_imatrix(dat(tmp_path, WHOLE), {STACK: 2})
    assert (found.chunks, found.chunk_tokens, found.datasets) == (3, 512, ("a.txt",))
    assert not found.counts_are_exact
    assert found.entries["blk.0.attn_q.weight"].importance().tolist() == [[1, 2, 3, 4]]
    stack = found.entries[STACK]
    assert stack.counts.tolist() == [1024, 0, 1024]
    assert np.allclose(stack.importance(), [[2, 4], [1.5, 3.5], [1, 3]], rtol=1e-3)
    assert len(found.unknown) == 2


def test_without_the_model_a_stack_is_one_matrix_and_that_is_said(tmp_path: Path) -> None:
    found = read_imatrix(dat(tmp_path, WHOLE))
    assert found.entries[STACK].sums.shape == (1, 6)
    assert "1 stacks" in found.unknown[2]


def test_rows_of_another_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"6 values, .* 4"):
        read_imatrix(dat(tmp_path, WHOLE), {STACK: 4})


def test_an_old_file_ends_after_its_entries(tmp_path: Path) -> None:
    found = read_imatrix(dat(tmp_path, WHOLE[: -len(END)]))
    assert (found.chunks, found.datasets) == (0, ())
    assert len(found.unknown) == 4


def test_cut_anywhere_else_it_is_refused(tmp_path: Path) -> None:
    for size in range(len(WHOLE)):
        if size != len(WHOLE) - len(END):
            with pytest.raises(InputError, match="legacy"):
                read_imatrix(dat(tmp_path, WHOLE[:size]))


ONE = struct.pack("<i", 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (WHOLE + b"\0", "1 bytes after"),
        (struct.pack("<i", 0) + END, "entries is 0"),
        (struct.pack("<i", -5) + Q, "entries is -5"),
        (struct.pack("<i", 2**31 - 1) + Q, "2147483647"),
        (ONE + dat_entry(b"w", 1, [1], length=-1), "a name's length is -1"),
        (ONE + dat_entry(b"", 1, [1]) + END, "a name's length is 0"),
        (ONE + dat_entry(b"w", 1, [1], length=2**30), "1073741824"),
        (ONE + dat_entry(b"w\0", 1, [1]), "not printable"),
        (ONE + dat_entry(b"\xff", 1, [1]), "not printable"),
        (ONE + dat_entry(b"w", 0, [1]), "calls of w is 0"),
        (ONE + dat_entry(b"w", -1, [1]), "calls of w is -1"),
        (ONE + dat_entry(b"w", 1, [1], count=-1), "values of w is -1"),
        (ONE + dat_entry(b"w", 1, [], count=0) + END, "values of w is 0"),
        (ONE + dat_entry(b"w", 1, [1], count=2**29), "536870912"),
        (ONE + dat_entry(b"w", 1, [float("nan")]), "not finite"),
        (ONE + dat_entry(b"w", 1, [float("inf")]), "not finite"),
        (ONE + dat_entry(b"w", 1, [-1]), "not finite"),
        (struct.pack("<i", 2) + Q + Q + END, "attn_q.weight is listed twice"),
        (ONE + Q + struct.pack("<i", -1) + dat_text(b""), "number of chunks is -1"),
        (ONE + Q + struct.pack("<i", 1) + dat_text(b"a", -2), "dataset's name is -2"),
        (b"", "number of entries"),
        (np.random.default_rng(3).bytes(4000), ""),
    ],
)
def test_lies_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"legacy.*{re.escape(message)}"):
        read_imatrix(dat(tmp_path, content))
