"""Pools of keys and values that give each one only once, so no two sentences are ambiguous."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterable

from quantkit.core.errors import InputError
from quantkit.retrieval.needles import ADJECTIVES, NOUNS

PAIRS_PER_KEY = 1.5
"""Few enough that most keys have near misses, which share a word."""
_RUN = re.compile(r"[0-9]+")
_GROUPED = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")


def numbers_in(text: str, digits: int) -> set[str]:
    """Every string of `digits` digits in `text`, also inside longer ones and across separators."""
    found: set[str] = set()
    for version in (text, _GROUPED.sub("", text)):
        for run in _RUN.findall(version):
            found.update(run[i : i + digits] for i in range(len(run) - digits + 1))
    return found


class KeyPool:
    """ADJECTIVE-NOUN pairs out of a grid that is a little larger than `count`.

    Raises:
        InputError: the word lists hold fewer keys.
    """

    def __init__(self, rng: random.Random, count: int) -> None:
        cells = math.ceil(PAIRS_PER_KEY * count)
        rows = min(max(2, math.ceil(math.sqrt(cells))), len(ADJECTIVES))
        columns = min(max(2, math.ceil(cells / rows)), len(NOUNS))
        if rows * columns < cells:
            most = int(len(ADJECTIVES) * len(NOUNS) / PAIRS_PER_KEY)
            raise InputError(
                f"{count} keys are wanted, {most} can be told apart; ask for fewer needles and "
                "probes, or at fewer lengths"
            )
        self._rng = rng
        adjectives, nouns = rng.sample(ADJECTIVES, rows), rng.sample(NOUNS, columns)
        grid = [(a, n) for a in adjectives for n in nouns]
        rng.shuffle(grid)
        self._free = dict.fromkeys(grid)

    def take(self) -> str:
        """A key that was not taken before."""
        return self._taken(*next(iter(self._free)))

    def take_with_neighbours(self) -> tuple[str, str, str]:
        """A key, one with its adjective, and one with its noun."""
        for adjective, noun in self._free:
            same_adjective = [n for a, n in self._free if a == adjective and n != noun]
            same_noun = [a for a, n in self._free if n == noun and a != adjective]
            if same_adjective and same_noun:
                first = self._taken(adjective, self._rng.choice(same_adjective))
                second = self._taken(self._rng.choice(same_noun), noun)
                return self._taken(adjective, noun), first, second
        raise InputError("too few keys are left that share words; ask for fewer near-miss probes")

    def take_between(self, keys: Iterable[str]) -> str:
        """A key whose two words occur in `keys`, but not together."""
        words = [key.split("-") for key in keys]
        adjectives, nouns = {a for a, _ in words}, {n for _, n in words}
        for adjective, noun in self._free:
            if adjective in adjectives and noun in nouns:
                return self._taken(adjective, noun)
        raise InputError(
            f"no key is left whose words occur in the {len(words)} that are hidden; ask for more "
            "needles, or for fewer absent probes"
        )

    def _taken(self, adjective: str, noun: str) -> str:
        del self._free[adjective, noun]
        return f"{adjective}-{noun}"


class ValuePool:
    """Numbers of `digits` digits, the first one not 0, without those in `forbidden`."""

    def __init__(self, rng: random.Random, digits: int, forbidden: set[str]) -> None:
        self._rng, self._digits = rng, digits
        self._used = {value for value in forbidden if value[0] != "0"}
        self._given = 0

    def take(self) -> str:
        """A value that was not taken before.

        Raises:
            InputError: half of all numbers with so many digits are used.
        """
        low, high = 10 ** (self._digits - 1), 10**self._digits
        if 2 * len(self._used) >= high - low:
            raise InputError(
                f"numbers of {self._digits} digits run out: {self._given} are hidden and "
                f"{len(self._used) - self._given} stand in the haystack; use more digits"
            )
        while (value := str(self._rng.randrange(low, high))) in self._used:
            pass
        self._used.add(value)
        self._given += 1
        return value
