"""The script that CI runs, where what it needs is missing."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "run"


@pytest.mark.parametrize(
    ("programs", "missing"),
    [
        ({}, "apt-get, and chromium with it, is missing"),
        ({"apt-get": "exit 9", "id": "echo 1000"}, "sudo, which apt-get needs for chromium, is"),
    ],
)
def test_what_is_missing_is_named(
    tmp_path: Path, programs: Mapping[str, str], missing: str
) -> None:
    """Without chromium on PATH, and without `make`, so nothing else can be begun."""
    bash, dirname = shutil.which("bash"), shutil.which("dirname")
    assert bash is not None
    assert dirname is not None
    (tmp_path / "dirname").symlink_to(dirname)
    for name, does in programs.items():
        (tmp_path / name).write_text(f"#!{bash}\n{does}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        [bash, str(SCRIPT)],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert missing in line
    assert "expects Debian" in line
    assert "install chromium" in line
    assert "yourself, and run it again" in line
