"""Needles, the facts that are hidden in the haystack, and the questions about them.

Pools of keys and values give each one only once, so no two sentences are ambiguous.

The wording is that of RULER's `niah` tasks (arXiv:2404.06654), so results are comparable.
Paraphrases share no content word with their questions, as NoLiMa proposes (arXiv:2502.05167): a
model that only searches for the words of the question finds nothing.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass

from quantkit.core.errors import InputError
from quantkit.core.paths import PARAPHRASES

ADJECTIVES = tuple(
    "amber ancient autumn bitter black blue bold brave bright broken calm clever cold copper "
    "coral crimson curious dark deep distant dusty early eager empty fading fierce foggy frozen "
    "gentle golden grand green grey hidden hollow humble icy ivory jolly lively lonely lucky "
    "misty narrow noble olive pale patient plain polite proud purple quick quiet rapid red rough "
    "round royal rusty scarlet secret sharp silent silver simple sleepy smooth solemn spring "
    "steady stormy summer sunny swift tall tender twilight velvet violet wandering warm white "
    "wild winter wise yellow young".split()
)
NOUNS = tuple(
    "anchor apple badger basket beacon bell bird boat branch bridge brook candle canyon castle "
    "cedar cherry cliff cloud comet cottage crane creek crown desert dew dolphin dove dream eagle "
    "elm falcon feather fern field fire fish flower forest fox garden gate glacier grove hammer "
    "harbor hawk hill horse island kettle lake lantern leaf lion lotus maple meadow mirror moon "
    "moss mountain oak ocean orchard otter owl paper pearl pine planet pond rain raven ribbon "
    "river rose sail sea shadow shell sky snow sparrow star stone sun sunset thunder tiger tower "
    "valley violin water wave willow wind wolf".split()
)

INSTRUCTION = (
    "Some special magic numbers are hidden within the following text. Make sure to memorize "
    "them. I will quiz you about the numbers afterwards."
)
SINGLE_INSTRUCTION = (
    "A special magic number is hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the number afterwards."
)
"""For prompts with one needle: RULER's `niah_single`."""
PAIRS_PER_KEY = 1.5
"""Few enough that most keys have near misses, which share a word."""
_RUN = re.compile(r"[0-9]+")
_GROUPED = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")


@dataclass(frozen=True)
class Needle:
    """One hidden fact: `key` is an adjective-noun pair, `value` a string of decimal digits."""

    key: str
    value: str

    @property
    def sentence(self) -> str:
        return f"One of the special magic numbers for {self.key} is: {self.value}."

    @property
    def question(self) -> str:
        return (
            f"What is the special magic number for {self.key} mentioned in the provided text? "
            "Answer with the number only."
        )


@dataclass(frozen=True)
class Paraphrase:
    """A fact about a person whose needle and question use different words.

    Attributes:
        key: PERSON-FACT, both words of the needle.
        told: the needle, with {} in place of the value.
    """

    key: str
    told: str
    asked: str

    def sentence(self, value: str) -> str:
        return self.told.format(value)

    @property
    def question(self) -> str:
        return f"{self.asked} Answer with the number only."


def draw_paraphrases(rng: random.Random) -> list[Paraphrase]:
    """All of them, in an order in which no person recurs before everybody has occurred."""
    first, second = PARAPHRASES.read_text(encoding="utf-8").strip().split("\n\n")
    people = [line.split(": ") for line in first.splitlines()]
    facts = [line.split(": ", 1) for line in second.splitlines()]
    rng.shuffle(people)
    rng.shuffle(facts)
    pairs = []
    for turn in range(len(facts)):
        for place, (person, description) in enumerate(people):
            fact, wording = facts[(place + turn) % len(facts)]
            told, asked = wording.split(" | ")
            told, asked = told.format(person, "{}"), asked.format(description)
            pairs.append(Paraphrase(f"{person}-{fact}", told, asked))
    return pairs


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
