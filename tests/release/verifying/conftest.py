"""A release that several files of tests break copies of."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_release import SmallRelease, write_small_release


@pytest.fixture(scope="session")
def whole_release(tmp_path_factory: pytest.TempPathFactory) -> SmallRelease:
    """Not to be changed."""
    folder = tmp_path_factory.mktemp("release")
    return write_small_release(folder / "whole", folder / "tiny.gguf")


@pytest.fixture
def release(whole_release: SmallRelease, tmp_path: Path) -> SmallRelease:
    """A copy to break."""
    return whole_release.copy(tmp_path / "release")
