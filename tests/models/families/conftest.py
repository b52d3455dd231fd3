"""The small random models of every family, written once for all oracle tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from oracle import run_torch


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of checkpoints by name; see oracle_models.py."""
    folder = tmp_path_factory.mktemp("oracle")
    run_torch("oracle_models.py", folder)
    return folder
