"""The child process: results, messages, errors, and deaths of every kind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from quantkit.core.errors import InputError
from quantkit.llamacpp.child import NativeCrash, run_isolated

TASKS = "child_tasks"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


def test_result_and_messages() -> None:
    seen: list[Any] = []
    assert run_isolated(f"{TASKS}:double", {"value": 21}, seen.append) == 42
    assert seen == ["half way"]


def test_our_errors_cross_over() -> None:
    with pytest.raises(InputError, match="refused"):
        run_isolated(f"{TASKS}:refuse", {})


@pytest.mark.parametrize("number", [signal.SIGILL, signal.SIGSEGV, signal.SIGABRT])
def test_a_crash_becomes_a_sentence(number: signal.Signals) -> None:
    with pytest.raises(NativeCrash, match=f"{number.name}.*last words"):
        run_isolated(f"{TASKS}:crash", {"number": int(number)})


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        run_isolated(f"{TASKS}:bug", {})


def test_silence_is_a_crash() -> None:
    with pytest.raises(NativeCrash, match="without"):
        run_isolated(f"{TASKS}:vanish", {})


def test_much_output_does_not_block() -> None:
    assert run_isolated(f"{TASKS}:chatter", {}) == "done"


def test_the_child_dies_with_its_parent(tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    code = (
        "from quantkit.llamacpp.child import run_isolated;"
        f"run_isolated('{TASKS}:linger', {{'mark': {str(mark)!r}}})"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    try:
        deadline = time.monotonic() + 30
        while not mark.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        child = int(mark.read_text())
    finally:
        parent.kill()
        parent.wait()
    deadline = time.monotonic() + 10
    while _alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(child)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"
