"""The current folder is nowhere on the import path of a command."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from quantkit.core.import_path import without_empty_entries

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("given", "named"),
    [("", ""), (":", ""), (":/a", "/a"), ("/a:", "/a"), ("/a::/b", "/a:/b"), ("/a:.", "/a:.")],
)
def test_named_folders_stay(given: str, named: str) -> None:
    assert without_empty_entries(given) == named


@pytest.mark.parametrize("ending", ["", os.pathsep], ids=["plain", "empty entry"])
@pytest.mark.parametrize(
    "program",
    [["-m", "quantkit"], ["-P", "-c", "from quantkit.cli.app import main; main()"]],
    ids=["module", "script"],
)
def test_a_command_runs_no_file_of_the_current_folder(
    program: list[str], ending: str, tmp_path: Path
) -> None:
    for name in ("numpy", "pydantic", "rich", "typer", "yaml"):
        (tmp_path / f"{name}.py").write_text(f"open('RAN', 'a').write('{name} ')\n")
    done = subprocess.run(
        [sys.executable, *program, "targets"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)) + ending},
        capture_output=True,
        text=True,
    )
    assert not (tmp_path / "RAN").exists()
    assert done.returncode == 0, done.stderr


def test_every_process_of_python_is_started_without_the_current_folder() -> None:
    files = [path for room in ("quantkit", "scripts") for path in (ROOT / room).rglob("*.py")]
    started = 0
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.List | ast.Tuple) and node.elts:
                first, *rest = map(ast.unparse, node.elts)
                if first == "sys.executable":
                    started += 1
                    assert rest[:1] == ["'-P'"], f"{path}:{node.lineno}"
    assert started


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
@pytest.mark.parametrize("entry", ["", ".", "here"])
def test_no_library_or_program_of_the_current_folder_runs(entry: str, tmp_path: Path) -> None:
    """An empty entry is left by `export X=$X:/mine` where X was not set."""
    (tmp_path / "here").symlink_to(tmp_path)
    source = tmp_path / "evil.c"
    source.write_text(
        "#include <stdio.h>\n__attribute__((constructor)) static void run(void)"
        '{ FILE *f = fopen("RAN", "a"); fputs("library", f); fclose(f); }\n'
    )
    for name in ("libgomp.so.1", "libggml-base.so.0", "libggml-cuda.so", "libllama.so.0"):
        subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / name, source], check=True)
    for name in ("cc", "c++", "ld", "as", "uname", "nvidia-smi"):
        (tmp_path / name).write_text("#!/bin/sh\necho program >> RAN\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "quantkit", "doctor", "--again"],
        cwd=tmp_path,
        env=os.environ
        | {
            "PATH": f"{entry}{os.pathsep}{os.environ['PATH']}",
            "LD_LIBRARY_PATH": f"{entry}{os.pathsep}/nowhere",
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "RAN").exists()
