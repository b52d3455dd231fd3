"""Encoding: what a kill can lose, in what order the disk is written, and who may write."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from checkpoints import write_nemotron
from models import llama_arrays, llama_metadata, write_gguf
from numpy.typing import NDArray

from quantkit.core.errors import DiskFullError, InputError
from quantkit.core.files import file_sha256
from quantkit.core.progress import SILENT
from quantkit.core.work_folders import Journal
from quantkit.formats.gguf_writer import ShardWriter, lay_out, tensor_size_bytes
from quantkit.formats.imatrix_file import ImatrixEntry
from quantkit.formats.tensor_types import quant_type
from quantkit.llamacpp import ggml_kernels
from quantkit.models.gguf_source import GGUFSource
from quantkit.quantize import encode, kernels
from quantkit.quantize.encode import write_shards

# `quantkit convert` in small blocks, journalled at once and with a pause: to be killed between.
# With a file's name as its last argument it waits before each block for as long as the file exists.
SLOWLY = """
import os, sys, time
hold = sys.argv.pop()
from quantkit.quantize import encode
from quantkit.formats.gguf_writer import ShardWriter
encode.ROWS_BYTES, encode.SYNC_BYTES = 512, 0
write = ShardWriter.write
def slow(self, *arguments):
    time.sleep(0.002)
    while os.path.exists(hold):
        time.sleep(0.002)
    write(self, *arguments)
