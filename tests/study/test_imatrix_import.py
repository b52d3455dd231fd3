"""An imported importance matrix: checked against the model, and without the paths in it."""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path

import numpy as np
import pytest
from places import DATA

from quantkit.core.errors import InputError
from quantkit.core.files import file_sha256
from quantkit.formats.gguf_file import GGUFFile
from quantkit.formats.gguf_writer import write_gguf
from quantkit.formats.imatrix_file import Imatrix, ImatrixEntry, read_imatrix, write_imatrix
from quantkit.formats.tensors import MetaValue
from quantkit.models.choose import choose_model, open_source
from quantkit.study.imatrix import check_imatrix, import_imatrix

DATA = DATA / "imatrix"
TENSORS = open_source(choose_model("demo")).tensors
UP = "1.ffn_up_exps.weight"


def entry(matrices: int, columns: int) -> ImatrixEntry:
    counts = np.full(matrices, 4, np.float32)
    return ImatrixEntry(np.ones((matrices, columns), np.float32), counts)


def columns_of(name: str) -> int:
    return next(info.row_elements for info in TENSORS if info.name == f"blk.{name}")


def written(path: Path, **entries: ImatrixEntry) -> Path:
    write_imatrix(path, Imatrix({f"blk.{k}": e for k, e in entries.items()}, 512, 2, ("a.txt",)))
    return path


@pytest.mark.parametrize("folder", ["/home/me/texts/", "C:\\Users\\me\\"])
@pytest.mark.parametrize("form", ["gguf", "dat"])
def test_a_text_loses_its_folder_and_the_statistics_no_bit(
    form: str, folder: str, tmp_path: Path
) -> None:
    given, out = tmp_path / f"given.{form}", tmp_path / "imatrix.gguf"
    stored = f"{folder}calib.txt"
    if form == "gguf":
        rng = np.random.default_rng(5)
        found = read_imatrix(DATA / "demo-4x512.imatrix.gguf")
        odd = {
            name: ImatrixEntry(
                e.sums * rng.random(e.sums.shape, np.float32) * np.float32(1e-39), e.counts
            )
            for name, e in found.entries.items()
        }  # subnormal numbers among them
        write_imatrix(given, dataclasses.replace(found, entries=odd, datasets=(stored, "b.txt")))
    else:
        raw = (DATA / "demo-4x512.imatrix.dat").read_bytes()
        name, path = b"demo-4x512.txt", stored.encode()
        assert raw.endswith(struct.pack("<i", len(name)) + name)
        given.write_bytes(raw[: -4 - len(name)] + struct.pack("<i", len(path)) + path)
    imported = import_imatrix(given, TENSORS, out)
    names = ("calib.txt", "b.txt") if form == "gguf" else ("calib.txt",)
    assert any("no counts" in note for note in imported.notes) is (form == "dat")
    assert read_imatrix(out).datasets == imported.imatrix.datasets == names
    assert stored.encode() not in out.read_bytes()
    rows = {info.name: info.row_elements for info in TENSORS}
    before, after = read_imatrix(given, rows), read_imatrix(out)
    assert after.unknown == before.unknown
    assert after.counts_are_exact is (form == "gguf")
    assert (after.chunks, after.chunk_tokens) == (before.chunks, before.chunk_tokens)
    assert sorted(after.entries) == sorted(before.entries)
    for name, entry in before.entries.items():
        assert after.entries[name].sums.tobytes() == entry.sums.tobytes()
        assert after.entries[name].counts.tobytes() == entry.counts.tobytes()


def test_what_else_a_gguf_says_stays_behind(tmp_path: Path) -> None:
    given, out = tmp_path / "given.gguf", tmp_path / "imatrix.gguf"
    file = GGUFFile(DATA / "demo-4x512.imatrix.gguf")
    metadata = file.metadata | {"general.description": MetaValue("str", "made in /home/me")}
    infos = [at.info for at in file.stored.values()]
    write_gguf(given, metadata, infos, [(name, file.tensor_bytes(name)) for name in file.stored])
    assert import_imatrix(given, TENSORS, out).notes == ()
    assert b"/home/me" in given.read_bytes()
    assert file_sha256(out) == file_sha256(DATA / "demo-4x512.imatrix.gguf")


def test_what_it_does_not_cover_is_said(tmp_path: Path) -> None:
    columns = columns_of("2.attn_q.weight")
    path = written(tmp_path / "some.gguf", **{"2.attn_q.weight": entry(1, columns)})
    (note,) = check_imatrix(path, TENSORS).notes
    assert "29 of the 30" in note


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"2.attn_q.weight": entry(1, 128)}, "128 columns, the model's has 256"),
        ({UP: entry(4, columns_of(UP))}, "4 matrices, the model's has 8"),
        ({"99.attn_q.weight": entry(1, 256)}, "blk.99.attn_q.weight"),
        ({}, "no statistics"),
    ],
)
def test_an_imatrix_of_another_model_is_refused(
    tmp_path: Path, entries: dict[str, ImatrixEntry], words: str
) -> None:
    path = written(tmp_path / "other.gguf", **entries)
    with pytest.raises(InputError, match=rf"{words}.*another model"):
        import_imatrix(path, TENSORS, tmp_path / "imatrix.gguf")
    assert not (tmp_path / "imatrix.gguf").exists()


def test_importance_that_ends_ggml_s_process_is_refused(tmp_path: Path) -> None:
    columns = columns_of("2.attn_q.weight")
    huge = dataclasses.replace(entry(1, columns), sums=np.full((1, columns), 3e38, np.float32))
    path = written(tmp_path / "huge.gguf", **{"2.attn_q.weight": huge})
    with pytest.raises(InputError, match=r"blk\.2\.attn_q\.weight.*1e\+18"):
        check_imatrix(path, TENSORS)
