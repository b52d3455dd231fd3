"""The script that CI runs, where what it needs is missing and where it is there."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from places import ROOT

SCRIPT = ROOT / ".ci" / "run"
ALL = "chromium, nodejs, npm"
THERE = {"chromium": "", "node": "", "npm": ""}
RECORD = 'echo "${0##*/} $* $QUANTKIT_REQUIRE_CHROMIUM $QUANTKIT_REQUIRE_NODE" >&2'


def ci_run(folder: Path, programs: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run with nothing on PATH but `programs`, name → what each does; also without `make`, where it
    is none of them, so that nothing is begun."""
    bash, dirname = shutil.which("bash"), shutil.which("dirname")
    assert bash is not None
    assert dirname is not None
    (folder / "dirname").symlink_to(dirname)
    for name, does in programs.items():
        (folder / name).write_text(f"#!{bash}\n{does}\n", encoding="utf-8")
        (folder / name).chmod(0o755)
    return subprocess.run(
        [bash, str(SCRIPT)],
        env={"PATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("programs", "missing", "to_install"),
    [
        ({}, f"apt-get, and {ALL} with it, is missing", ALL),
        (
            {"apt-get": "exit 9", "id": "echo 1000"},
            f"sudo, which apt-get needs for {ALL}, is missing",
            f"{ALL} as root",
        ),
        ({"chromium": "", "node": ""}, "apt-get, and npm with it, is missing", "npm"),
        ({"node": "", "npm": ""}, "apt-get, and chromium with it, is missing", "chromium"),
    ],
)
def test_what_is_missing_is_named(
    tmp_path: Path, programs: Mapping[str, str], missing: str, to_install: str
) -> None:
    done = ci_run(tmp_path, programs)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert missing in line
    assert "expects Debian" in line
    assert f"; install {to_install} yourself, and run it again" in line


@pytest.mark.parametrize(
    ("there", "installed"),
    [({}, "chromium nodejs npm"), ({"chromium": ""}, "nodejs npm"), (THERE, None)],
)
def test_what_is_missing_is_installed_and_then_required(
    tmp_path: Path, there: Mapping[str, str], installed: str | None
) -> None:
    programs = {"apt-get": RECORD, "id": "echo 0", "env": 'shift; exec "$@"', "make": RECORD}
    done = ci_run(tmp_path, there | programs)
    assert done.returncode == 0, done.stderr
    *apt_get, check, test = done.stderr.splitlines()
    assert (check, test) == ("make check 1 1", "make test 1 1")
    assert [line.strip() for line in apt_get] == (
        []
        if installed is None
        else [
            "apt-get update -qq",
            f"apt-get install -y -qq --no-install-recommends {installed}",
        ]
    )
