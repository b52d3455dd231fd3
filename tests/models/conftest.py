"""A Hub of this machine with one repository."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback_hub import LoopbackHub, hub


@pytest.fixture
def loopback(request: pytest.FixtureRequest, repository: Path) -> Iterator[LoopbackHub]:
    """Serves the module's `repository` fixture under its name REPO."""
    from huggingface_hub import close_session

    with hub({request.module.REPO: repository}) as served:
        yield served
    close_session()
