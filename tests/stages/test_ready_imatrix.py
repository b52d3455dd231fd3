"""A ready importance matrix is taken as it is, and held against the model first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from quantkit.errors import InputError
from quantkit.formats.imatrix_file import Imatrix, ImatrixEntry, read_imatrix, write_imatrix
from quantkit.models import choose_model, open_source
from quantkit.receipts import file_sha256
from quantkit.stages.ready_imatrix import check_ready, take_ready

DATA = Path(__file__).parents[1] / "data" / "imatrix"
TENSORS = open_source(choose_model("demo")).tensors


def entry(matrices: int, columns: int) -> ImatrixEntry:
    counts = np.full(matrices, 4, np.float32)
    return ImatrixEntry(np.ones((matrices, columns), np.float32), counts)


def written(path: Path, **entries: ImatrixEntry) -> Path:
    write_imatrix(path, Imatrix({f"blk.{k}": e for k, e in entries.items()}, 512, 2, ("a.txt",)))
    return path


def test_a_gguf_is_taken_byte_for_byte(tmp_path: Path) -> None:
    given, out = DATA / "demo-4x512.imatrix.gguf", tmp_path / "imatrix.gguf"
    ready = take_ready(given, TENSORS, out)
    assert ready.notes == ()
    assert file_sha256(out) == file_sha256(given)


def test_a_dat_becomes_a_gguf_that_still_says_what_it_does_not_know(tmp_path: Path) -> None:
    out = tmp_path / "imatrix.gguf"
    ready = take_ready(DATA / "demo-4x512.imatrix.dat", TENSORS, out)
    assert any("no counts" in note for note in ready.notes)
    taken, reference = read_imatrix(out), read_imatrix(DATA / "demo-4x512.imatrix.gguf")
    assert not taken.counts_are_exact
    assert taken.unknown == ready.imatrix.unknown
    assert sorted(taken.entries) == sorted(reference.entries)
    for name, expected in reference.entries.items():
        assert taken.entries[name].sums.shape == expected.sums.shape
        seen = expected.tokens > 0
        np.testing.assert_array_equal(taken.entries[name].tokens > 0, seen)
        np.testing.assert_allclose(
            taken.entries[name].importance()[seen], expected.importance()[seen], rtol=1e-5
        )


def test_what_it_does_not_cover_is_said(tmp_path: Path) -> None:
    columns = next(i.row_elements for i in TENSORS if i.name == "blk.2.attn_q.weight")
    path = written(tmp_path / "some.gguf", **{"2.attn_q.weight": entry(1, columns)})
    (note,) = check_ready(path, TENSORS).notes
    assert "no statistics of 29 of the 30 weights" in note


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"2.attn_q.weight": entry(1, 128)}, "128 columns, the model's has 256"),
        ({"1.ffn_up_exps.weight": entry(4, 64)}, "4 matrices, the model's has 8"),
        ({"99.attn_q.weight": entry(1, 256)}, "only of others such as blk.99.attn_q.weight"),
        ({}, "no statistics of this model's weights; it was collected on another model"),
    ],
)
def test_an_imatrix_of_another_model_is_refused(
    tmp_path: Path, entries: dict[str, ImatrixEntry], words: str
) -> None:
    info = next(i for i in TENSORS if i.name == "blk.1.ffn_up_exps.weight")
    if "4 matrices" in words:
        entries = {"1.ffn_up_exps.weight": entry(4, info.row_elements)}
    path = written(tmp_path / "other.gguf", **entries)
    with pytest.raises(InputError, match=words):
        take_ready(path, TENSORS, tmp_path / "imatrix.gguf")
    assert not (tmp_path / "imatrix.gguf").exists()
