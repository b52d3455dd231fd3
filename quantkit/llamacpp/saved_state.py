"""A prefix that survives a kill: llama.cpp's state of a sequence, and what it is the state of.

llama.cpp's own files do not name their model. Beside each lies a small one with the hash of
everything that the state depends on; a state of anything else is not taken. The tokens that it
stands after are in it, and are compared with those that are wanted.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.core.errors import EnvironmentFault
from quantkit.core.files import publish, write_json
from quantkit.llamacpp.llama import Context, Tokens

SAVED_SHARE = 0.02
"""Of the time, at most, that goes into saving."""


class SavedState:
    """The last saved prefix in a folder.

    Args:
        purpose: all that the state depends on, but for its tokens: model, settings, versions.
        seconds: between two savings, at least.
        note: is told, once, when there is no room to save.
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
        """Tokens that the saved prefix seems to have, without reading it; 0 for none."""
        about = self._read()
        return 0 if about is None or about["tokens"] > at_most else int(about["tokens"])

    def load(self, context: Context, wanted: Tokens) -> tuple[int, dict[str, Any]]:
        """Read the saved prefix into sequence 0 if it is one of `wanted`: (its length, its facts).

        The context must be empty, and stays so where nothing fits: (0, {}).
        """
        about = self._read()
        if about is None or about["tokens"] > len(wanted):
            return 0, {}
        found = context.load(0, self._state, len(wanted))
        if found is None or not np.array_equal(found, wanted[: len(found)]):
            context.clear()
            return 0, {}
        return len(found), about["facts"]

    def _read(self) -> dict[str, Any] | None:
        """What lies beside the state; None where that is of something else, or not whole."""
        try:
            about: dict[str, Any] = json.loads(self._about.read_text(encoding="utf-8"))
            same = about["key"] == self._key and about["bytes"] == self._state.stat().st_size
            return about if same and about["tokens"] >= 0 and "facts" in about else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def save(self, context: Context, tokens: Tokens, facts: dict[str, Any]) -> None:
        """Save sequence 0, which stands after `tokens`, if it is time; `facts` come back on load.

        The file before it stays until the new one is whole. A disk without room costs the
        resumption, not the run.
        """
        if self._gave_up or time.monotonic() - self._last < self._due:
            return
        began = time.monotonic()
        growing = self._state.with_name(self._state.name + ".partial")
        try:
            context.save(0, tokens, growing)
            self._about.unlink(missing_ok=True)
            publish(growing, self._state)
            size = self._state.stat().st_size
            about = {"key": self._key, "tokens": len(tokens), "bytes": size, "facts": facts}
            write_json(self._about, about)
        except (EnvironmentFault, OSError) as error:
            self._gave_up = True
            growing.unlink(missing_ok=True)
            self._note(f"the prefill is not saved ({error}): after a kill it begins anew")
        self._last = time.monotonic()
        self._cost = self._last - began

    @property
    def _due(self) -> float:
        """Seconds between two savings: more where saving is slow."""
        return max(self._seconds, self._cost / SAVED_SHARE) if self._seconds else 0.0
