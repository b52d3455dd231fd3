"""Receipts: what makes a stage stale, and that nothing half-written is ever taken for done."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from quantkit.core.errors import EnvironmentFault, InputError
from quantkit.core.files import atomic, write_text
from quantkit.core.receipts import adopt_receipt, read_receipt, stale_reason, write_receipt
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


@pytest.fixture(params=["links", "copies"])
def linking(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the file system can give a file a second name."""
    if request.param == "copies":

        def link(*_arguments: object) -> None:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

        monkeypatch.setattr("os.link", link)
    return str(request.param) == "links"


def test_what_another_folder_has_is_adopted_once(tmp_path: Path, linking: bool) -> None:
    theirs, own = tmp_path / "theirs", tmp_path / "own"
    theirs.mkdir()
    output = finished(theirs)
    os.utime(output, ns=(1, 1))
    assert adopt_receipt(theirs, own, "never run") is None
    assert not own.exists()
    adopted = adopt_receipt(theirs, own, "stage:one")
    assert adopted is not None
    assert adopted == read_receipt(own, "stage:one")
    assert stale_reason(own, "stage:one", PARTS) is None
    assert (own / "x.bin").samefile(output) is linking
    assert (own / "x.bin").read_bytes() == b"abc"
    before = (own / "x.bin").stat()
    assert adopt_receipt(theirs, own, "stage:one") == adopted
    after = (own / "x.bin").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert sorted(path.name for path in own.iterdir()) == ["receipts", "x.bin"]


@pytest.mark.parametrize("lost", ["their stage ran again", "the file", "the receipt", "its bytes"])
def test_what_does_not_hold_is_adopted_again(tmp_path: Path, linking: bool, lost: str) -> None:
    theirs, own = tmp_path / "theirs", tmp_path / "own"
    theirs.mkdir()
    output, parts = finished(theirs), PARTS
    adopt_receipt(theirs, own, "stage:one")
    if lost == "their stage ran again":
        parts = PARTS | {"stage version": 2}
        write_text(output, "new")
        write_receipt(theirs, "stage:one", parts, [output], 1.5, {})
        assert (own / "x.bin").read_bytes() == b"abc"  # a build that runs keeps what it began with
    elif lost == "its bytes":
        (own / "x.bin").unlink()
        (own / "x.bin").write_bytes(b"longer")
    else:
        (own / ("x.bin" if lost == "the file" else "receipts/stage.one.json")).unlink()
    adopt_receipt(theirs, own, "stage:one")
    assert stale_reason(own, "stage:one", parts) is None
    assert (own / "x.bin").read_bytes() == output.read_bytes()
    assert (own / "x.bin").samefile(output) is linking


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
