"""Runs native work in a child process, so that a crash there becomes a sentence here.

The child is `python -m quantkit.llamacpp.child`: it reads pickled calls from its standard input,
writes pickled messages to a pipe of its own (llama.cpp may print to the standard ones), and dies
with its parent. The task is named as `module:function`; it is called with the keyword arguments
and an `emit` callable for progress.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from io import FileIO
from typing import Any, BinaryIO, Self

from quantkit.core.errors import MACHINE_ERRORS, EnvironmentFault, QuantkitError

Emit = Callable[[Any], None]
PR_SET_PDEATHSIG = 1  # linux/prctl.h
STDERR_KEPT_BYTES = 4000


class NativeCrash(EnvironmentFault):
    """The child ended by a signal or without an answer."""


def run_isolated(task: str, arguments: dict[str, Any], on_message: Emit = lambda _m: None) -> Any:  # noqa: ANN401 - whatever the task returns
    """Call `task` (`module:function`) with `arguments` in a child and return its result.

    Messages that the task emits go to `on_message` as they come.

    Raises:
        NativeCrash: the child died; the message names the signal.
        QuantkitError: what the task itself raised.
    """
    with Child() as child:
        return child.call(task, arguments, on_message)


class Child:
    """A process that runs one task after the other; the first that fails may be its last.

    Args:
        preload: modules that it imports while nothing is asked of it yet.
    """

    def __init__(self, preload: Sequence[str] = ()) -> None:
        receiving, sending = os.pipe()
        self._printed = tempfile.TemporaryFile()  # a file never blocks the child as a pipe can
        words = [str(sending), str(os.getpid()), *preload]
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "quantkit.llamacpp.child", *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=self._printed,
                pass_fds=(sending,),
                env={**os.environ, "GGML_NO_BACKTRACE": "1"},  # its last words are the assertion
            )
        finally:
            os.close(sending)
        self._messages = open(receiving, "rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        if kind is not None:
            self.end()  # it may be in the middle of a task whose messages nobody reads any more
        self.close()

    def call(self, task: str, arguments: dict[str, Any], on_message: Emit = lambda _m: None) -> Any:  # noqa: ANN401
        """As `run_isolated`, in this process."""
        stdin = self._process.stdin
        assert stdin is not None
        try:
            pickle.dump((task, arguments), stdin)
            stdin.flush()
        except BrokenPipeError:
            pass  # it died before it read the call; its exit code says how
        try:
            return _receive(self._messages, on_message)
        except EOFError:
            code = self._process.wait()
        self._printed.seek(0)
        tail = self._printed.read()[-STDERR_KEPT_BYTES:].decode(errors="replace").strip()
        if code > 0:  # a bug in the task, not a crash below it: keep its traceback
            raise RuntimeError(f"{task} failed in its child process:\n{tail}")
        how = signal.Signals(-code).name if code < 0 else "without an answer"
        raise NativeCrash(
            f"native code in {task.split(':')[-1]} ended by {how} "
            f"({tail.splitlines()[-1] if tail else 'it printed nothing'}); "
            "run 'quantkit doctor' to see which settings work on this machine"
        )

    def end(self) -> None:
        """End it at once; nothing is asked of it any more."""
        self._process.kill()

    def close(self) -> None:
        """Let it end, and wait until it has."""
        with suppress(BrokenPipeError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        self._process.wait()
        self._messages.close()
        self._printed.close()


def _receive(messages: BinaryIO, on_message: Emit) -> Any:  # noqa: ANN401
    while True:
        kind, payload = pickle.load(messages)
        if kind == "result":
            return payload
        if kind == "error":
            raise payload
        on_message(payload)


def die_with_parent(parent: int) -> None:
    """Have this process killed when the one with this id ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)


def main() -> None:
    """Body of the child process: calls come until the standard input ends."""
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
    except QuantkitError as error:
        send("error", error)
    except OSError as error:
        if error.errno not in MACHINE_ERRORS:
            raise
        send("error", EnvironmentFault(f"{error.strerror}: {error.filename or 'while writing'}"))
    else:
        send("result", result)


if __name__ == "__main__":
    main()
