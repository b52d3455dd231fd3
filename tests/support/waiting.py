"""Waiting for what another process does, however busy the machine is; pytest's timeout ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

KILLED_BEHIND_BYTES = 6 << 20
"""Where a server stalls, so that the client is killed in the middle of a file."""


def wait_until(
    happened: Callable[[], object], process: subprocess.Popen[str] | None = None
) -> None:
    """Wait until `happened()`, as long as `process` runs."""
    while not happened():
        assert process is None or process.poll() is None, "the process ended first"
        time.sleep(0.01)


def kill_while_it_waits(process: subprocess.Popen[str], folder: Path, pattern: str) -> int:
    """Kill a download that a stalled server keeps waiting: bytes of its partial file.

    Args:
        pattern: of the partial file in `folder`; the server stalls behind KILLED_BEHIND_BYTES.
    """

    def size_bytes() -> int:
        return sum(path.stat().st_size for path in folder.glob(pattern))

    # the client's own buffer may hold the last of them
    wait_until(lambda: size_bytes() > KILLED_BEHIND_BYTES - (1 << 20), process)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    return size_bytes()
