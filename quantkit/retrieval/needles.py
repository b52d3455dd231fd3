"""Needles, the facts that are hidden in the haystack, and the questions about them.

The wording is that of RULER's `niah` tasks (arXiv:2404.06654), so results are comparable.
Paraphrases share no content word with their questions, as NoLiMa proposes (arXiv:2502.05167): a
model that only searches for the words of the question finds nothing.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

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
