"""Progress that remembers what it was told."""

from __future__ import annotations


class Watched:
    """Of a task whose amounts have one unit."""

    unit = "B"

    def __init__(self) -> None:
        self.total, self.done, self.notes = 0.0, 0.0, list[str]()

    def start(self, total: float, unit: str, what: str = "", done: float = 0) -> None:
        assert unit == self.unit
        self.total, self.done = total, done

    def advance(self, amount: float) -> None:
        self.done += amount

    def note(self, sentence: str) -> None:
        self.notes.append(sentence)
