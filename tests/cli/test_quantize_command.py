"""`quantkit quantize`: what llama-quantize would have written, and what is refused."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked
import gguf
import llama_cpp
import numpy as np
import pytest
from models import write_llama

from quantkit.core.files import file_sha256
from quantkit.core.progress import SILENT
from quantkit.formats.gguf_writer import lay_out
from quantkit.formats.imatrix_file import Imatrix, ImatrixEntry, read_imatrix, write_imatrix
from quantkit.formats.tensors import MetaValue
from quantkit.models.choose import choose_model, open_source
from quantkit.models.gguf_source import GGUFSource
from quantkit.quantize.candidates import is_quantizable
from quantkit.quantize.encode import write_shards

SOURCE = open_source(choose_model("demo"))

# The command in small blocks, journalled at once and with a pause: to be killed between.
SLOWLY = """
import time
from quantkit.quantize import encode
from quantkit.formats.gguf_writer import ShardWriter
encode.ROWS_BYTES, encode.SYNC_BYTES = 65536, 0
write = ShardWriter.write
def slow(self, *arguments):
    time.sleep(0.002)
    write(self, *arguments)
ShardWriter.write = slow
"""
CALL = "from quantkit.cli.app import main; main()"


def arguments(*given: object) -> list[str]:
    return ["quantize", *map(str, given), "--workers", "2"]


def quantize(*given: object) -> str:
    return forked.printed(*arguments(*given))


def refused(*given: object) -> str:
    done = forked.quantkit(*arguments(*given))
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stderr.strip().splitlines()
    return line


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model as a GGUF, which llama.cpp quantizes."""
    folder = tmp_path_factory.mktemp("base")
    metadata = SOURCE.metadata | {"general.file_type": MetaValue("u32", 32)}
    layouts = lay_out("demo", metadata, SOURCE.tensors)
    (path,) = write_shards(folder, folder, layouts, SOURCE, {}, SILENT, workers=2)
    return path


@pytest.fixture(scope="module")
def imatrix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random statistics of every weight, of experts each their own.

    One expert has no tokens, and the first columns of all weights have no activations.
    """
    path = tmp_path_factory.mktemp("imatrix") / "demo.imatrix.gguf"
    random = np.random.default_rng(3)
    entries = {
        info.name: ImatrixEntry(
            random.uniform(0.1, 9.0, (info.matrices, info.row_elements)).astype(np.float32),
            random.integers(1, 50, info.matrices).astype(np.float32),
        )
        for info in SOURCE.tensors
        if is_quantizable(info)
    }
    for entry in entries.values():
        entry.sums[:, :40] = 0
        if len(entry.counts) > 1:
            entry.sums[3], entry.counts[3] = 0, 0
    write_imatrix(path, Imatrix(entries, 512, 7, ("some.txt",)))
    return path


def override(key: str, value: str | int) -> llama_cpp.llama_model_kv_override:
    made = llama_cpp.llama_model_kv_override(key=key.encode())
    if isinstance(value, str):
        made.tag, made.value.val_str = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_STR, value.encode()
    else:
        made.tag, made.value.val_i64 = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_INT, value
    return made


def llama_quantize(base: Path, out: Path, preset: str, imatrix: Path | None) -> GGUFSource:
    """What llama-quantize does: `tools/quantize/quantize.cpp`."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{preset}")
    params.nthread = 2
    if imatrix is not None:
        found = read_imatrix(imatrix)
        arrays = {  # load_imatrix of the same file
            name: np.divide(
                entry.sums,
                entry.tokens[:, None],
                out=np.ones_like(entry.sums),
                where=entry.tokens[:, None] > 0,
            )
            for name, entry in found.entries.items()
        }
        entries = (llama_cpp.llama_model_imatrix_data * (len(arrays) + 1))()
        for entry, (name, values) in zip(entries, arrays.items(), strict=False):
            entry.name, entry.size = name.encode(), values.size
            entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        params.imatrix = entries
        overrides = (llama_cpp.llama_model_kv_override * 5)(
            override("quantize.imatrix.file", imatrix.name),
            override("quantize.imatrix.dataset", found.datasets[0]),
            override("quantize.imatrix.entries_count", len(arrays)),
            override("quantize.imatrix.chunks_count", found.chunks),
        )
        params.kv_overrides = overrides
    assert llama_cpp.llama_model_quantize(str(base).encode(), str(out).encode(), params) == 0
    return GGUFSource(out)


