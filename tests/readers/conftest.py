"""The Hub's own reader of GGUF headers, run by Node; without it the tests here are skipped."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
PACKAGE = HERE / "node_modules" / "@huggingface" / "gguf" / "package.json"
REQUIRED = "QUANTKIT_REQUIRE_NODE"
"""Set where Node and the package must be installed: their absence is then a failure."""


def _missing() -> str | None:
    if shutil.which("node") is None:
        return "no node on PATH; on Debian: apt-get install nodejs npm, then: make test"
    if not PACKAGE.is_file():
        return (
            f"no {PACKAGE.relative_to(HERE)} in tests/readers; run: npm ci --prefix tests/readers"
        )
    return None


@pytest.fixture(scope="session")
def node() -> Callable[..., Any]:
    """A script of this folder and its arguments → the JSON that it prints."""
    if words := _missing():
        if os.environ.get(REQUIRED):
            pytest.fail(f"{words} ({REQUIRED} is set)")
        pytest.skip(words)

    def run(script: str, *arguments: str) -> Any:  # noqa: ANN401  (JSON)
        done = subprocess.run(
            ["node", str(HERE / script), *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run
