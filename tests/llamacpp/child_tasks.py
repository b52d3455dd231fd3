"""Tasks that `test_child.py` runs in a child process."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from quantkit.core.errors import InputError
from quantkit.llamacpp.child import Emit


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
