"""Where the files that ship with quantkit lie, in a checkout and in an installed wheel."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent


def resource(name: str) -> Path:
    """The folder `name` (`recipes`, `calibration`): inside the wheel, or at the checkout's root."""
    inside = _PACKAGE / name
    return inside if inside.exists() else _PACKAGE.parent / name


DEMO_MODEL = _PACKAGE / "data" / "demo-model"
HAYSTACK = _PACKAGE / "data" / "haystack.txt.xz"
TEMPLATES = _PACKAGE / "templates"
