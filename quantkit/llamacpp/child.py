"""Runs native code in a child process, so that a crash becomes an exception here.

The child is `python -P -m quantkit.llamacpp.child`: it reads pickled calls from its standard input,
writes pickled messages to a pipe of its own (llama.cpp may print to the standard streams), and dies
with its parent. A task is named `module:function` and called with keyword arguments and an `emit`
callable for progress.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from io import FileIO
from typing import Any, Self

from quantkit.core.disk import FULL
from quantkit.core.errors import EnvironmentFault, InputError, as_fault
from quantkit.core.import_path import without_empty_entries
from quantkit.core.units import shown

Emit = Callable[[Any], None]
PR_SET_PDEATHSIG = 1  # linux/prctl.h
M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8  # malloc.h
STDERR_KEPT_BYTES = 4000
PYTHON = (sys.executable, "-P")
"""Starts a process of this Python: with -P it imports nothing from the current folder."""
_OF_A_MODEL = re.compile(
    r"/src/(?:llama-(?:hparams|model|quant|vocab)|models/[\w-]+)\.cpp:\d+: "
    r"(GGML_ASSERT\(.*\)) failed$"
)
"""What llama.cpp prints last where numbers of a model's metadata contradict each other."""
DEATH_SECONDS = 10
"""What a child that is dying within a message gets to end; it may write a core file."""
SPINS = "4000"
"""How often OpenMP's threads look at a barrier before they sleep, where GOMP_SPINCOUNT is unset.

ggml has a barrier after every operation, and libgomp would look for milliseconds: time in which the
thread that is waited for does not run where other processes keep the cores busy. On two cores with
30 processes, 64 tokens of the demo model took 40 s or more by default, 13 s with 20,000, and 1 s
with 2,000. On quiet ones 4,000 take up to a tenth longer, 1,000 a third, and 100 fifteen times as
long, since to wake a thread takes longer than one of the demo's operations.
"""


class NativeCrash(EnvironmentFault):
    """The child ended by a signal or without a result."""


def run_isolated(task: str, arguments: dict[str, Any], on_message: Emit = lambda _m: None) -> Any:  # noqa: ANN401 - whatever the task returns
    """Call `task` (`module:function`) with `arguments` in a child and return its result.

    Messages that the task emits are passed to `on_message`.

    Raises:
        NativeCrash: the child died; the message names the signal.
        InputError: it died at one of llama.cpp's checks of a model.
        QuantkitError: raised by the task.
        OSError: the disk is full.
    """
    with Child() as child:
        return child.call(task, arguments, on_message)


class Child:
    """A process that runs one task after the other; a failed one may end it.

    Args:
        preload: modules to import before the first task.
    """

    def __init__(self, preload: Sequence[str] = ()) -> None:
        receiving, sending = os.pipe()
        self._printed = tempfile.TemporaryFile()  # a file never blocks the child as a pipe can
        arguments = [str(sending), str(os.getpid()), *preload]
        try:
            self._process = subprocess.Popen(
                [*PYTHON, "-m", "quantkit.llamacpp.child", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=self._printed,
                pass_fds=(sending,),
                env=child_environment(),
            )
        finally:
            os.close(sending)
        assert self._process.stdin is not None
        self._calls, self._messages = self._process.stdin, open(receiving, "rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        if kind is not None:
            self.end()  # it may be in the middle of a task
        self.close()

    def call(self, task: str, arguments: dict[str, Any], on_message: Emit = lambda _m: None) -> Any:  # noqa: ANN401
        """As `run_isolated`, in this process."""
        try:
            pickle.dump((task, arguments), self._calls)
            self._calls.flush()
        except BrokenPipeError:
            pass  # it died before it read the call; see its exit code
        while (message := self._received()) is not None:
            kind, payload = message
            if kind == "result":
                return payload
            if kind == "error":
                raise payload
            if kind == "bug":
                raise RuntimeError(f"{task} failed in its child process:\n{payload}")
            on_message(payload)
        code = self._process.wait()
        self._printed.seek(0)
        tail = self._printed.read()[-STDERR_KEPT_BYTES:].decode(errors="replace").strip()
        if asserted := _OF_A_MODEL.search(tail):
            raise InputError(
                f"llama.cpp cannot use this model: its check {shown(asserted[1])} fails; convert "
                "the model again, or use another"
            )
        how = f"without a result, exit code {code}" if code >= 0 else signal.Signals(-code).name
        raise NativeCrash(
            f"native code in {task.split(':')[-1]} ended by {how} "
            f"({tail.splitlines()[-1] if tail else 'it printed nothing'}); "
            "run 'quantkit doctor' to see which settings work on this machine"
        )

    def _received(self) -> tuple[str, Any] | None:
        """The next message; None where the child died before it was whole."""
        try:
            message: tuple[str, Any] = pickle.load(self._messages)
            return message
        except EOFError:
            return None
        except Exception:
            # A message that is cut short raises whatever its remains mean to pickle.
            try:
                self._process.wait(DEATH_SECONDS)
            except subprocess.TimeoutExpired:
                pass
            else:
                return None
            raise  # a bug: the message was whole

    def end(self) -> None:
        self._process.kill()

    def close(self) -> None:
        with suppress(BrokenPipeError):
            self._calls.close()
        self._process.wait()
        self._messages.close()
        self._printed.close()


def child_environment() -> dict[str, str]:
    """The environment of a child.

    With GGML_NO_BACKTRACE the last line that it prints is the failed assertion.
    """
    own = {
        "GGML_NO_BACKTRACE": "1",
        "PYTHONPATH": without_empty_entries(os.environ.get("PYTHONPATH", "")),
    }
    return {"GOMP_SPINCOUNT": SPINS, **os.environ, **own}


def die_with_parent(parent: int) -> None:
    """Have this process killed when the process `parent` ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)


def give_memory_back() -> None:
    """Have this process give freed blocks of a megabyte and more back to the system at once.

    glibc would keep them for later: the sweep over SmolLM2 then takes 370 MB instead of 250.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(M_MMAP_THRESHOLD, 1 << 20)
        library.mallopt(M_ARENA_MAX, 2)


def main() -> None:
    """Body of the child process: runs calls until the standard input ends."""
    channel = open(int(sys.argv[1]), "wb", buffering=0)
    die_with_parent(int(sys.argv[2]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C is the parent's to handle
    for module in sys.argv[3:]:
        importlib.import_module(module)
    while True:
        try:
            task, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        _run(task, arguments, channel)


def _run(task: str, arguments: dict[str, Any], channel: FileIO) -> None:
    def send(kind: str, payload: Any) -> None:  # noqa: ANN401
        channel.write(pickle.dumps((kind, payload)))

    module, _, function = task.partition(":")
    try:
        result = getattr(importlib.import_module(module), function)(
            **arguments, emit=lambda message: send("message", message)
        )
        send("result", result)
    except Exception as error:  # noqa: BLE001 - sent to the parent, which raises it
        if isinstance(error, OSError) and error.errno in FULL:
            send("error", error)  # the parent knows for what, and where
            return
        fault = as_fault(error)
        if fault is None:  # a bug: its traceback goes with it
            send("bug", traceback.format_exc())
        else:
            send("error", fault)


if __name__ == "__main__":
    main()
