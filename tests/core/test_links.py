"""Links that come with somebody's folder: nothing outside is written, made or deleted.

And modes: what is written has those that the umask leaves.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from quantkit.core.errors import InputError
from quantkit.core.files import (
    atomic,
    check_writable,
    chosen_folder,
    is_inner_path,
    link_or_copy,
    write_json,
)
from quantkit.core.receipts import read_receipt, write_receipt
from quantkit.core.work_folders import Journal, build_folder, resumable
from quantkit.formats.gguf_writer import write_gguf
from quantkit.hub.downloads import STATE, read_record

PARTS = {"stage version": 1}


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A folder with a letter, which is as before when the test ends."""
    folder = tmp_path / "outside"
    folder.mkdir()
    letter = folder / "letter.txt"
    letter.write_text("precious")
    os.utime(letter, ns=(1, 1))
    yield folder
    assert os.listdir(folder) == ["letter.txt"]
    assert letter.read_text() == "precious"
    assert letter.stat().st_mtime_ns == 1


@pytest.fixture(params=["letter.txt", "new.txt"], ids=["file", "dangling"])
def target(outside: Path, request: pytest.FixtureRequest) -> Path:
    return outside / request.param


@pytest.fixture
def own(tmp_path: Path) -> Path:
    folder = tmp_path / "own"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("name", ["facts.json", "facts.json.partial"])
def test_a_linked_file_is_replaced(name: str, own: Path, target: Path) -> None:
    (own / name).symlink_to(target)
    write_json(own / "facts.json", {"a": 1})
    assert [path.name for path in own.iterdir()] == ["facts.json"]
    assert not (own / "facts.json").is_symlink()
    assert json.loads((own / "facts.json").read_text()) == {"a": 1}


@pytest.mark.parametrize("name", ["x.bin", "x.bin.partial"])
@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_is_linked_or_copied_goes_through_no_link(
    name: str, links: bool, own: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_arguments: object) -> None:
        raise PermissionError

    if not links:
        monkeypatch.setattr("os.link", link)
    source = own / "source.bin"
    source.write_bytes(b"new")
    (own / name).symlink_to(target)
    link_or_copy(source, own / "x.bin")
    assert sorted(path.name for path in own.iterdir()) == ["source.bin", "x.bin"]
    assert not (own / "x.bin").is_symlink()
    assert (own / "x.bin").read_bytes() == b"new"
    link_or_copy(source, own / "x.bin")
    assert (own / "x.bin").samefile(source) is links


def test_looking_whether_a_file_can_be_written_writes_to_no_link(own: Path, target: Path) -> None:
    (own / ".q.gguf.probe").symlink_to(target)
    check_writable(own / "q.gguf")
    assert [path.name for path in own.iterdir()] == [".q.gguf.probe"]


def test_a_linked_work_folder_is_refused(own: Path, outside: Path) -> None:
    (own / ".work").symlink_to(outside)
    with pytest.raises(InputError), resumable(own / ".work", PARTS):
        pass


@pytest.mark.parametrize("name", [".lock", "parts.json", "base.logits", "state.bin.partial"])
def test_a_linked_file_in_a_work_folder_is_refused(name: str, own: Path, target: Path) -> None:
    with pytest.raises(RuntimeError), resumable(own, PARTS):
        raise RuntimeError  # a killed run
    (own / name).unlink(missing_ok=True)
    (own / name).symlink_to(target)
    with pytest.raises(InputError), resumable(own, PARTS):
        pass


def test_a_linked_folder_in_a_work_folder_is_refused(own: Path, outside: Path) -> None:
    (own / "whole").symlink_to(outside)
    with pytest.raises(InputError), resumable(own, PARTS):
        pass


@pytest.mark.parametrize("name", ["receipts", ".work", "levels/Q4", "kept"])
def test_a_linked_folder_in_a_build_is_refused(name: str, own: Path, outside: Path) -> None:
    (own / name).parent.mkdir(exist_ok=True)
    (own / name).symlink_to(outside)
    with pytest.raises(InputError), build_folder(own):
        pass


def test_a_linked_lock_is_refused(own: Path, target: Path) -> None:
    (own / ".lock").symlink_to(target)
    with pytest.raises(InputError), build_folder(own):
        pass


def test_a_folder_that_was_chosen_may_be_a_link(tmp_path: Path, own: Path) -> None:
    (tmp_path / "build").symlink_to(own)
    with build_folder(chosen_folder(tmp_path / "build", "x-niah")) as folder:
        write_json(folder / "a.json", 1)
    assert (own / "a.json").exists()
    with pytest.raises(InputError):
        chosen_folder(None, tmp_path / "build")


def test_a_linked_journal_begins_anew(own: Path, outside: Path) -> None:
    (own / "answers.jsonl").symlink_to(outside / "letter.txt")
    Journal(own / "answers.jsonl", "precious").append("one")
    assert not (own / "answers.jsonl").is_symlink()
    assert Journal(own / "answers.jsonl", "precious").lines == ["one"]


def test_a_shard_is_not_written_through_a_link(own: Path, target: Path) -> None:
    (own / "q.gguf").symlink_to(target)
    with pytest.raises(OSError, match=r"q\.gguf"):
        write_gguf(own / "q.gguf", {}, [], [])


UNSAFE = ["/etc/passwd", "../letter.txt", "a/../../letter.txt", "./a", "a//b", "", "a\0b"]


@pytest.mark.parametrize("name", UNSAFE)
def test_names_that_a_file_says_stay_inside(name: str, own: Path) -> None:
    assert not is_inner_path(name)
    assert is_inner_path("levels/Q4/a..b-.gguf")
    (own / "x.bin").write_bytes(b"x")
    write_receipt(own, "report", PARTS, [own / "x.bin"], 1.0, {})
    path = own / "receipts" / "report.json"
    stored = json.loads(path.read_text())
    assert read_receipt(own, "report") is not None
    stored["outputs"][0]["path"] = name
    path.write_text(json.dumps(stored))
    assert read_receipt(own, "report") is None


NEVER_WRITTEN = [*UNSAFE, f"{STATE}/a.journal", ".eslintrc.json", 5]


@pytest.mark.parametrize("change", [*({"name": one} for one in NEVER_WRITTEN), {"size_bytes": "7"}])
def test_records_of_a_download_are_checked(change: dict[str, object], own: Path) -> None:
    kept = {"name": "a.json", "identity": "git:0", "sha256": "0", "size_bytes": 7}
    kept |= {"modified_ns": 1, "brought": True}
    (own / STATE).mkdir()
    lines = ["someone/demo@0", json.dumps(kept), json.dumps(kept | {"name": "b.json"} | change), ""]
    (own / STATE / "0.journal").write_text("\n".join(lines))
    assert set(read_record(own).kept) == {"a.json"}


@pytest.mark.parametrize("umask", [0o002, 0o027, 0o077])
def test_modes_are_those_of_the_umask(umask: int, own: Path) -> None:
    before = os.umask(umask)
    try:
        write_json(own / "a.json", 1)
        with atomic(own / "run.sh", executable=True) as partial:
            partial.write_text("#!/bin/sh")
        write_gguf(own / "q.gguf", {}, [], [])
        Journal(own / "journal", "purpose").append("a")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in own.iterdir()}
    plain = 0o666 & ~umask
    assert modes == {
        "a.json": plain, "q.gguf": plain, "journal": plain, "run.sh": 0o777 & ~umask
    }  # fmt: skip
