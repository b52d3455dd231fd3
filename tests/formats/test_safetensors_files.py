"""Safetensors: exact values, and one clear error for every way in which a file can be broken."""

from __future__ import annotations

import json
import os
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import random_values, safetensors_bytes, write_safetensors
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from quantkit.core.errors import InputError
from quantkit.formats.safetensors_files import (
    DTYPE_BYTES,
    MAX_HEADER_BYTES,
    SafetensorsFile,
    SafetensorsFolder,
    SafetensorsHeader,
    as_f32,
    weight_paths,
)


def read(file: SafetensorsFile, name: str, start: int, stop: int) -> NDArray[np.float32]:
    return as_f32(file.read_raw(name, start, stop), file.entries[name].dtype)


GOOD = {"x": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_values_are_exact(tmp_path: Path, dtype: str) -> None:
    values = random_values(0, 5, 7)
    write_safetensors(tmp_path / "a.safetensors", {"pad": values[:1], "x": values}, dtype)
    file = SafetensorsFile(tmp_path / "a.safetensors")
    assert file.entries["x"].shape == (5, 7)
    np.testing.assert_array_equal(read(file, "x", 3, 20), values.reshape(-1)[3:20])


@given(order=st.lists(st.integers(0, 39), max_size=60))
def test_gathered_rows_are_those_rows(
    tmp_path_factory: pytest.TempPathFactory, order: list[int]
) -> None:
    path = tmp_path_factory.getbasetemp() / "gather.safetensors"
    values = random_values(0, 40, 3)
    if not path.exists():
        write_safetensors(path, {"pad": values[:1], "x": values}, "F32")
    rows = np.array(order, np.intp)
    raw = SafetensorsFile(path).gather_raw("x", rows, 3)
    np.testing.assert_array_equal(raw.view("<f4").reshape(-1, 3), values[rows])


def test_gathering_scattered_rows_reads_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_safetensors(tmp_path / "a.safetensors", {"x": random_values(0, 1000, 4)}, "F32")
    file = SafetensorsFile(tmp_path / "a.safetensors")
    asked: list[int] = []
    read_into = file._bytes.read_into
    monkeypatch.setattr(
        file._bytes, "read_into", lambda o, out: (asked.append(out.nbytes), read_into(o, out))
    )
    file.gather_raw("x", np.array([3, 4, 5, 900, 901]), 4)
    assert asked == [48, 32]


def test_special_bf16_values_survive(tmp_path: Path) -> None:
    values = np.array([0.0, -0.0, np.inf, -np.inf, 2.0**-133, 1.5], np.float32)
    write_safetensors(tmp_path / "a.safetensors", {"x": values})
    found = read(SafetensorsFile(tmp_path / "a.safetensors"), "x", 0, 6)
    assert found.view(np.uint32).tolist() == values.view(np.uint32).tolist()


def test_a_file_cut_short_while_it_is_open_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"x": random_values(0, 4, 8)}, "F32")
    file = SafetensorsFile(path)
    os.truncate(path, path.stat().st_size - 8)
    with pytest.raises(InputError, match="8 bytes"):
        read(file, "x", 0, 32)


