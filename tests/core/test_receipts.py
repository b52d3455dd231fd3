"""Receipts: what makes a stage stale, and that nothing half-written is ever taken for done."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from quantkit.core.errors import EnvironmentFault, InputError
from quantkit.core.files import atomic
from quantkit.core.receipts import stale_reason, write_receipt
from quantkit.core.work_folders import Journal, build_folder, resumable

PARTS = {
    "stage version": 1,
    "settings": {"chunks": 4, "texts": ["a"]},
    "base": {"b.gguf": "0" * 64},
}


def finished(folder: Path) -> Path:
    output = folder / "x.bin"
    output.write_bytes(b"abc")
    write_receipt(folder, "stage:one", PARTS, [output], 1.5, {"detail": "d"})
    return output


def test_unchanged_stage_is_not_stale(tmp_path: Path) -> None:
    finished(tmp_path)
    assert stale_reason(tmp_path, "stage:one", PARTS) is None
    assert stale_reason(tmp_path, "other", PARTS) == "not done yet"


def test_reason_names_the_changed_setting(tmp_path: Path) -> None:
    finished(tmp_path)
    changed = {**PARTS, "settings": {"chunks": 8, "texts": ["a"]}}
    reason = stale_reason(tmp_path, "stage:one", changed)
    assert reason == "settings.chunks has changed from 4 to 8"
    needs = {**PARTS, "base": {"b.gguf": "1" * 64}}
    assert stale_reason(tmp_path, "stage:one", needs) == "base.b.gguf has changed"


def test_outputs_are_watched(tmp_path: Path) -> None:
    output = finished(tmp_path)
    os.utime(output, ns=(1, 1))
    assert stale_reason(tmp_path, "stage:one", PARTS) is None  # only touched: the bytes are right
    output.write_bytes(b"abd")
    assert "changed by something else" in str(stale_reason(tmp_path, "stage:one", PARTS))
    output.write_bytes(b"abcd")
    assert "has 4 bytes, it wrote 3" in str(stale_reason(tmp_path, "stage:one", PARTS))
    output.unlink()
    assert "missing" in str(stale_reason(tmp_path, "stage:one", PARTS))


def test_broken_receipt_means_not_done(tmp_path: Path) -> None:
    finished(tmp_path)
    (tmp_path / "receipts" / "stage.one.json").write_text('{"stage": "stage:one"')
    assert stale_reason(tmp_path, "stage:one", PARTS) == "not done yet"


def test_atomic_leaves_the_old_file_on_failure(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic(path) as partial:  # noqa: PT012 - the write matters
        partial.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"


def test_work_is_kept_for_the_same_parts_only(tmp_path: Path) -> None:
    work = tmp_path / "w"
    for parts, expected in ((PARTS, False), (PARTS, True), ({"other": 1}, False)):
        with pytest.raises(RuntimeError), resumable(work, parts):  # noqa: PT012 - a killed run
            assert (work / "done").exists() is expected
            (work / "done").touch()
            raise RuntimeError
    with resumable(work, {"other": 1}):
        pass
    assert not work.exists()


def test_unwritable_folder_is_an_input_error() -> None:
    with pytest.raises(InputError, match="cannot write"), build_folder(Path("/proc/nope")):
        pass


def test_two_runs_never_share_a_work_folder(tmp_path: Path) -> None:
    work = tmp_path / "work"
    with resumable(work, PARTS) as mine:
        (mine / "kept").write_text("x")
        other = {**PARTS, "stage version": 2}
        for parts in (PARTS, other):
            with pytest.raises(InputError, match="another run"), resumable(work, parts):
                pass
        assert (mine / "kept").read_text() == "x"
    assert not work.exists()
    with resumable(work, other) as again:  # the lock went with the folder
        assert not (again / "kept").exists()


def test_a_lock_goes_with_the_process_that_held_it(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path\n"
        "from quantkit.core.work_folders import build_folder\n"
        "with build_folder(Path(sys.argv[1])):\n"
        "    print(flush=True); time.sleep(1000)"
    )
    holding = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE)
    assert holding.stdout is not None
    with holding.stdout as said:
        said.readline()
        with pytest.raises(InputError, match="another run"), build_folder(tmp_path):
            pass
        holding.kill()
        holding.wait()
    with build_folder(tmp_path):
        pass


def test_a_file_system_without_locks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_arguments: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(EnvironmentFault, match="not implemented"), build_folder(tmp_path):
        pass


def test_any_name_is_one_line_of_a_journal(tmp_path: Path) -> None:
    path, names = tmp_path / "j", ["a\u2028b", "c\rd", "\x85", "", "ü"]
    Journal(path, "p").append(*names)
    assert Journal(path, "p").lines == names
    with pytest.raises(ValueError, match="line"):
        Journal(path, "p").append("e\nf")
    path.write_bytes(path.read_bytes()[:-2])  # a kill within the ü
    assert Journal(path, "p").lines == names[:-1]
    assert Journal(path, "p").lines == names[:-1]
    assert Journal(path, "q").lines == []
