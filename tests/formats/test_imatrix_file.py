"""The imatrix file: gguf reads it, llama.cpp's own layout, and experts that were never seen."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from models import write_llama

from quantkit.errors import InputError
from quantkit.formats.imatrix_file import Imatrix, ImatrixEntry, read_imatrix, write_imatrix


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
    assert list(reader.tensors[3].shape) == [1, 3]


def test_unseen_expert_gets_the_mean_of_the_others() -> None:
    entry = example().entries["blk.0.ffn_up_exps.weight"]
    importance = entry.importance()
    assert entry.unseen == 1
    assert np.allclose(importance[0], entry.sums[0] / 2)
    assert np.allclose(importance[1], (importance[0] + importance[2]) / 2)


def test_a_model_is_no_imatrix(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not an imatrix"):
        read_imatrix(write_llama(tmp_path / "m.gguf"))
