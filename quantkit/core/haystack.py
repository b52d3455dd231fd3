"""The haystack: sentences of freely licensed prose, none of them twice."""

from __future__ import annotations

import functools
import lzma
import re
from pathlib import Path

from quantkit.core.errors import InputError
from quantkit.core.paths import HAYSTACK

_BOUNDARY = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]?[A-Z])")
MAX_SENTENCE_CHARACTERS = 600
"""Longer ones are left out, so that hidden sentences can stand in many places."""


@functools.cache
def haystack_text(path: Path | None = None) -> str:
    """The shipped text (State of the Union addresses from 1900 on, CC0), or another file.

    Raises:
        InputError: the file cannot be read as UTF-8 text.
    """
    try:
        if path is None:
            return lzma.decompress(HAYSTACK.read_bytes()).decode("utf-8")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the haystack {path}: {error}") from None


@functools.cache
def sentences(path: Path | None = None) -> tuple[str, ...]:
    """The haystack's sentences in order, up to MAX_SENTENCE_CHARACTERS each."""
    found = []
    for paragraph in haystack_text(path).splitlines():
        for sentence in _BOUNDARY.split(" ".join(paragraph.split())):
            if 0 < len(sentence) <= MAX_SENTENCE_CHARACTERS:
                found.append(sentence)
    return tuple(found)
