"""Progress that records what it is told, and may end the run."""

from __future__ import annotations


class Killed(Exception):
    """Raised where a signal would end the run."""


class Recorder:
    """Progress that records everything.

    Args:
        kill_after: number of advances after which `advance` raises Killed.
    """

    unit: str | None = None

    def __init__(self, kill_after: int | None = None) -> None:
        self.total, self.done, self.notes = 0.0, 0.0, list[str]()
        self.starts, self.advances = list[tuple[float, float]](), 0
        self._kill_after = kill_after

    def start(self, total: float, unit: str, what: str = "", done: float = 0) -> None:
        assert self.unit in (None, unit)
        self.total, self.done = total, done
        self.starts.append((done, total))

    def advance(self, amount: float) -> None:
        self.done += amount
        self.advances += 1
        if self.advances == self._kill_after:
            raise Killed

    def note(self, sentence: str) -> None:
        self.notes.append(sentence)


class Watched(Recorder):
    """Of a task whose amounts are bytes, or have the unit of a subclass."""

    unit = "B"
