"""Quantizing against llama.cpp's own `llama_model_quantize`, byte for byte."""

from __future__ import annotations

import ctypes
import itertools
import re
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import pytest
from models import llama_arrays, llama_logits, llama_metadata, write_gguf
from watched import Killed, Recorder

from quantkit.config.levels import PRESETS
from quantkit.config.recipe import STOCK_CANDIDATES
from quantkit.core.files import file_sha256
from quantkit.core.progress import SILENT
from quantkit.formats.gguf_writer import ShardWriter, lay_out, open_shard
from quantkit.formats.tensor_types import BY_NAME
from quantkit.formats.tensors import MetaValue, TensorInfo
from quantkit.models.gguf_source import GGUFSource
from quantkit.models.model import Model
from quantkit.quantize import encode
from quantkit.quantize.encode import write_shards
from quantkit.quantize.quantize import preset_file_type, quantize


def importance_of(name: str, columns: int) -> np.ndarray:
    seed = sum(name.encode())
    return np.random.default_rng(seed).uniform(0.1, 9.0, columns).astype(np.float32)


def llama_cpp_quantize(
    source: Path, out: Path, types: dict[str, str], importance: dict[str, np.ndarray]
) -> None:
    """llama_model_quantize with each of these types given as an override."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, 2
    entries = (llama_cpp.llama_model_imatrix_data * (len(importance) + 1))()
    for entry, (name, values) in zip(entries, importance.items(), strict=False):
        entry.name = name.encode()
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.size = values.size
    params.imatrix = entries
    overrides = (llama_cpp.llama_model_tensor_override * (len(types) + 1))()
    for override, (name, kind) in zip(overrides, types.items(), strict=False):
        override.pattern = f"^{re.escape(name)}$".encode()
        override.type = BY_NAME[kind].ggml_id
    params.tt_overrides = overrides
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), params) == 0


@pytest.mark.parametrize("stored", ["F32", "F16", "BF16"])
def test_a_mixture_of_all_types_has_the_bytes_of_llama_quantize(
    tmp_path: Path, stored: str
) -> None:
    metadata = llama_metadata() | {"llama.block_count": MetaValue("u32", 3)}
    arrays = {  # more matrices than there are types
        name.replace("blk.0.", f"blk.{layer}."): array
        for layer in range(3)
        for name, array in llama_arrays(seed=layer + 1).items()
    }
    precision = {name: stored for name, array in arrays.items() if array.ndim == 2}
    source = GGUFSource(write_gguf(tmp_path / "source.gguf", metadata, arrays, precision))
    matrices = [info for info in source.tensors if len(info.shape) == 2]
    importance = {i.name: importance_of(i.name, i.row_elements) for i in matrices}
    assert len(matrices) > len(STOCK_CANDIDATES) >= 18
    types = {info.name: info.type_name for info in source.tensors}
    types |= {i.name: k for i, k in zip(matrices, itertools.cycle(STOCK_CANDIDATES), strict=False)}
    assert set(STOCK_CANDIDATES) | {"F32"} == set(types.values())
    theirs_path = tmp_path / "theirs.gguf"
    given = {info.name: types[info.name] for info in matrices}
    llama_cpp_quantize(source.paths[0], theirs_path, given, importance)
    stacked = {name: values[None] for name, values in importance.items()}
    (path,) = quantize(
        source, Model.of("ours", source), types, stacked, tmp_path, tmp_path, workers=2
    )
    ours, theirs = GGUFSource(path), GGUFSource(theirs_path)
    assert {info.name: info.type_name for info in theirs.tensors} == types
    for info in ours.tensors:
        mine = ours.read_stored(info.name, 0, info.rows)
        reference = theirs.read_stored(info.name, 0, info.rows)
        assert np.array_equal(mine, reference), (info.name, info.type_name)

    # gguf's own reader finds the same weights in it
    for tensor in gguf.GGUFReader(path).tensors:
        assert tensor.tensor_type.name == types[tensor.name]
        rows = ours.read_rows(tensor.name, 0, int(np.prod(tensor.shape[1:])))
        decoded = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert np.allclose(decoded.reshape(rows.shape), rows, rtol=1e-5, atol=1e-6), tensor.name

    # and llama.cpp runs it
    logits = llama_logits(path, np.arange(16, dtype=np.int32)[None])
    assert np.isfinite(logits).all()
    assert logits.std() > 0.01


def test_file_types_of_presets_are_those_of_llama_cpp() -> None:
    for name in PRESETS:
        assert preset_file_type(name) == getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}")
    assert preset_file_type("MOSTLY_BF16") is preset_file_type(None) is None


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


def test_a_killed_run_resumes_and_a_lost_file_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "SYNC_BYTES", 0)  # every tensor is journalled at once
    source = GGUFSource(write_gguf(tmp_path / "s.gguf", llama_metadata(), llama_arrays()))
    infos = [i.with_type("Q8_0" if len(i.shape) == 2 else "F32") for i in source.tensors]
    work = tmp_path / "work"

    (reference,) = write_shards(
        tmp_path, work, lay_out("ref", source.metadata, infos), source, {}, SILENT, 2
    )
    layouts = lay_out("m", source.metadata, infos)
    with pytest.raises(Killed):
        write_shards(tmp_path, work, layouts, source, {}, Recorder(kill_after=4), 2)
    journal = work / "m.gguf.journal"
    assert 1 < len(journal.read_text().splitlines()) <= 1 + 4
    journal.write_text(journal.read_text() + "blk.0.attn")  # cut off in the middle of a line
    (path,) = write_shards(tmp_path, work, layouts, source, {}, SILENT, 2)
    assert path.read_bytes()[1000:] == reference.read_bytes()[1000:]
    assert file_sha256(path) == file_sha256(reference)
    with pytest.raises(Killed):
        write_shards(tmp_path, tmp_path, layouts, source, {}, Recorder(kill_after=4), 2)
    (tmp_path / "m.gguf").unlink()  # what the journal lists is gone
    (path,) = write_shards(tmp_path, tmp_path, layouts, source, {}, SILENT, 2)
    assert file_sha256(path) == file_sha256(reference)


def test_no_name_of_a_tensor_ends_a_resumed_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even what the journal once had as its last line."""
    monkeypatch.setattr(encode, "SYNC_BYTES", 0)  # every tensor is journalled at once
    first = np.arange(512, dtype=np.float32).reshape(2, 256)
    arrays = {"(end of shard)": first} | llama_arrays()
    source = GGUFSource(write_gguf(tmp_path / "s.gguf", llama_metadata(), arrays))
    layouts, work = lay_out("m", source.metadata, source.tensors), tmp_path / "work"
    (whole,) = write_shards(tmp_path / "a", work, layouts, source, {}, SILENT, 1)
    killed, write, written = tmp_path / "killed", ShardWriter.write, list[str]()

    def three_writes(self: ShardWriter, name: str, data: np.ndarray, at: int = 0) -> None:
        if len(written) == 3:
            raise Killed
        written.append(name)
        write(self, name, data, at)

    with monkeypatch.context() as patched:
        patched.setattr(ShardWriter, "write", three_writes)
        with pytest.raises(Killed):
            write_shards(tmp_path / "b", killed, layouts, source, {}, SILENT, 1)
    assert (killed / "m.gguf.journal").read_text().splitlines()[1:] == written
    (path,) = write_shards(tmp_path / "b", killed, layouts, source, {}, SILENT, 1)
    assert path.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("shape", [(0, 4, 256), (4, 0, 256), (0, 256), (0,), (3, 0)])
def test_a_tensor_without_elements_is_kept(shape: tuple[int, ...], tmp_path: Path) -> None:
    infos = [TensorInfo("none.weight", shape, "F32"), TensorInfo("one.weight", (1, 32), "F32")]
    (layout,) = lay_out("m", llama_metadata(), infos)
    with open_shard(tmp_path / "m.gguf", layout) as writer:
        writer.write("one.weight", np.ones(128, np.uint8))
    source, out = GGUFSource(tmp_path / "m.gguf"), tmp_path / "out"
    (path,) = write_shards(out, tmp_path / "work", [layout], source, {}, SILENT, 2)
    assert path.read_bytes() == (tmp_path / "m.gguf").read_bytes()