def test_the_reference_library_writes_what_is_read(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    values = {
        "b": random_values(1, 3, 4),
        "a": random_values(2, 6),
        "empty": random_values(3, 0, 4),
    }
    save_file(values, tmp_path / "a.safetensors")
    file = SafetensorsFile(tmp_path / "a.safetensors")
    for name, array in values.items():
        np.testing.assert_array_equal(read(file, name, 0, array.size), array.reshape(-1))


@pytest.mark.parametrize(("dtype", "size"), [("I64", 8), ("F8_E4M3", 1)])
def test_other_dtypes_are_listed(tmp_path: Path, dtype: str, size: int) -> None:
    header = {"x": {"dtype": dtype, "shape": [1], "data_offsets": [0, size]}}
    (tmp_path / "a.safetensors").write_bytes(safetensors_bytes(header, bytes(size)))
    assert SafetensorsFile(tmp_path / "a.safetensors").entries["x"].dtype == dtype


def _one(**changes: object) -> dict[str, Any]:
    return {"x": GOOD["x"] | changes}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "truncated"),
        (b"\x01\x02", "truncated"),
        (safetensors_bytes(GOOD, bytes(24))[:40], "truncated"),
        (safetensors_bytes(GOOD, bytes(23)), "download it again"),
        (safetensors_bytes(GOOD, bytes(25)), "not fully covered"),
        ((MAX_HEADER_BYTES + 1).to_bytes(8, "little"), "header too large"),
        (b"\xff" * 8 + b"{}", "header too large"),
        (safetensors_bytes(b"[1, 2]"), "invalid JSON"),
        (safetensors_bytes(b"{"), "invalid JSON"),
        (safetensors_bytes(b"\xff\xfe"), "invalid UTF-8"),
        (safetensors_bytes(b"[" * 100_000), "invalid JSON"),
        (safetensors_bytes(b'{"x": ' + b"9" * 5000 + b"}"), "invalid JSON"),
        (safetensors_bytes({"x": 1}), "invalid JSON"),
        (safetensors_bytes({"x": {"dtype": "F32", "shape": [1]}}), "data_offsets"),
        (safetensors_bytes(_one(data_offsets=[0]), bytes(24)), "invalid JSON"),
        (safetensors_bytes(_one(dtype="Q4"), bytes(24)), "Q4"),
        (safetensors_bytes(_one(shape=[2, -3]), bytes(24)), "-3"),
        (safetensors_bytes(_one(shape=[2, 3.0]), bytes(24)), "floating point"),
        (safetensors_bytes(_one(shape=[True, 6]), bytes(24)), "boolean"),
        (safetensors_bytes(_one(data_offsets=[24, 0]), bytes(24)), "offset"),
        (safetensors_bytes(_one(shape=[2, 4]), bytes(24)), "shape"),
        (safetensors_bytes(_one(shape=[2**62, 2**62]), bytes(24)), "overflow"),
        (safetensors_bytes(_one(data_offsets=[8, 32]), bytes(32)), "offset"),
        (safetensors_bytes(GOOD | {"y": GOOD["x"]}, bytes(24)), "offset"),
        (safetensors_bytes(_one(data_offsets=[0, 24 + 2**63]), bytes(24)), "offset"),
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as raised:
        SafetensorsFile(path)
    assert "broken.safetensors" in str(raised.value)


