"""Puts tests/ on the import path, for the helpers beside this file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from quantkit.llamacpp.child import SPINS

if TYPE_CHECKING:
    from small_release import SmallRelease

# No deadlines, so that a busy machine fails nothing. The rest is hypothesis' own default, which
# draws the same examples each time where CI is set.
settings.register_profile("tests", deadline=None, print_blob=True)
settings.load_profile("tests")


@pytest.fixture(scope="module")
def one_child() -> Iterator[None]:
    """One process of llama.cpp answers all that a module asks."""
    from quantkit.llamacpp.memory_plan import asking

    with asking():
        yield


@pytest.fixture(scope="session")
def finished_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See `finished_builds.build`; it is not to be changed."""
    from finished_builds import build

    return build(tmp_path_factory.mktemp("a build"))


@pytest.fixture
def own(finished_build: Path, tmp_path: Path) -> Path:
    """A copy of the finished build, to be changed."""
    from finished_builds import copied

    return copied(finished_build, tmp_path / "own")


@pytest.fixture(scope="session")
def whole_release(tmp_path_factory: pytest.TempPathFactory) -> SmallRelease:
    """A small release; it is not to be changed."""
    from small_release import write_small_release

    folder = tmp_path_factory.mktemp("release")
    return write_small_release(folder / "whole", folder / "tiny.gguf")


@pytest.fixture
def release(whole_release: SmallRelease, tmp_path: Path) -> SmallRelease:
    """A copy to break."""
    return whole_release.copy(tmp_path / "release")


def pytest_configure() -> None:
    """Set what holds for all tests, before llama.cpp is loaded."""
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)  # in this process too, as in quantkit's children
    _take_a_core()


def _take_a_core() -> None:
    """Give each of several workers a core of its own: ggml's threads stand still where two of them
    share one, and quantkit takes as many threads as there are cores."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})
