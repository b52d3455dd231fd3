"""Tensors copied from finished files: the same bytes, and never from a modified file."""

from __future__ import annotations

import errno
import functools
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from models import llama_arrays, llama_metadata, write_gguf
from numpy.typing import NDArray
from watched import Recorder

from quantkit.core.files import file_sha256
from quantkit.formats.file_bytes import FileBytes
from quantkit.formats.gguf_file import FinishedFile, reusable_tensors
from quantkit.formats.gguf_writer import lay_out
from quantkit.formats.tensors import TensorInfo
from quantkit.models.gguf_source import GGUFSource
from quantkit.models.model import Model
from quantkit.quantize import encode
from quantkit.quantize import quantize as quantizing
from quantkit.quantize.quantize import quantize


class Recorded(GGUFSource):
    """A source that records the tensors whose rows were read."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.names: set[str] = set()

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        self.names.add(name)
        return super().read_rows(name, start, stop)


@pytest.fixture
def source(tmp_path: Path) -> Recorded:
    return Recorded(write_gguf(tmp_path / "f32.gguf", llama_metadata(), llama_arrays()))


def types_of(source: GGUFSource, others: dict[str, str]) -> dict[str, str]:
    return {
        info.name: others.get(info.name, "Q4_K" if len(info.shape) == 2 else "F32")
        for info in source.tensors
    }


FIRST = {"blk.0.attn_q.weight": "Q8_0", "output.weight": "Q6_K"}
SECOND = {"blk.0.attn_q.weight": "Q5_0", "output.weight": "Q6_K", "blk.0.ffn_up.weight": "Q3_K"}


def written(
    source: GGUFSource, others: dict[str, str], folder: Path, *finished: FinishedFile
) -> tuple[Path, list[str]]:
    """The artifact with these types, and the notes."""
    folder.mkdir()
    told = Recorder()
    (path,) = quantize(
        source, Model.of("m", source), types_of(source, others), {}, folder, folder, 2, told,
        finished,
    )  # fmt: skip
    return path, told.notes


def finished(path: Path) -> FinishedFile:
    stat = path.stat()
    return FinishedFile(path, stat.st_size, stat.st_mtime_ns)


def test_tensors_of_another_file_are_copied_and_the_bytes_are_the_same(
    source: Recorded, tmp_path: Path
) -> None:
    alone, notes = written(source, SECOND, tmp_path / "alone")
    assert notes == []
    first, _ = written(source, FIRST, tmp_path / "first")
    source.names.clear()
    shared, notes = written(source, SECOND, tmp_path / "shared", finished(first))
    assert source.names == {"blk.0.attn_q.weight", "blk.0.ffn_up.weight"}
    assert len(notes) == 1
    assert notes[0].startswith("7 of 9 tensors")
    assert file_sha256(shared) == file_sha256(alone)


def test_two_files_give_what_each_has(source: Recorded, tmp_path: Path) -> None:
    both = [
        finished(written(source, others, tmp_path / name)[0])
        for name, others in (("a", FIRST), ("b", SECOND))
    ]
    third = {"blk.0.attn_q.weight": "Q8_0", "blk.0.ffn_up.weight": "Q3_K"}
    alone, _ = written(source, third, tmp_path / "alone")
    source.names.clear()
    shared, _ = written(source, third, tmp_path / "shared", *both)
    assert source.names == {"output.weight"}
    assert file_sha256(shared) == file_sha256(alone)


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-5000:] = bytes(5000)
    path.write_bytes(raw)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 4096)


def touch(path: Path) -> None:
    os.utime(path)


def replace_by_another(path: Path) -> None:
    path.unlink()
    path.write_bytes(b"GGUF, but not for long")


@pytest.mark.parametrize("change", [flip, cut, touch, Path.unlink, replace_by_another])
def test_a_file_that_is_not_as_it_was_finished_is_not_used(
    source: Recorded, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    alone, _ = written(source, SECOND, tmp_path / "alone")
    first, _ = written(source, FIRST, tmp_path / "first")
    before = finished(first)
    change(first)
    shared, notes = written(source, SECOND, tmp_path / "shared", before)
    assert notes == []
    assert file_sha256(shared) == file_sha256(alone)


@pytest.mark.parametrize("change", [flip, cut, Path.unlink, replace_by_another])
def test_a_file_that_changes_while_it_is_copied_does_no_harm(
    source: Recorded,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], None],
) -> None:
    monkeypatch.setattr(encode, "ROWS_BYTES", 16 << 10)  # several blocks a tensor
    alone, _ = written(source, SECOND, tmp_path / "alone")
    first, _ = written(source, FIRST, tmp_path / "first")
    copy, copied, lock = FileBytes.copy_to, list[int](), threading.Lock()

    def then_change(self: FileBytes, offset: int, size: int, descriptor: int, at: int) -> None:
        with lock:  # one of the workers, and only once
            if len(copied) == 5:
                change(first)
            copied.append(size)
        copy(self, offset, size, descriptor, at)

    monkeypatch.setattr(FileBytes, "copy_to", then_change)
    shared, _ = written(source, SECOND, tmp_path / "shared", finished(first))
    assert len(copied) > 5
    assert file_sha256(shared) == file_sha256(alone)


def test_bytes_are_moved_by_hand_where_the_system_cannot(
    source: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, _ = written(source, SECOND, tmp_path / "alone")
    first, _ = written(source, FIRST, tmp_path / "first")

    def refuse(*_arguments: object) -> int:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    shared, notes = written(source, SECOND, tmp_path / "shared", finished(first))
    assert notes
    assert file_sha256(shared) == file_sha256(alone)


def test_shards_share_too(
    source: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = functools.partial(lay_out, max_shard_bytes=100_000)
    monkeypatch.setattr(quantizing, "lay_out", small)
    found = []
    for name, others in (("alone", SECOND), ("first", FIRST), ("shared", SECOND)):
        folder = tmp_path / name
        folder.mkdir()
        ready = [finished(path) for path in found[-1]] if name == "shared" else []
        source.names.clear()
        types = types_of(source, others)
        found.append(
            quantize(source, Model.of("m", source), types, {}, folder, folder, 2, finished=ready)
        )
    assert source.names == {"blk.0.attn_q.weight", "blk.0.ffn_up.weight"}
    alone, first, shared = found
    assert len(first) > 2
    assert shared[0].name == f"m-00001-of-{len(shared):05}.gguf"
    assert [file_sha256(path) for path in shared] == [file_sha256(path) for path in alone]
    whole = GGUFSource(shared[0])
    assert {info.name: info.type_name for info in whole.tensors} == types_of(source, SECOND)


def test_only_the_same_shape_and_type_count(source: Recorded, tmp_path: Path) -> None:
    first, _ = written(source, FIRST, tmp_path / "first")
    wanted = [
        TensorInfo("output.weight", (64, 256), "Q6_K"),
        TensorInfo("blk.0.attn_q.weight", (256, 256), "Q6_K"),  # there as Q8_0
        TensorInfo("blk.0.attn_k.weight", (128, 256), "Q4_K"),  # there with 256 rows
        TensorInfo("blk.0.attn_x.weight", (256, 256), "Q4_K"),  # not there
    ]
    assert set(reusable_tensors([finished(first)], wanted)) == {"output.weight"}
