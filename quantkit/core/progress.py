"""Progress of a long stage; stages do not know how it is shown."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

LATE_SECONDS = 3.0
"""What takes longer is told of, even if it mostly takes no time."""


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


class Late(Progress):
    """Tells `progress` of work only once it has taken LATE_SECONDS, with a sentence that says why.

    Several works may start one after the other; their time counts together.
    """

    def __init__(
        self, progress: Progress, sentence: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._progress, self._sentence, self._clock = progress, sentence, clock
        self._begun = clock()
        self._seconds, self._shown, self._said = 0.0, False, False
        self._work: tuple[float, str, str] = (0.0, "", "")
        self._done = 0.0

    def start(self, total: float, unit: str, what: str = "", done: float = 0) -> None:
        self._work, self._done, self._shown = (total, unit, what), done, False
        self._begun = self._clock()

    def advance(self, amount: float) -> None:
        self._done += amount
        if self._shown:
            self._progress.advance(amount)
            return
        now = self._clock()
        self._seconds, self._begun = self._seconds + now - self._begun, now
        if self._seconds >= LATE_SECONDS:
            self._progress.start(*self._work, done=self._done)
            self._shown = True
            if not self._said:
                self.note(self._sentence)
                self._said = True

    def note(self, sentence: str) -> None:
        self._progress.note(sentence)


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
