"""What a command costs as the system counts it: peak memory, and bytes written."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass

# Not ru_maxrss: a new process starts with its parent's.
_CALL = """
import re, sys
from pathlib import Path
try:
    from quantkit.cli.app import main
    main()
finally:
    peak = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]
    written = re.search(r"wchar: (\\d+)", Path("/proc/self/io").read_text())[1]
    print(f"cost: {peak} kB, {written} bytes", file=sys.stderr)
"""


@dataclass(frozen=True)
class Cost:
    """Largest resident memory, all bytes given to write calls, and what was printed."""

    peak_bytes: int
    written_bytes: int
    stdout: str


def cost_of_quantkit(*arguments: object) -> Cost:
    """Run `quantkit` with `arguments` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", _CALL, *map(str, arguments)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    peak, written = re.findall(r"cost: (\d+) kB, (\d+) bytes", done.stderr)[-1]
    return Cost(1024 * int(peak), int(written), done.stdout)
