"""Puts tests/ on the import path, for the helpers beside this file."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def finished_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See `finished_builds.build`; it is not to be changed."""
    from finished_builds import build

    return build(tmp_path_factory.mktemp("a build"))
