"""What `make clean` may remove: that which make set up, and nothing that people made."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).parents[2] / "Makefile"


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make on PATH")
def test_cleaning_keeps_artifacts(tmp_path: Path) -> None:
    shutil.copy(MAKEFILE, tmp_path)
    set_up = [tmp_path / ".venv" / "x", tmp_path / ".oracle" / "x"]
    demo, mine = (tmp_path / "build" / name / "x.gguf" for name in ("demo", "mine"))
    for path in (*set_up, demo, mine):
        path.parent.mkdir(parents=True)
        path.touch()

    def make(*words: str) -> None:
        subprocess.run(["make", "-C", str(tmp_path), *words], check=True, capture_output=True)

    make("clean")
    assert not any(path.parent.exists() for path in set_up)
    assert demo.exists()
    make("clean-demo", f"DEMO_OUT={mine.parent}")
    assert not demo.exists()
    assert mine.exists()
