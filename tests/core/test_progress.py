"""Progress that is told late."""

from __future__ import annotations

import pytest

from quantkit.core.progress import LATE_SECONDS, Late, Progress


class Heard(Progress):
    """What a watcher was told, in order."""

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []

    def start(self, total: float, unit: str, what: str = "", done: float = 0) -> None:
        self.told.append((total, unit, what, done))

    def advance(self, amount: float) -> None:
        self.told.append((amount,))

    def note(self, sentence: str) -> None:
        self.told.append((sentence,))


@pytest.mark.parametrize("works", [1, 4])
def test_work_is_told_of_once_it_takes_long(works: int) -> None:
    heard, now = Heard(), 0.0
    late = Late(heard, "why", clock=lambda: now)
    for _ in range(works):
        late.start(100, "steps", "looking")
        now += LATE_SECONDS / works - 0.1
        late.advance(5)
        now += 60 if works > 1 else 0  # between two works
    assert not heard.told
    late.start(100, "steps", "looking")
    late.advance(5)
    assert not heard.told
    now += 0.1 * works
    late.advance(6)
    late.advance(7)
    assert heard.told == [(100, "steps", "looking", 11), ("why",), (7,)]
    late.start(50, "steps")
    late.advance(8)
    late.advance(9)
    assert heard.told[3:] == [(50, "steps", "", 8), (9,)]
