"""What comes from files and servers reaches the screen without control characters, and bounded."""

from __future__ import annotations

import io
import json
import math
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TextIO, cast

import pytest
from forked import PROGRAM
from models import write_llama

from quantkit.core.console import MOST_MESSAGE, Console, EscapedStream, marked
from quantkit.core.documents import JsonDocument
from quantkit.core.files import write_json

HOSTILE = {
    "clear": "a\x1b[2Jb",
    "title": "a\x1b]0;owned\x07b",
    "C1 CSI": "a\x9b2Jb",
    "C1 OSC": "a\x9d0;owned\x9cb",
    "return": "safe\rfalse",
    "backspace": "a\b\b\bb",
    "line": "fine\n✓ verify all is well",
    "bidi": "a\u202eb\u2066c\u2069",
    "separators": "a\u2028b\u2029c\x85d",
    "tag": "a\U000e0041b",
    "half surrogate": "a\udc9bb",
    "link": "[link=https://example.com]here[/link]",
    "colour": "[red]x[/] [/] [bold",
    "long": "x" * 1_000_000,
    "long and hostile": "\x1b" * 1_000_000,
}
PRINTERS: dict[str, Callable[[Console, str], None]] = {
    "done": lambda console, text: console.done(text, text, 1),
    "failed": lambda console, text: console.failed(text, text, 1),
    "skipped": lambda console, text: console.skipped(text, text),
    "note": lambda console, text: console.note(text),
    "heading": lambda console, text: console.heading(text),
    "line": lambda console, text: console.line(text),
    "error": lambda console, text: console.error(text),
    "cell": lambda console, text: console.table(("name", "size"), [("a", text)]),
    "marked": lambda console, text: console.table(("a", "b"), [("a", marked("[dim]{}[/]", text))]),
    "stderr": lambda _console, text: print(text, file=EscapedStream(sys.stderr)),
}


