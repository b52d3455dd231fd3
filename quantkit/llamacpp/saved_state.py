"""Saves the prefilled state of a sequence, so that an interrupted run resumes.

llama.cpp's state files do not name their model. A second file has the hash of everything that the
state depends on, and a state with another hash is not used. The tokens in the state are compared
with the requested ones.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import NonNegativeInt, ValidationError

from quantkit.core.documents import Record
from quantkit.core.errors import EnvironmentFault, InputError
from quantkit.core.files import publish, write_text
from quantkit.core.parsing import own_json
from quantkit.llamacpp.llama import Context, Tokens

SAVED_SHARE = 0.02
"""Largest share of the time that is spent on saving."""


class _About(Record):
    """state.json: a hash of all that the state depends on, and its tokens and bytes."""

    key: str
    tokens: NonNegativeInt
    bytes: int
    facts: dict[str, Any]


class SavedState:
    """The last saved prefix in a folder.

    Args:
        purpose: all that the state depends on besides its tokens: model, settings, versions.
        seconds: least time between two saves.
        note: called once if the state cannot be saved.
    """

    def __init__(
        self, folder: Path, purpose: str, seconds: float, note: Callable[[str], None]
    ) -> None:
        self._state, self._about = folder / "state.bin", folder / "state.json"
        self._key = hashlib.sha256(purpose.encode()).hexdigest()
        self._seconds, self._note = seconds, note
        self._last, self._cost = time.monotonic(), 0.0
        self._gave_up = False

    def position(self, at_most: int) -> int:
        """Length of the saved prefix in tokens according to its description; 0 for none."""
        about = self._read(at_most)
        return 0 if about is None else about.tokens

    def load(self, context: Context, tokens: Tokens) -> tuple[int, dict[str, Any]]:
        """Read the saved state into sequence 0 if it is of a prefix of `tokens`: (length, facts).

        The context must be empty; if nothing fits it stays empty, and the result is (0, {}).
        """
        about = self._read(len(tokens))
        if about is None:
            return 0, {}
        found = context.load(0, self._state, len(tokens))
        if found is None or not np.array_equal(found, tokens[: len(found)]):
            context.clear()
            return 0, {}
        return len(found), about.facts

    def _read(self, at_most: int) -> _About | None:
        """The description of a saved prefix of at most so many tokens."""
        try:
            about = _About.model_validate(own_json(self._about))
            same = (about.key, about.bytes) == (self._key, self._state.stat().st_size)
        except (OSError, InputError, ValidationError):
            return None
        return about if same and about.tokens <= at_most else None

    def save(self, context: Context, tokens: Tokens, facts: dict[str, Any]) -> None:
        """Save sequence 0, the state after `tokens`, if it is time; `load` returns `facts`.

        The last file stays until the new one is complete. If the state cannot be saved, the run
        goes on without.
        """
        # less often where saving is slow
        due = max(self._seconds, self._cost / SAVED_SHARE) if self._seconds else 0.0
        if self._gave_up or time.monotonic() - self._last < due:
            return
        began = time.monotonic()
        growing = self._state.with_name(self._state.name + ".partial")
        try:
            context.save(0, tokens, growing)
            self._about.unlink(missing_ok=True)
            publish(growing, self._state)
            size = self._state.stat().st_size
            about = _About(key=self._key, tokens=len(tokens), bytes=size, facts=facts)
            write_text(self._about, about.model_dump_json())
        except (EnvironmentFault, OSError) as error:
            self._gave_up = True
            growing.unlink(missing_ok=True)
            self._note(f"the prefill cannot be saved ({error}); an interrupted run starts it again")
        self._last = time.monotonic()
        self._cost = self._last - began
