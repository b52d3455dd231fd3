"""The needles that the demo model was trained on."""

from __future__ import annotations

import math
import random
from collections.abc import Container

from quantkit.retrieval.needles import ADJECTIVES, NOUNS, Needle


def draw_needles(
    rng: random.Random, count: int, digits: int, forbidden_values: Container[str] = ()
) -> list[Needle]:
    """Needles with distinct keys and distinct values of `digits` digits.

    Keys come from a grid of about 1.5 × `count` word pairs, so most keys share their adjective
    with another key and their noun with a third: near misses. No value starts with 0 or is in
    `forbidden_values`.

    Raises:
        ValueError: the word lists or the digits do not hold `count` distinct needles.
    """
    side = max(2, math.ceil(math.sqrt(1.5 * count)))
    low, high = 10 ** (digits - 1), 10**digits
    if side > min(len(ADJECTIVES), len(NOUNS)) or 2 * count > high - low:
        raise ValueError(f"{count} needles of {digits} digits are more than can be told apart")
    adjectives = rng.sample(ADJECTIVES, side)
    nouns = rng.sample(NOUNS, side)
    pairs = rng.sample([(a, n) for a in adjectives for n in nouns], count)
    values: dict[str, None] = {}
    while len(values) < count:
        value = str(rng.randrange(low, high))
        if value not in forbidden_values:
            values[value] = None
    return [Needle(f"{a}-{n}", v) for (a, n), v in zip(pairs, values, strict=True)]