@pytest.mark.parametrize("printer", PRINTERS)
@pytest.mark.parametrize("kind", HOSTILE)
def test_no_control_character_is_printed(
    kind: str, printer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    PRINTERS[printer](Console(), HOSTILE[kind])
    captured = capsys.readouterr()
    written = captured.out + captured.err
    assert all(line.isprintable() for line in written.split("\n"))
    assert len(written) < 4 * MOST_MESSAGE
    if kind.startswith("long"):
        assert "…" in written
    if kind == "line" and printer != "stderr":  # no forged line
        assert not any(line.lstrip().startswith("✓ verify") for line in written.split("\n"))
    if kind in ("link", "colour"):  # as it stands
        assert HOSTILE[kind] in " ".join(written.split())


@pytest.mark.parametrize("kind", HOSTILE)
def test_facts_are_valid_json_without_control_characters(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = {"name": HOSTILE[kind], HOSTILE[kind]: [1]}
    Console().json(facts)
    written = capsys.readouterr().out
    assert written.isascii()
    assert all(line.isprintable() for line in written.split("\n"))
    assert json.loads(written) == facts


@pytest.mark.parametrize("kind", HOSTILE)
def test_written_facts_are_valid_json_without_control_characters(kind: str, tmp_path: Path) -> None:
    class Document(JsonDocument):
        version: Literal[1] = 1
        name: str

    path = tmp_path / "a.json"
    write_json(path, {HOSTILE[kind]: [HOSTILE[kind], "é\n"]})
    assert json.loads(path.read_bytes()) == {HOSTILE[kind]: [HOSTILE[kind], "é\n"]}
    assert all(line.isprintable() for line in path.read_text(encoding="utf-8").split("\n"))
    assert "é" in path.read_text(encoding="utf-8")
    if kind != "half surrogate":  # which no document can have
        document = Document(name=HOSTILE[kind])
        document.write(path)
        assert Document.read(path) == document
        assert all(line.isprintable() for line in path.read_text(encoding="utf-8").split("\n"))


def test_facts_without_infinities(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(name: str) -> None:
        raise ValueError(name)

    Console().json({"a": (math.nan, [math.inf, 1.5]), "b": -math.inf})
    found = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert found == {"a": [None, [None, 1.5]], "b": None}


def test_colours_are_still_written_to_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    below = Terminal()
    monkeypatch.setattr(sys, "stderr", EscapedStream(cast(TextIO, below)))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    Console().error("a\x1b[2Jb")
    assert "\x1b[1;31m" in below.getvalue()
    assert "\x1b[2J" not in below.getvalue()


@pytest.mark.parametrize(
    "arguments",
    [("inspect", "--no\x1b[2J"), ("in\x1b[2Jspect",), ("inspect", "none\x1b[2J\x9b.gguf")],
)  # fmt: skip
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_arguments_in_messages_of_the_parser(encoding: str, arguments: tuple[str, ...]) -> None:
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run([*PROGRAM, *arguments], env=environment, capture_output=True)
    assert done.returncode == 2
    assert b"\x1b" not in done.stderr
    assert "\x9b" not in done.stderr.decode()


def test_the_traceback_of_a_bug() -> None:
    program = (
        "import sys; from quantkit.cli import app\n"
        "class Bug(Exception):\n    __str__ = lambda self: 'a\\x1b[2Jb\\x9b' + 'x' * 10**6\n"
        "def run(): raise Bug\n"
        "app.app = run; app.main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "\x1b" not in done.stderr
    assert len(done.stderr) < 4 * MOST_MESSAGE


class TestClosedOutput:
    """Exit 3 and a sentence; typer's own exit is 1, which is that of a failed gate."""

    COMMANDS = (("inspect", "m.gguf"), ("inspect", "m.gguf", "--json"), ("--help",), ("targets",))

    def run(self, folder: Path, arguments: tuple[str, ...], redirection: str) -> None:
        write_llama(folder / "m.gguf")
        done = subprocess.run(
            ["sh", "-c", f'"$@" {redirection}', "sh", *PROGRAM, *arguments],
            cwd=folder, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 3, done.stderr
        (line,) = done.stderr.strip().splitlines()
        assert line.startswith("error: ")

    @pytest.mark.parametrize("arguments", COMMANDS)
    def test_descriptor_is_closed(self, arguments: tuple[str, ...], tmp_path: Path) -> None:
        self.run(tmp_path, arguments, ">&-")

    @pytest.mark.parametrize("arguments", COMMANDS)
    def test_disk_is_full(self, arguments: tuple[str, ...], tmp_path: Path) -> None:
        self.run(tmp_path, arguments, ">/dev/full")

    @pytest.mark.parametrize("arguments", COMMANDS)
    def test_reader_has_gone(self, arguments: tuple[str, ...], tmp_path: Path) -> None:
        write_llama(tmp_path / "m.gguf")
        reading, writing = os.pipe()
        os.close(reading)
        done = subprocess.run(
            [*PROGRAM, *arguments], cwd=tmp_path, stdout=writing, stderr=subprocess.PIPE, text=True
        )
        os.close(writing)
        assert done.returncode == 3, done.stderr
        (line,) = done.stderr.strip().splitlines()
        assert line.startswith("error: ")

    @pytest.mark.parametrize("redirection", ["2>&-", "<&- 2>&-"])
    def test_others_are_not_needed(self, redirection: str, tmp_path: Path) -> None:
        write_llama(tmp_path / "m.gguf")
        command = ["sh", "-c", f'"$@" {redirection}', "sh", *PROGRAM, "inspect", "m.gguf"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0
        assert "llama" in done.stdout


def test_a_folder_that_was_deleted(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    program = "import os, sys; os.rmdir(os.getcwd()); os.execv(sys.argv[1], sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", program, *PROGRAM, "targets"],
        cwd=tmp_path / "gone", env={"PYTHONSAFEPATH": "1", **os.environ}, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.decode().strip().splitlines()
    assert line.startswith("error: ")


@pytest.mark.parametrize("limit", [(resource.RLIMIT_FSIZE, 4096), (resource.RLIMIT_NOFILE, 5)])
def test_a_limit_of_the_machine_is_named(limit: tuple[int, int], tmp_path: Path) -> None:
    kind, most = limit
    words = [*PROGRAM, "convert", "--model", "demo", "--out", str(tmp_path / "a.gguf")]
    done = subprocess.run(
        words, cwd=tmp_path, capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(kind, (most, most)),
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert "ulimit" in line
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT"])
@pytest.mark.parametrize("value", ["x\x1b[2J", "-1", "1.5"])
def test_a_timeout_that_is_none(name: str, value: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [*PROGRAM, "convert", "--model", "demo", "--out", "a.gguf"], cwd=tmp_path,
        env=os.environ | {name: value}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert name in done.stderr
    assert "\x1b" not in done.stderr
    assert "Traceback" not in done.stderr
