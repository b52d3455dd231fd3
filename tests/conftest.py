"""Puts tests/ on the import path, for the helpers beside this file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def finished_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See `finished_builds.build`; it is not to be changed."""
    from finished_builds import build

    return build(tmp_path_factory.mktemp("a build"))


def pytest_configure() -> None:
    """Give each of several workers a core of its own: ggml's threads stand still where two of them
    share one, and quantkit takes as many threads as there are cores."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})
