"""Programs in a terminal of their own."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import termios
from collections.abc import Sequence


def written_in_terminal(command: Sequence[str], columns: int) -> str:
    """What a program that must succeed writes to a terminal, with its control characters."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = os.environ | {"TERM": "xterm", "NO_COLOR": "1", "COLUMNS": str(columns)}
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    found = b""
    with open(ours, "rb", buffering=0) as terminal:
        try:
            while piece := terminal.read(1 << 16):
                found += piece
        except OSError:  # EIO: the other side is closed
            pass
    assert process.wait() == 0, found
    return found.decode()
