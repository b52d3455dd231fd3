"""A full disk: which stage, how much is needed, and what can be deleted."""

from __future__ import annotations

import errno
import os
import pickle
import sys
from pathlib import Path

import pytest

from quantkit.core.console import Console
from quantkit.core.disk import check_room, is_same_disk, taken_bytes
from quantkit.core.errors import DiskFullError, EnvironmentFault
from quantkit.llamacpp.child import Emit, run_isolated

FULL_DEVICE = Path("/dev/full")


def fill(emit: Emit) -> None:
    with FULL_DEVICE.open("wb", buffering=0) as file:
        file.write(b"x")


def need(emit: Emit) -> None:
    check_room([(Path("growing"), 1 << 62)], Path.cwd())


def caught(place: Path, number: int = errno.ENOSPC, unit: str = "B") -> DiskFullError:
    stage = Console(quiet=True).stage("quantize:Q4", place)
    with pytest.raises(DiskFullError) as found, stage as progress:  # noqa: PT012
        progress.start(1000, unit, done=100)
        progress.advance(300)
        raise OSError(number, os.strerror(number))
    return found.value


def test_folders_that_will_be_made_are_on_the_disk_of_those_around_them(tmp_path: Path) -> None:
    assert is_same_disk(tmp_path / "a" / "b", tmp_path / "c")
    assert not is_same_disk(tmp_path / "a", Path("/proc/none"))


def test_the_stage_and_what_is_left_are_told(tmp_path: Path) -> None:
    error = caught(tmp_path)
    assert isinstance(error, EnvironmentFault)
    assert (error.stage, error.needed_bytes) == ("quantize:Q4", 600)
    assert caught(tmp_path, errno.EDQUOT).stage == "quantize:Q4"
    assert caught(tmp_path, unit="chunks").needed_bytes is None


def test_what_can_be_deleted_is_named(tmp_path: Path) -> None:
    for name in ("old.gguf.work", "mine.gguf.work", ".work/quantize.Q4", ".work/measure"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "kept").write_bytes(b"x" * 100_000)
    (tmp_path / "photos").mkdir()
    said = str(caught(tmp_path / "mine.gguf"))
    assert "old.gguf.work" in said
    assert "measure" in said
    assert "mine.gguf.work" not in said
    assert "quantize.Q4" not in said
    assert "photos" not in said


def test_other_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), Console(quiet=True).stage("report", tmp_path):
        raise FileNotFoundError(errno.ENOENT, "nothing")


@pytest.mark.skipif(not FULL_DEVICE.exists(), reason="needs /dev/full")
def test_a_full_disk_in_a_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))
    with pytest.raises(DiskFullError) as found, Console(quiet=True).stage("logits", tmp_path):
        run_isolated("test_disk:fill", {})
    assert found.value.stage == "logits"
    with pytest.raises(DiskFullError) as found, Console(quiet=True).stage("logits", tmp_path):
        run_isolated("test_disk:need", {})
    assert (found.value.stage, found.value.needed_bytes) == ("logits", 1 << 62)


def test_room_is_what_the_files_do_not_take_yet(tmp_path: Path) -> None:
    growing = tmp_path / "growing"
    growing.write_bytes(b"x" * (1 << 20))
    assert taken_bytes(growing) >= 1 << 20
    check_room([(growing, 1 << 20)], tmp_path)
    with growing.open("wb") as file:
        file.truncate(1 << 30)  # a hole
    assert taken_bytes(growing) < 1 << 20
    with pytest.raises(DiskFullError) as found:
        check_room([(growing, 1 << 62), (tmp_path / "other", 1)], tmp_path)
    assert found.value.stage is None
    assert found.value.needed_bytes is not None
    copy = pickle.loads(pickle.dumps(found.value))
    assert copy.needed_bytes == found.value.needed_bytes
