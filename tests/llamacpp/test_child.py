"""The child process: results, messages, errors, and deaths of every kind.

The child imports this module for its tasks.
"""

from __future__ import annotations

import errno
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from waiting import wait_until

from quantkit.core.errors import EnvironmentFault, InputError
from quantkit.llamacpp import child
from quantkit.llamacpp.child import Emit, NativeCrash, run_isolated

TASKS = "test_child"


def double(value: int, emit: Emit) -> int:
    emit("half way")
    return 2 * value


def refuse(emit: Emit) -> None:
    raise InputError("refused, as it should")


def crash(number: int, emit: Emit) -> None:
    sys.stderr.write("last words\n")
    sys.stderr.flush()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def bug(emit: Emit) -> float:
    return 1 / 0


def half_a_message(kept: int, number: int, emit: Emit) -> None:
    """The child's death within a message, after `kept` bytes of it."""
    message = pickle.dumps(("result", {"x" * 50: [1.5, b"y" * 200]}))
    os.write(int(sys.argv[1]), message[:kept])
    os.kill(os.getpid(), number)
    os._exit(1)


def misfortune(number: int, emit: Emit) -> None:
    raise OSError(number, os.strerror(number))


def no_memory(emit: Emit) -> None:
    np.empty(1 << 55, np.uint8)


def unreadable_result(emit: Emit) -> Unreadable:
    return Unreadable()


class Unreadable:
    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("not a number",)


def leave(emit: Emit) -> None:
    os._exit(1)


def vanish(emit: Emit) -> None:
    os._exit(0)


def chatter(emit: Emit) -> str:
    for _ in range(4):
        sys.stderr.write("x" * 100_000)
        os.write(1, b"y" * 100_000)
    return "done"


def linger(mark: str, emit: Emit) -> None:
    Path(mark + ".new").write_text(str(os.getpid()))
    os.replace(mark + ".new", mark)
    time.sleep(60)


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))


def test_result_and_messages() -> None:
    seen: list[Any] = []
    assert run_isolated(f"{TASKS}:double", {"value": 21}, seen.append) == 42
    assert seen == ["half way"]


@pytest.mark.parametrize(
    ("task", "error", "word"),
    [
        ("refuse", InputError, "refused"),  # our errors cross over
        ("bug", RuntimeError, "ZeroDivisionError"),  # a bug keeps its traceback
        ("vanish", NativeCrash, "without"),
        ("leave", NativeCrash, "without"),  # as native code does that calls exit()
        ("no_memory", EnvironmentFault, "memory"),
    ],
)
def test_a_failure_is_raised_here(task: str, error: type[Exception], word: str) -> None:
    with pytest.raises(error, match=word):
        run_isolated(f"{TASKS}:{task}", {})


@pytest.mark.parametrize("number", [signal.SIGILL, signal.SIGSEGV, signal.SIGABRT])
def test_a_crash_becomes_a_sentence(number: signal.Signals) -> None:
    with pytest.raises(NativeCrash, match=f"{number.name}.*last words"):
        run_isolated(f"{TASKS}:crash", {"number": int(number)})


@pytest.mark.parametrize("number", [0, int(signal.SIGKILL)])  # 0: none is sent
@pytest.mark.parametrize("kept", [1, 3, 10, 13, 30, 100, 250])
def test_a_death_within_a_message(kept: int, number: int) -> None:
    with pytest.raises(NativeCrash):
        run_isolated(f"{TASKS}:half_a_message", {"kept": kept, "number": number})


@pytest.mark.parametrize(
    "name",
    ["EFBIG", "ENFILE", "EMFILE", "ESTALE", "EIO", "ENOMEM", "EAGAIN", "EROFS"],
)
def test_a_fault_of_the_machine_crosses_over(name: str) -> None:
    with pytest.raises(EnvironmentFault):
        run_isolated(f"{TASKS}:misfortune", {"number": getattr(errno, name)})


@pytest.mark.parametrize("name", ["ENOSPC", "EDQUOT"])
def test_a_full_disk_crosses_over_as_it_is(name: str) -> None:
    """The parent says for which stage, and what can be deleted."""
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the number says which
        run_isolated(f"{TASKS}:misfortune", {"number": getattr(errno, name)})
    assert caught.value.errno == getattr(errno, name)


def test_a_whole_message_that_cannot_be_read_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "DEATH_SECONDS", 0.1)
    with pytest.raises(ValueError, match="not a number"):
        run_isolated(f"{TASKS}:unreadable_result", {})


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
        wait_until(mark.exists)
        child = int(mark.read_text())
    finally:
        parent.kill()
        parent.wait()
    wait_until(lambda: not _alive(child))


@pytest.mark.parametrize("python_path", ["", os.pathsep], ids=["plain", "empty entry"])
def test_files_of_the_current_folder_do_not_run(
    python_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ctypes", "numpy", "pickle", "tempfile", "quantkit"):
        (tmp_path / f"{name}.py").write_text(f"open('RAN', 'a').write('{name} ')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.environ["PYTHONPATH"] + python_path)
    assert run_isolated(f"{TASKS}:double", {"value": 21}) == 42
    assert not Path("RAN").exists()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"
