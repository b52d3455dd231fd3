"""JSON objects in a checkpoint's files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from quantkit.core.errors import InputError
from quantkit.core.parsing import MOST_JSON_BYTES, bounded_json, read_bounded
from quantkit.formats.stand_ins import refuse_stand_in


def read_json(path: Path, *, optional: bool = False) -> dict[str, Any]:
    """The JSON object in `path`; an empty one where an optional file is absent.

    Raises:
        InputError: it cannot be read, or holds none.
    """
    if optional and not path.is_file():
        return {}
    content = read_bounded(path, MOST_JSON_BYTES, "is this the folder of a checkpoint?")
    return parse_json(content, str(path))


def parse_json(content: bytes, where: str, advice: str = "download it again") -> dict[str, Any]:
    """The JSON object in `content` of the file `where`; `advice` is for a broken one.

    Raises:
        InputError: it is none, or has text that UTF-8 cannot have.
    """
    refuse_stand_in(content, where)
    if not content.strip():
        raise InputError(f"{where} is empty; {advice}")
    value = bounded_json(content, where, advice, foreign=True, nan=False)
    if not isinstance(value, dict):
        raise InputError(f"{where} holds no JSON object; {advice}")
    if b"\\ud" in content.lower() and _half_surrogate(value):
        raise InputError(f"{where} has half of a surrogate pair in a text; {advice}")
    return value


def _half_surrogate(value: object) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False
