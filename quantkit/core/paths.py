"""Paths of the files that ship with quantkit, and of its cache."""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).parent.parent


def resource(name: str) -> Path:
    """The folder `name` (`recipes`, `calibration`): inside the wheel, or at the checkout's root."""
    inside = _PACKAGE / name
    return inside if inside.exists() else _PACKAGE.parent / name


DEMO_MODEL = _PACKAGE / "data" / "demo-model"
PARAPHRASES = _PACKAGE / "data" / "paraphrases.txt"
HAYSTACK = _PACKAGE / "data" / "haystack.txt.xz"
TEMPLATES = _PACKAGE / "report" / "templates"


def cache_folder() -> Path:
    """The user's cache folder for quantkit, which may not exist yet."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "quantkit"
