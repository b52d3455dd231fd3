"""The current folder is nowhere on the import path of a command."""

from __future__ import annotations

import ast
import os
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
