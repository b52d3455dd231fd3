"""Runs native work in a child process, so that a crash there becomes a sentence here.

The child is `python -m quantkit.native.child`: it reads one pickled call from its standard input,
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
from collections.abc import Callable
from typing import Any, BinaryIO

from quantkit.errors import MACHINE_ERRORS, EnvironmentFault, QuantkitError

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
    receiving, sending = os.pipe()
    printed = tempfile.TemporaryFile()  # a file never blocks the child as a pipe can
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "quantkit.native.child", str(sending)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=printed,
            pass_fds=(sending,),
            env={**os.environ, "GGML_NO_BACKTRACE": "1"},  # its last words are then the assertion
        )
    finally:
        os.close(sending)
    with printed, process, open(receiving, "rb") as messages:
        assert process.stdin is not None
        try:
            pickle.dump((os.getpid(), task, arguments), process.stdin)
            process.stdin.close()
        except BrokenPipeError:
            pass  # it died before it read the call; its exit code says how
        try:
            return _receive(messages, on_message)
        except EOFError:
            code = process.wait()
        except BaseException:
            process.kill()
            raise
        printed.seek(0)
        tail = printed.read()[-STDERR_KEPT_BYTES:].decode(errors="replace").strip()
    if code > 0:  # a bug in the task, not a crash below it: keep its traceback
        raise RuntimeError(f"{task} failed in its child process:\n{tail}")
    how = signal.Signals(-code).name if code < 0 else "without an answer"
    raise NativeCrash(
        f"native code in {task.split(':')[-1]} ended by {how} "
        f"({tail.splitlines()[-1] if tail else 'it printed nothing'}); "
        "run 'quantkit doctor' to see which settings work on this machine"
    )


def _receive(messages: BinaryIO, on_message: Emit) -> Any:  # noqa: ANN401
    while True:
        kind, payload = pickle.load(messages)
        if kind == "result":
            return payload
        if kind == "error":
            raise payload
        on_message(payload)


def _die_with_parent(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)


def main() -> None:
    """Body of the child process."""
    channel = open(int(sys.argv[1]), "wb", buffering=0)
    parent, task, arguments = pickle.load(sys.stdin.buffer)
    _die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C is the parent's to handle

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