ShardWriter.write = slow
from quantkit.cli.app import main
main()
"""


def command(model: Path, out: Path, hold: str | Path = "") -> list[str]:
    options = ["--model", str(model), "--out", str(out), "--type", "Q8_0", "--quiet", str(hold)]
    return [sys.executable, "-c", SLOWLY, "convert", *options]


def converted(model: Path, out: Path) -> str:
    """The hash of the file that a whole conversion writes."""
    done = subprocess.run(command(model, out), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return file_sha256(out)


def journalled(out: Path) -> int:
    """Tensors that the unfinished conversion has noted as done."""
    journal = out.with_name(out.name + ".work") / f"{out.name}.journal"
    return len(journal.read_text().splitlines()) - 1 if journal.exists() else 0


@pytest.mark.parametrize("inside", [False, True], ids=["elsewhere", "in the checkpoint's folder"])
def test_a_killed_conversion_goes_on_and_gives_the_same_bytes(tmp_path: Path, inside: bool) -> None:
    model = write_nemotron(tmp_path / "model")
    whole = converted(model, tmp_path / "whole.gguf")
    out = (model if inside else tmp_path) / "killed.gguf"
    kept = []
    for _ in range(3):
        with subprocess.Popen(command(model, out)) as process:
            before = journalled(out)
            while journalled(out) < before + 4:
                assert process.poll() is None, "it ended before it could be killed"
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
        kept.append(journalled(out))
        assert not out.exists()
    assert kept[0] < kept[1] < kept[2]  # each went on where the one before ended
    assert converted(model, out) == whole
    assert not out.with_name(out.name + ".work").exists()


def test_two_conversions_to_one_file_do_not_mix(tmp_path: Path) -> None:
    model, out = write_nemotron(tmp_path / "model"), tmp_path / "out.gguf"
    hold = tmp_path / "hold"
    with subprocess.Popen(command(model, out, hold)) as first:
        while not journalled(out):
            assert first.poll() is None
            time.sleep(0.005)
        hold.touch()
        second = subprocess.run(command(model, out), capture_output=True, text=True)
        assert first.poll() is None
        hold.unlink()
    assert second.returncode == 2
    assert second.stderr.startswith("error: another run"), second.stderr
    assert first.returncode == 0
    assert file_sha256(out) == converted(model, tmp_path / "whole.gguf")


def test_a_tensor_is_journalled_when_all_of_it_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "ROWS_BYTES", 512)
    monkeypatch.setattr(encode, "SYNC_BYTES", 2000)
    source = GGUFSource(write_gguf(tmp_path / "s.gguf", llama_metadata(), llama_arrays()))
    (layout,) = lay_out("m", source.metadata, source.tensors)
    written: dict[str, int] = defaultdict(int)
    synced: dict[str, int] = {}
    write, sync, append = ShardWriter.write, ShardWriter.sync, Journal.append
    lock = threading.Lock()

    def seen_write(self: ShardWriter, name: str, data: NDArray[np.uint8], at: int = 0) -> None:
        write(self, name, data, at)
        with lock:
            written[name] += data.nbytes

    def seen_sync(self: ShardWriter) -> None:
        with lock:
            now = dict(written)
        sync(self)
        synced.update(now)

    def seen_append(self: Journal, *lines: str) -> None:
        for line in lines:
            assert synced[line] == sizes[line], f"{line} was noted too early"
        append(self, *lines)

    sizes = {info.name: tensor_size_bytes(info) for info in layout.tensors}
    monkeypatch.setattr(ShardWriter, "write", seen_write)
    monkeypatch.setattr(ShardWriter, "sync", seen_sync)
    monkeypatch.setattr(Journal, "append", seen_append)
    work = tmp_path / "work"
    write_shards(tmp_path, work, [layout], source, {}, SILENT, workers=3)
    assert written == sizes
    assert max(sizes.values()) > 4 * 512  # several blocks in a tensor, or this showed nothing


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("F16", np.nan), ("F16", -np.inf), ("BF16", np.nan),
        ("BF16", np.inf), ("F32", np.nan), ("F32", np.inf),
        *itertools.product(["Q8_0", "Q4_K", "Q5_1", "IQ4_NL", "IQ3_S"], [np.inf, np.nan, 1e38]),
    ],
)  # fmt: skip
def test_no_type_takes_a_weight_that_it_cannot_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, value: float
) -> None:
    monkeypatch.setattr(encode, "ROWS_BYTES", 4096)
    arrays, name = llama_arrays(), "blk.0.ffn_up.weight"
    arrays[name][300, 7] = value
    stored = "BF16" if kind == "F32" else "F32"  # of another type, so that it is no copy
    with np.errstate(over="ignore"):
        source = GGUFSource(
            write_gguf(tmp_path / "s.gguf", llama_metadata(), arrays, {name: stored})
        )
    work = tmp_path / "work"
    infos = [i.with_type(kind if i.name == name else i.type_name) for i in source.tensors]
    layouts = lay_out("m", source.metadata, infos)
    with pytest.raises(InputError, match=rf"of blk\.0\.ffn_up\.weight are not finite as {kind}"):
        write_shards(tmp_path, work, layouts, source, {}, SILENT, workers=1)
    assert not (tmp_path / "m.gguf").exists()


def test_what_is_stored_in_the_wanted_type_stays_a_copy(tmp_path: Path) -> None:
    """Whatever it holds: `convert` keeps a model as it is."""
    arrays, name = llama_arrays(), "blk.0.ffn_up.weight"
    arrays[name][300, 7] = np.nan
    source = GGUFSource(write_gguf(tmp_path / "s.gguf", llama_metadata(), arrays))
    work = tmp_path / "work"
    layouts = lay_out("m", source.metadata, source.tensors)
    (path,) = write_shards(tmp_path, work, layouts, source, {}, SILENT, workers=1)
    copied = GGUFSource(path).read_rows(name, 0, 512)
    assert np.array_equal(copied, arrays[name], equal_nan=True)


def test_room_is_looked_for_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = GGUFSource(write_gguf(tmp_path / "s.gguf", llama_metadata(), llama_arrays()))
    layouts = lay_out("m", source.metadata, source.tensors)
    monkeypatch.setattr("quantkit.core.disk.free_bytes", lambda folder: layouts[0].size_bytes - 1)
    work = tmp_path / "work"
    with pytest.raises(DiskFullError) as found:
        write_shards(tmp_path, work, layouts, source, {}, SILENT, workers=1)
    assert found.value.needed_bytes == layouts[0].size_bytes
    assert not (work / layouts[0].file_name).exists()


def test_nothing_writes_any_more_after_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is closed then, and its descriptor may soon be another file's."""
    monkeypatch.setattr(encode, "ROWS_BYTES", 512)
    source = GGUFSource(write_gguf(tmp_path / "s.gguf", llama_metadata(), llama_arrays()))
    layouts = lay_out("m", source.metadata, source.tensors)
    gc.collect()  # files that earlier tests left open are closed now, and not meanwhile
    open_descriptors = set(os.listdir("/proc/self/fd"))
    late: list[str] = []
    write = ShardWriter.write

    def failing(self: ShardWriter, name: str, data: NDArray[np.uint8], at: int = 0) -> None:
        if at > 1000:
            raise OSError(28, "No space left on device")
        time.sleep(0.01)
        try:
            write(self, name, data, at)
        except OSError as error:
            late.append(f"{name}: {error}")

    monkeypatch.setattr(ShardWriter, "write", failing)
    work = tmp_path / "work"
    with pytest.raises(OSError, match="No space"):
        write_shards(tmp_path, work, layouts, source, {}, SILENT, workers=4)
    assert not late
    assert set(os.listdir("/proc/self/fd")) == open_descriptors


@pytest.mark.parametrize("expert", [0, 1, 2])
@pytest.mark.parametrize("name", ["Q4_0", "IQ4_NL", "Q4_K", "Q6_K", "IQ3_XXS", "Q2_K"])
def test_no_weight_is_erased_for_want_of_activations(name: str, expert: int) -> None:
    """An expert that one token reached in few columns, one with many tokens, and one with none."""
    kind, random = quant_type(name), np.random.default_rng(0)
    rows = random.standard_normal((8, 512), np.float32)
    sums = random.uniform(0.1, 9, (3, 512)).astype(np.float32)
    sums[0, :256] = sums[0, 300:] = sums[2] = 0
    importance = ImatrixEntry(sums, np.array([1, 500, 0], np.float32)).importance()
    kernels.prepare(kind)
    errors = []
    for column in (importance[expert], np.ones(512, np.float32)):
        restored = ggml_kernels.dequantize(kind, kernels.quantize(kind, rows, column), 512)
        errors.append(float(np.square(rows - restored).sum()))
    assert errors[0] < 1.5 * errors[1]
