"""The unit, read by systemd itself where it is installed, else by the rules of its manual."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from launches import AWKWARD, FLAGSHIP, SINGLE, launched, named

from quantkit.plan.launch.files import MODELS_FOLDER, PROGRAM, exec_line, systemd_unit
from quantkit.plan.launch.llama_cpp import server_arguments
from quantkit.plan.launch.settings import Launch


def analyze_version() -> int:
    """Of systemd-analyze; 0 where there is none."""
    if shutil.which("systemd-analyze") is None:
        return 0
    said = subprocess.run(
        ["systemd-analyze", "--version"], capture_output=True, text=True, check=True
    )
    return int(said.stdout.split()[1])


needs_systemd = pytest.mark.skipif(analyze_version() < 250, reason="needs systemd-analyze 250")
PRINTABLE = st.text(st.characters(exclude_categories=["C", "Z"]) | st.just(" "))


def settings(unit: str) -> dict[str, list[str]]:
    """Every setting with its values, in order; a line that ends in a backslash goes on."""
    assert "\\\n" not in unit
    found: dict[str, list[str]] = {}
    for line in unit.splitlines():
        if line and line[0] not in "#;[":
            name, separator, value = line.partition("=")
            assert separator
            assert re.fullmatch("[A-Z][A-Za-z]+", name), line
            found.setdefault(name, []).append(value.strip())
    return found


def words(line: str) -> list[str]:
    """What a command gets of this ExecStart=, by systemd.syntax(7) and systemd.service(5)."""
    found: list[str] = []
    word: str | None = None
    quote = ""
    characters = iter(line)
    for c in characters:
        if quote:
            if c == quote:
                quote = ""
                continue
        elif c in "\"'" and word is None:
            quote, word = c, ""
            continue
        elif c == ";" and word is None:
            raise AssertionError("a semicolon alone begins another command")
        elif c in " \t":
            if word is not None:
                found.append(word)
            word = None
            continue
        if c == "\\":
            c = next(characters)
            assert c in "\\\"'", f"escape \\{c}"
        elif c in "%$":
            assert next(characters) == c, f"{c} begins something in {line}"
        word = (word or "") + c
    assert not quote
    return found if word is None else [*found, word]


def analyze(unit: Path, level: str) -> str:
    """All that `systemd-analyze verify` says of a unit that it accepts."""
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit],
        env={**os.environ, "SYSTEMD_LOG_LEVEL": level, "SYSTEMD_COLORS": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr


def systemds_words(unit: Path) -> list[str]:
    """As `words`, by systemd itself: its debug output has the command as it was parsed."""
    said = analyze(unit, "debug")
    line = re.compile(r"Command Line: (.*)").search(said, said.index("-> ExecStart:\n"))
    assert line is not None
    # it is written for a shell; `$$` becomes a dollar only when the command runs
    printed = subprocess.run(
        ["sh", "-c", f"printf '%s\\0' {line[1]}"], capture_output=True, text=True, check=True
    )
    return [word.replace("$$", "$") for word in printed.stdout.split("\0")[:-1]]


def expected(launch: Launch, program: str) -> list[str]:
    return [program, *server_arguments(launch), "--host", "127.0.0.1", "--port", "8080"]


@pytest.mark.parametrize("name", AWKWARD)
def test_the_command_is_llama_servers(name: str) -> None:
    launch = named(name)
    found = settings(systemd_unit(launch))
    (command,) = found["ExecStart"]
    assert words(command) == expected(launch, PROGRAM)
    (description,) = found["Description"]
    assert description.replace("%%", "%") == f"{name} (llama-server)"
    assert not re.search("(?<!%)(?:%%)*%[^%]", description)


@given(st.lists(PRINTABLE))
@example([";", "", "'", '"', "\\", "%", "$", "a;"])
def test_any_words(rest: list[str]) -> None:
    line = exec_line(["/bin/true", *rest])
    assert words(line) == ["/bin/true", *rest]


@needs_systemd
@pytest.mark.parametrize("name", ["plain", *AWKWARD])
def test_systemd_reads_it_without_a_word(name: str, tmp_path: Path) -> None:
    launch = named(name)
    unit = tmp_path / "llama-server.service"
    unit.write_text(systemd_unit(launch, program="/bin/true"))
    assert str(unit) not in analyze(unit, "warning")
    assert systemds_words(unit) == expected(launch, "/bin/true")


@needs_systemd
def test_systemd_counts_little_exposure(tmp_path: Path) -> None:
    unit = tmp_path / "llama-server.service"
    unit.write_text(systemd_unit(SINGLE, program="/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--threshold=25", "--no-pager", unit],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-500:] + done.stderr


def test_what_it_may_do() -> None:
    found = settings(systemd_unit(FLAGSHIP))
    assert found["WorkingDirectory"] == [MODELS_FOLDER]
    assert found["DynamicUser"] == found["NoNewPrivileges"] == ["yes"]
    assert found["CapabilityBoundingSet"] == [""]
    assert (found["IPAddressDeny"], found["IPAddressAllow"]) == (["any"], ["localhost"])
    assert (found["DevicePolicy"], found["DeviceAllow"]) == (["closed"], ["char-nvidia* rwm"])
    assert "PrivateDevices" not in found  # it would hide the GPUs
    gpus = "CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=0,1,2,3"
    assert found["Environment"][0] == gpus


def test_the_unit_has_a_folder_of_its_own() -> None:
    elsewhere = launched(FLAGSHIP, model_folder="../../Q4")
    assert systemd_unit(elsewhere) == systemd_unit(FLAGSHIP)


def test_rules_of_the_parser_here() -> None:
    """The parser of these tests tells right from wrong."""
    assert words(r'/a "b c" d\\e "f\"g" h"i') == ["/a", "b c", r"d\e", 'f"g', 'h"i']
    for wrong in ("/a %h", "/a $HOME", '/a "b', "/a ; /b", "/a \\n"):
        with pytest.raises((AssertionError, StopIteration)):
            words(wrong)