def test_a_header_alone_is_checked_without_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a file larger than any disk, where temporary files cannot be made."""
    monkeypatch.setattr(tempfile, "tempdir", "/nonexistent")
    size = 1 << 60
    start = safetensors_bytes(_one(shape=[size // 4], data_offsets=[0, size]))
    header = SafetensorsHeader("a", start, len(start) + size, "someone/a", "choose another")
    assert header.entries["x"].elements == size // 4
    with pytest.raises(InputError, match="not fully covered; its header accounts for"):
        SafetensorsHeader("a", start, len(start) + size - 1, "someone/a", "choose another")


@given(data=st.data())
def test_a_corrupted_header_never_gives_anything_but_a_clear_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(safetensors_bytes(GOOD, bytes(24)))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("fuzz") / "a.safetensors"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        file = SafetensorsFile(path)
        for name, entry in file.entries.items():
            if entry.dtype in DTYPE_BYTES:
                read(file, name, 0, entry.elements)
    except InputError:
        pass


A, B = (f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
INDEX = "model.safetensors.index.json"


def test_shards_are_found_by_the_index(tmp_path: Path) -> None:
    folder = _two_shards(tmp_path)
    files = SafetensorsFolder(folder)
    assert files.entries.keys() == {"a", "b"}
    np.testing.assert_array_equal(read(files.file_of("b"), "b", 0, 4), random_values(1, 4))


def _two_shards(folder: Path) -> Path:
    write_safetensors(folder / A, {"a": random_values(0, 4)})
    write_safetensors(folder / B, {"b": random_values(1, 4)})
    _write_index(folder, {"a": A, "b": B})
    return folder


def _write_index(folder: Path, weight_map: object) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / B).unlink(), "1 of 2 shards are missing"),
        (lambda f: _write_index(f, {"a": "../secret.safetensors"}), "no plain file name"),
        (lambda f: _write_index(f, {"a": ".."}), "no plain file name"),
        (lambda f: _write_index(f, {"a": 7}), "no plain file name"),
        (lambda f: _write_index(f, []), "weight_map is empty"),
        (lambda f: (f / INDEX).write_text("{"), "not valid JSON"),
        (lambda f: ((f / INDEX).unlink(), (f / B).unlink()), "1 of 2 shards are here"),
    ],
)
def test_an_incomplete_folder_is_refused(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(_two_shards(tmp_path))
    with pytest.raises(InputError, match=message):
        SafetensorsFolder(tmp_path)


def _copy_b_into_a(folder: Path) -> None:
    both = {"a": random_values(0, 4), "b": random_values(1, 4)}
    write_safetensors(folder / A, both)


def test_without_an_index_all_shards_count_and_no_name_twice(tmp_path: Path) -> None:
    folder = _two_shards(tmp_path)
    (folder / INDEX).unlink()
    assert SafetensorsFolder(folder).entries.keys() == {"a", "b"}
    _copy_b_into_a(folder)
    with pytest.raises(InputError, match=r"tensor b is also in model-00001"):
        SafetensorsFolder(folder)


def test_an_index_says_which_files_there_are_and_not_what_is_in_them(tmp_path: Path) -> None:
    _write_index(_two_shards(tmp_path), dict.fromkeys("abc", A))
    files = SafetensorsFolder(tmp_path)
    assert files.entries.keys() == {"a"}
    assert files.absent == {"b", "c"}
    _copy_b_into_a(tmp_path)
    assert SafetensorsFolder(tmp_path).entries.keys() == {"a", "b"}


@pytest.mark.parametrize("shards", [{"a": A, "b": B}, {"a": "gone-00001-of-00009.safetensors"}])
def test_a_whole_file_goes_before_an_index(tmp_path: Path, shards: dict[str, str]) -> None:
    _write_index(_two_shards(tmp_path), shards)
    write_safetensors(tmp_path / "model.safetensors", {"c": random_values(2, 4)})
    files = SafetensorsFolder(tmp_path)
    assert files.entries.keys() == {"c"}
    assert not files.absent
    assert weight_paths(tmp_path) == [tmp_path / "model.safetensors"]


VARIANTS = (
    "model.fp16.safetensors", "model.fp16-00001-of-00001.safetensors", "model.ema.safetensors",
    "model-00001-of-00002.bf16.safetensors", "pytorch_model.fp16.safetensors",
)  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_are_not_read(tmp_path: Path, variant: str) -> None:
    write_safetensors(tmp_path / variant, {"a": random_values(0, 4)})
    with pytest.raises(InputError, match=variant):
        SafetensorsFolder(tmp_path)
    _two_shards(tmp_path)
    assert SafetensorsFolder(tmp_path).entries.keys() == {"a", "b"}
    (tmp_path / INDEX).unlink()
    assert SafetensorsFolder(tmp_path).entries.keys() == {"a", "b"}


@pytest.mark.parametrize(
    "name", ["Qwen2.5-7B.safetensors", "my.model.safetensors", "a-v0.3.safetensors"]
)
def test_a_dot_makes_no_variant(tmp_path: Path, name: str) -> None:
    write_safetensors(tmp_path / name, {"a": random_values(0, 4)})
    assert weight_paths(tmp_path) == [tmp_path / name]


def test_mistrals_second_copy_of_the_weights_is_ignored(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", {"a": random_values(0, 4)})
    write_safetensors(tmp_path / "consolidated.safetensors", {"a": random_values(1, 4)})
    values = read(SafetensorsFolder(tmp_path).file_of("a"), "a", 0, 4)
    np.testing.assert_array_equal(values, random_values(0, 4))


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "consolidated.safetensors"])
def test_what_holds_no_weights_of_a_checkpoint_is_named(tmp_path: Path, name: str) -> None:
    write_safetensors(tmp_path / name, {"a": random_values(0, 4)})
    with pytest.raises(InputError, match=name):
        SafetensorsFolder(tmp_path)
    write_safetensors(tmp_path / "weights.safetensors", {"b": random_values(0, 4)})
    assert SafetensorsFolder(tmp_path).entries.keys() == {"b"}


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (pytest.fail, ("the pickle was loaded",))

    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(InputError, match=r"pytorch_model\.bin.*pickle"):
        SafetensorsFolder(tmp_path)


def test_an_empty_or_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no"):
        SafetensorsFolder(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        SafetensorsFolder(tmp_path / "absent")
    with pytest.raises(InputError, match="cannot be read"):
        SafetensorsFile(tmp_path / "absent.safetensors")
