"""A part of the haystack, for checks of short contexts, whose time reading it all would be."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

from quantkit.core.paths import haystack_text

CHARACTERS = 200_000


@functools.cache
def small_haystack() -> Path:
    """A text file, the same on every machine, that lives as long as this process."""
    folder = Path(tempfile.mkdtemp(prefix="haystack-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = folder / "haystack.txt"
    path.write_text(haystack_text()[:CHARACTERS], encoding="utf-8")
    return path
