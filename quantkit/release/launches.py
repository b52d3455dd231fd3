"""How a published level is started from its folder in a release."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from quantkit.core.errors import InputError
from quantkit.plan.launch.of_plan import launch_placed
from quantkit.plan.launch.settings import Launch
from quantkit.plan.place import Placement

_FORM = TypeAdapter(Placement)
_ESTIMATED = "compute_is_estimated"
"""What placement.json calls `Placement.estimated`; all else has its field's name."""


def read_placement(content: Mapping[str, Any]) -> Placement:
    """The placement that a placement.json tells of, without the GPUs' own devices.

    Raises:
        InputError: a key is missing or has no such value; all are named.
    """
    if not isinstance(content, Mapping):
        raise InputError(
            f"placement.json must hold an object, not {type(content).__name__}; build the level "
            "again"
        )
    told = {key: value for key, value in content.items() if key not in ("devices", "estimated")}
    if _ESTIMATED in told:
        told["estimated"] = told[_ESTIMATED]
    try:
        # as JSON: only there are lists the tuples that they are, and "12" is still no number
        return _FORM.validate_json(json.dumps(told | {"devices": []}), strict=True)
    except ValidationError as error:
        problems = "; ".join(f"{_key(item['loc'])}: {item['msg']}" for item in error.errors())
        raise InputError(f"placement.json: {problems}; build the level again") from None


def launch_from(
    placement: Mapping[str, Any],
    model_file: str,
    model_name: str,
    architecture: str,
    gguf_context_tokens: int,
    model_folder: str,
) -> Launch:
    """The launch that a level was built with, for launch files that lie elsewhere.

    The GPUs are those of the plan, by their numbers: UUIDs are the builder's own.

    Args:
        placement: the content of placement.json.
        model_file: name of the artifact's first file.
        model_name: what the server calls it.
        gguf_context_tokens: `context_length` of the file.
        model_folder: where the file lies, from the launch files.

    Raises:
        InputError: the placement has not the form of one, or a name cannot be written.
    """
    placed = read_placement(placement)
    try:
        return launch_placed(
            placed, model_name, architecture, model_file, gguf_context_tokens, model_folder
        )
    except ValueError as error:
        raise InputError(f"placement.json cannot be started: {error}") from None


def _key(place: tuple[int | str, ...]) -> str:
    """A field's place in placement.json."""
    return ".".join(_ESTIMATED if part == "estimated" else str(part) for part in place)
