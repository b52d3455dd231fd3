"""What a terminal of 80 columns, a pipe and a quiet run show of a stage."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from terminals import written_in_terminal

from quantkit.core.bars import rate_text

PROGRAM = """
import sys, time
from quantkit.core import bars
from quantkit.core.console import Console
bars.AFTER_SECONDS = 0
console = Console(quiet="--quiet" in sys.argv)
with console.stage("imatrix") as progress:
    progress.start(200, "tokens", done=100)
    progress.advance(50)
    time.sleep(0.2)
    progress.note("a note " + "of several words " * 6)
    progress.advance(50.0)
console.done("imatrix", "all done", 1)
"""
COLUMNS = 80


def in_terminal(*words: str) -> str:
    return written_in_terminal([sys.executable, "-c", PROGRAM, *words], COLUMNS)


def screen(written: str) -> list[str]:
    """The lines that stay: a return to the begin of a line is written over."""
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", written)
    lines = []
    for line in plain.split("\r\n"):
        shown = ""
        for part in line.split("\r"):
            shown = part + shown[len(part) :]
        lines.append(shown.rstrip())
    return [line for line in lines if line]


def test_a_bar_with_a_rate_and_the_time_left_then_only_the_result() -> None:
    written = in_terminal()
    bars = [part for part in re.split(r"[\r\n]", written) if part.startswith("▸")]
    assert any("75%" in bar and "tokens/s" in bar and bar.endswith("left") for bar in bars)
    assert max(map(len, bars)) <= COLUMNS
    shown = screen(written)
    assert " ".join(shown[:2]).split() == ["a", "note", *["of", "several", "words"] * 6]
    assert all(len(line) <= COLUMNS for line in shown)
    assert [line for line in shown[2:] if "all done" not in line] == []


def test_a_quiet_run_shows_nothing() -> None:
    assert in_terminal("--quiet") == ""


def test_a_pipe_gets_plain_lines() -> None:
    shown = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    note, done = shown.stdout.splitlines()
    assert note.strip().startswith("a note of several")
    assert "all done" in done
    assert shown.stderr == ""


@pytest.mark.parametrize(
    ("rate", "unit", "words"),
    [
        (80 * 2**20, "B", "80.0 MiB/s"),
        (12_345, "tokens", "12k tokens/s"),
        (655.4, "tokens", "655 tokens/s"),
        (0.25, "tensors", "0.2 tensors/s"),
    ],
)
def test_rates(rate: float, unit: str, words: str) -> None:
    assert rate_text(rate, unit) == words
