"""JSON objects in a checkpoint's files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from quantkit.core.errors import InputError

MAX_BYTES = 1 << 28
"""The largest tokenizer.json has some 40 MB."""


def read_json(path: Path, *, optional: bool = False) -> dict[str, Any]:
    """The JSON object in `path`, of at most `MAX_BYTES`; empty where an optional file is absent."""
    if optional and not path.is_file():
        return {}
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise InputError(f"{path} has {size} bytes (limit {MAX_BYTES}); download it again")
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}); is this the folder of a checkpoint?"
        ) from error
    return parse_json(content, str(path))


def parse_json(content: bytes, where: str, advice: str = "download it again") -> dict[str, Any]:
    """The JSON object in `content` of the file `where`; `advice` is for a broken one."""
    try:
        value = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not valid JSON ({error}); {advice}") from error
    if not isinstance(value, dict):
        raise InputError(f"{where} holds no JSON object; {advice}")
    return value
