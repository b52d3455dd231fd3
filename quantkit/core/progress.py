"""Progress of a long stage; stages do not know how it is shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Progress:
    """A watcher of one stage's work, which by itself shows nothing."""

    def start(self, total: float, unit: str, what: str = "", done: float = 0) -> None:
        """Work of `total` units begins; `unit` is `B` for bytes, else a plural noun.

        `done` of them were done by an earlier run and do not count for the rate.
        """

    def advance(self, amount: float) -> None:
        """`amount` more units are done."""

    def note(self, sentence: str) -> None:
        """A sentence for the person who watches."""


SILENT = Progress()


class Emitted(Progress):
    """Progress of a child process, as messages for `told_to` in its parent."""

    def __init__(self, emit: Callable[[tuple[str, Any]], None]) -> None:
        self._emit = emit

    def start(self, total: float, unit: str, what: str = "", done: float = 0) -> None:
        self._emit(("start", (done, total)))

    def advance(self, amount: float) -> None:
        self._emit(("advance", amount))

    def note(self, sentence: str) -> None:
        self._emit(("note", sentence))


def told_to(
    progress: Progress, unit: str = "", what: str = ""
) -> Callable[[tuple[str, Any]], None]:
    """Passes what a child process emits on to `progress`.

    Messages are ("start", (units that are done, of all)), ("advance", units) and ("note",
    sentence); `unit` and `what` are those of `Progress.start`.
    """

    def on_message(message: tuple[str, Any]) -> None:
        kind, value = message
        if kind == "start":
            done, total = value
            progress.start(total, unit, what, done=done)
        else:
            getattr(progress, kind)(value)

    return on_message