def test_all_texts_of_an_imatrix_are_named(base: Path, imatrix: Path, tmp_path: Path) -> None:
    """The one key in which the file is not llama-quantize's, which names the first."""
    several = tmp_path / "several.gguf"
    found = read_imatrix(imatrix)
    write_imatrix(several, dataclasses.replace(found, datasets=("texts/a.txt", "b.txt")))
    out = tmp_path / "ours.gguf"
    quantize("--model", "demo", "--types", "Q8_0", "--imatrix", several, "--out", out)
    ours = dict(GGUFSource(out).metadata)
    theirs = dict(llama_quantize(base, tmp_path / "theirs.gguf", "Q8_0", several).metadata)
    key = "quantize.imatrix.dataset"
    assert ours.pop(key) == MetaValue("str", "a.txt + b.txt")
    assert theirs.pop(key) == MetaValue("str", "texts/a.txt")
    assert ours == theirs


@pytest.mark.parametrize(
    ("preset", "with_imatrix"),
    [("Q4_K_M", True), ("Q4_K_M", False), ("Q3_K_S", True), ("Q8_0", False), ("IQ4_XS", True)],
)
def test_a_preset_is_the_file_that_llama_quantize_writes(
    base: Path, imatrix: Path, tmp_path: Path, preset: str, with_imatrix: bool
) -> None:
    out = tmp_path / "ours.gguf"
    more = ("--imatrix", imatrix) if with_imatrix else ()
    command = arguments("--model", "demo", "--types", preset, "--out", out, *more)
    facts = forked.facts(*command)
    chosen = imatrix if with_imatrix else None
    theirs = llama_quantize(base, tmp_path / "theirs.gguf", preset, chosen)
    ours = GGUFSource(out)
    assert ours.metadata == theirs.metadata
    assert ours.metadata["general.file_type"].value == facts["file_type"]
    stored = {info.name: info for info in theirs.tensors}
    assert {info.name: info for info in ours.tensors} == stored
    for info in ours.tensors:
        mine, reference = (s.read_stored(info.name, 0, info.rows) for s in (ours, theirs))
        assert np.array_equal(mine, reference), info
    # the same tensors in another order: llama.cpp sorts them by name, quantkit does as converted
    assert [i.name for i in ours.tensors] == [i.name for i in SOURCE.tensors]
    assert facts["files"] == [str(out)]
    assert facts["size_bytes"] == out.stat().st_size
    assert facts["preset"] == preset
    assert sum(facts["types"].values()) == len(SOURCE.tensors)
    narrow = facts["fallbacks"].get("blk.1.ffn_down_exps.weight")  # rows of 288
    expected = {"Q4_K_M": "Q5_0", "Q3_K_S": "Q4_0", "IQ4_XS": "IQ4_NL", "Q8_0": None}[preset]
    assert (narrow and narrow["given"]) == expected


def test_an_allocation_decides_every_type(imatrix: Path, tmp_path: Path) -> None:
    kinds = ("IQ2_XXS", "Q5_1", "IQ4_NL", "Q8_0")
    types = {info.name: info.type_name for info in SOURCE.tensors}
    weights = [info for info in SOURCE.tensors if is_quantizable(info)]
    for index, info in enumerate(weights):
        fits = info.row_elements % 256 == 0
        types[info.name] = kinds[index % 4] if fits else kinds[1 + index % 3]
    allocation = tmp_path / "allocation.json"
    content = {"tensors": {name: {"type": kind, "bytes": 0} for name, kind in types.items()}}
    allocation.write_text(json.dumps(content))
    out = tmp_path / "m.gguf"
    command = ("--model", "demo", "--types", allocation, "--out", out)
    last = quantize(*command, "--imatrix", imatrix).splitlines()[-1]
    bits = 8 * out.stat().st_size / sum(info.elements for info in SOURCE.tensors)
    assert last.startswith(f"{out}: ")
    assert last.endswith(f" MiB, {bits:.2f} bits per weight")
    reader = gguf.GGUFReader(out)
    assert {t.name: t.tensor_type.name for t in reader.tensors} == types
    assert "general.file_type" not in reader.fields
    assert not out.with_name("m.gguf.work").exists()

    needing = refused(*command)
    assert "IQ2_XXS (" in needing
    assert next(name for name, kind in types.items() if kind == "IQ2_XXS") in needing


