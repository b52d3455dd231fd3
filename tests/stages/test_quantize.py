"""Quantizing against llama.cpp's own `llama_model_quantize`, byte for byte."""

from __future__ import annotations

import ctypes
from pathlib import Path

import llama_cpp
import numpy as np
import pytest
from models import llama_arrays, llama_metadata, write_gguf

from quantkit import encoding
from quantkit.encoding import write_shards
from quantkit.formats.gguf_file import GGUFSource
from quantkit.formats.gguf_writer import lay_out
from quantkit.progress import SILENT
from quantkit.receipts import file_sha256
from quantkit.values import TensorInfo

FTYPES = {"Q4_0": 2, "Q4_K": 14, "IQ2_XS": 20, "Q6_K": 18, "Q8_0": 7, "IQ4_NL": 25}


def importance_of(name: str, columns: int) -> np.ndarray:
    seed = sum(name.encode())
    return np.random.default_rng(seed).uniform(0.1, 9.0, columns).astype(np.float32)


def llama_cpp_quantize(
    source: Path, out: Path, kind: str, importance: dict[str, np.ndarray]
) -> None:
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.pure, params.nthread = FTYPES[kind], True, 2
    entries = (llama_cpp.llama_model_imatrix_data * (len(importance) + 1))()
    for entry, (name, values) in zip(entries, importance.items(), strict=False):
        entry.name = name.encode()
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.size = values.size
    params.imatrix = entries
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), params) == 0


@pytest.mark.parametrize("kind", sorted(FTYPES))
def test_bytes_equal_llama_quantize(kind: str, tmp_path: Path) -> None:
    source = GGUFSource(write_gguf(tmp_path / "f32.gguf", llama_metadata(), llama_arrays()))
    importance = {
        info.name: importance_of(info.name, info.row_elements)
        for info in source.tensors
        if len(info.shape) == 2
    }
    llama_cpp_quantize(source.paths[0], tmp_path / "theirs.gguf", kind, importance)
    theirs = GGUFSource(tmp_path / "theirs.gguf")
    types = {info.name: info.type_name for info in theirs.tensors}
    assert kind in types.values()
    infos = [TensorInfo(i.name, i.shape, types[i.name]) for i in source.tensors]
    layouts = lay_out("ours", source.metadata, infos)
    stacked = {name: values[None] for name, values in importance.items()}
    write_shards(tmp_path, tmp_path, layouts, source, stacked, SILENT, workers=2)
    ours = GGUFSource(tmp_path / "ours.gguf")
    for info in ours.tensors:
        mine = ours.read_stored(info.name, 0, info.rows)
        reference = theirs.read_stored(info.name, 0, info.rows)
        assert np.array_equal(mine, reference), info.name


def test_experts_use_their_own_importance_and_workers_do_not_matter(tmp_path: Path) -> None:
    random = np.random.default_rng(4)
    arrays = {"blk.0.ffn_up_exps.weight": random.standard_normal((3, 8, 256), np.float32)}
    source = GGUFSource(write_gguf(tmp_path / "s.gguf", llama_metadata(), arrays))
    importance = {"blk.0.ffn_up_exps.weight": random.uniform(0.1, 9, (3, 256)).astype(np.float32)}
    infos = [TensorInfo("blk.0.ffn_up_exps.weight", (3, 8, 256), "IQ2_S")]
    hashes = set()
    for workers in (1, 2, 5):
        layouts = lay_out(f"w{workers}", source.metadata, infos)
        (path,) = write_shards(tmp_path, tmp_path, layouts, source, importance, SILENT, workers)
        hashes.add(file_sha256(path))
    assert len(hashes) == 1
    flat = {"blk.0.ffn_up_exps.weight": np.repeat(importance["blk.0.ffn_up_exps.weight"][:1], 3, 0)}
    layouts = lay_out("flat", source.metadata, infos)
    (path,) = write_shards(tmp_path, tmp_path, layouts, source, flat, SILENT, 2)
    assert file_sha256(path) not in hashes


def test_a_killed_run_goes_on_and_a_lost_file_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "SYNC_BYTES", 0)  # every tensor is journalled at once
    source = GGUFSource(write_gguf(tmp_path / "s.gguf", llama_metadata(), llama_arrays()))
    infos = [
        TensorInfo(i.name, i.shape, "Q8_0" if len(i.shape) == 2 else "F32") for i in source.tensors
    ]
    work = tmp_path / "work"
    work.mkdir()

    class Killed(Exception):
        pass

    class KillAfter:
        def __init__(self, advances: int) -> None:
            self.left = advances

        def start(self, total: float, unit: str, what: str = "", done: float = 0) -> None:
            pass

        def advance(self, amount: float) -> None:
            self.left -= 1
            if self.left == 0:
                raise Killed

        def note(self, sentence: str) -> None:
            pass

    (reference,) = write_shards(
        tmp_path, work, lay_out("ref", source.metadata, infos), source, {}, SILENT, 2
    )
    layouts = lay_out("m", source.metadata, infos)
    with pytest.raises(Killed):
        write_shards(tmp_path, work, layouts, source, {}, KillAfter(4), 2)
    journal = work / "m.gguf.journal"
    assert 1 < len(journal.read_text().splitlines()) <= 1 + 4
    journal.write_text(journal.read_text() + "blk.0.attn")  # cut off in the middle of a line
    (path,) = write_shards(tmp_path, work, layouts, source, {}, SILENT, 2)
    assert path.read_bytes()[1000:] == reference.read_bytes()[1000:]
    assert file_sha256(path) == file_sha256(reference)
    with pytest.raises(Killed):
        write_shards(tmp_path, tmp_path, layouts, source, {}, KillAfter(4), 2)
    (tmp_path / "m.gguf").unlink()  # what the journal lists is gone
    (path,) = write_shards(tmp_path, tmp_path, layouts, source, {}, SILENT, 2)
    assert file_sha256(path) == file_sha256(reference)
