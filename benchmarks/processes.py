"""Wall time and peak memory of a command, measured from outside and alike for every program."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Run:
    """Wall time, and the largest resident memory (VmHWM: it only grows, so polling misses little).

    Pages of mapped files count, as they do for whoever limits the process's memory.
    """

    seconds: float
    peak_bytes: int


def run(command: Sequence[str | Path]) -> Run:
    """Run `command` to its end.

    Raises:
        SystemExit: it failed; shows what it said.
    """
    began = time.perf_counter()
    process = subprocess.Popen(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    peak = 0
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
        except OSError:
            break
        found = re.search(r"VmHWM:\s+(\d+)", status)
        peak = max(peak, 1024 * int(found[1]) if found else 0)
        time.sleep(POLL_SECONDS)
    assert process.stderr is not None
    said = process.stderr.read()
    if process.wait() != 0:
        sys.exit(f"{command[0]} failed:\n{said[-3000:]}")
    return Run(time.perf_counter() - began, peak)


def quantkit(*arguments: str | Path) -> list[str | Path]:
    """The command line of this environment's quantkit."""
    return [Path(sys.executable).with_name("quantkit"), *arguments]