def test_what_is_refused(base: Path, imatrix: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.gguf"
    common = ("--types", "Q4_0", "--out", out)
    assert "quantkit download a/b" in refused("--model", "a/b", *common)
    assert "Q4_K_XL" in refused("--model", "demo", "--types", "Q4_K_XL", "--out", out)
    assert ".gguf" in refused("--model", "demo", "--types", "Q4_0", "--out", tmp_path / "o")
    assert "--mtp" in refused("--model", "demo", "--mtp", "some", *common)
    before = file_sha256(base)
    assert base.name in refused("--model", base, "--types", "Q4_0", "--out", base)
    assert file_sha256(base) == before
    allocation = tmp_path / "a.json"  # tests/plan/test_type_choice.py has all that one can lack
    for text, words in (('{"tensors": {"a": {"type": "Q8_0"}}}', "another model"), ("{", "a.json")):
        allocation.write_text(text)
        assert words in refused("--model", "demo", "--types", allocation, "--out", out)
    # llama-quantize refuses these without an importance matrix
    for preset, kind in (("IQ3_XXS", "IQ3_XXS"), ("Q2_K_S", "Q2_K"), ("IQ2_M", "IQ2_S")):
        words = refused("--model", "demo", "--types", preset, "--out", out)
        assert f"importance matrix: {kind} (" in words
    other = tmp_path / "other.gguf"
    entry = ImatrixEntry(np.ones((1, 64), np.float32), np.array([8], np.float32))
    write_imatrix(other, Imatrix({"blk.77.attn_q.weight": entry}, 512, 2, ("a.txt",)))
    assert "another model" in refused("--model", "demo", "--imatrix", other, *common)
    assert not out.exists()


def test_a_gguf_that_is_quantized_already_is_told(tmp_path: Path) -> None:
    once, twice = tmp_path / "once.gguf", tmp_path / "twice.gguf"
    model = write_llama(tmp_path / "f32.gguf")
    first = quantize("--model", model, "--types", "Q8_0", "--out", once)
    assert "quantized already" not in first
    assert "9 × Q8_0, 3 × F32" in first
    assert "quantized already" in quantize("--model", once, "--types", "Q4_K_S", "--out", twice)
    assert quantize("--model", once, "--types", "Q4_0", "--out", twice, "--quiet") == ""


def test_a_killed_run_goes_on_and_gives_the_same_bytes(imatrix: Path, tmp_path: Path) -> None:
    given = ("--model", "demo", "--types", "Q5_K_M", "--imatrix", imatrix, "--quiet", "--out")
    whole, out = tmp_path / "whole.gguf", tmp_path / "killed.gguf"
    quantize(*given, whole)
    journal = out.with_name(out.name + ".work") / f"{out.name}.journal"
    program = [sys.executable, "-c", SLOWLY + CALL]
    with subprocess.Popen([*program, *arguments(*given, out)]) as process:
        while not journal.exists() or len(journal.read_text().splitlines()) < 8:
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    assert not out.exists()
    quantize(*given, out)
    assert file_sha256(out) == file_sha256(whole)
    assert not journal.parent.exists()


def test_ggml_s_own_kernels_give_the_same_file(
    imatrix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ("--model", "demo", "--types", "Q4_K_M", "--imatrix", imatrix, "--out")
    quantize(*given, tmp_path / "fast.gguf")
    monkeypatch.setenv("QUANTKIT_KERNELS", "ggml")
    assert "Q4_K, Q5_0, Q5_K, Q6_K: " in quantize(*given, tmp_path / "plain.gguf")
    assert file_sha256(tmp_path / "plain.gguf") == file_sha256(tmp_path / "fast.gguf")
