"""Harder questions, each a named task: what is hidden for it, what is asked, what would be wrong.

The wording of multi-value follows RULER's `niah_multivalue` (arXiv:2404.06654); paraphrased needles
share no content word with their questions, as NoLiMa argues (arXiv:2502.05167).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from quantkit.config.recipe import Probe
from quantkit.retrieval.needles import Needle
from quantkit.retrieval.paraphrases import Paraphrase
from quantkit.retrieval.pools import KeyPool, ValuePool
from quantkit.retrieval.tasks import Asking, Hidden, Stratum, needle

VALUES_OF_A_KEY = 4
"""As many as RULER hides for `niah_multivalue`."""
KEYS: dict[Probe, int] = {
    "near-miss": 3, "absent": 1, "updated": 1, "multi-value": 1, "two-hop": 2, "paraphrased": 0,
}  # fmt: skip
"""Keys of the grid that one question of a probe takes."""


@dataclass(frozen=True)
class Draw:
    """What the questions of one seed are drawn from."""

    rng: random.Random
    keys: KeyPool
    values: ValuePool
    paraphrases: list[Paraphrase]

    def stratum(self, index: int, count: int) -> Stratum:
        """A random place in one of `count` equal parts."""
        return Stratum((index + self.rng.random()) / count, (index + 1) / count)

    def fact(self, key: str, place: Stratum) -> Hidden:
        """A fresh value for `key`."""
        told = Needle(key, self.values.take())
        return Hidden(told.sentence, key, told.value, place)


def near_miss(draw: Draw, index: int, count: int) -> Asking:
    """The two closest keys stand within a few sentences of the one that is asked for."""
    place = draw.stratum(index, count)
    asked, *others = draw.keys.take_with_neighbours()
    facts = [draw.fact(key, place) for key in (asked, *others)]
    order = draw.rng.sample(range(len(facts)), len(facts))
    return Asking(
        "near-miss",
        index,
        asked,
        Needle(asked, "").question,
        (facts[0].value,),
        tuple(fact.value for fact in facts[1:]),
        tuple(facts[i] for i in order),
        (order.index(0),),
    )


def absent(draw: Draw, index: int, hidden_keys: list[str]) -> Asking:
    """A key that is hidden nowhere, though both of its words are; it may be declined."""
    key = draw.keys.take_between(hidden_keys)
    question = f"{Needle(key, '').question} If it is not mentioned, answer: none."
    return Asking("absent", index, key, question, (), (), (), ())


def updated(draw: Draw, index: int, count: int) -> Asking:
    """A later sentence changes the value that an earlier one gives."""
    later = draw.stratum(index, count)
    key = draw.keys.take()
    old = draw.fact(key, Stratum(later.at * draw.rng.random(), later.until))
    value = draw.values.take()
    sentence = f"The special magic number for {key} has changed: it is now {value}."
    question = (
        f"What is the current special magic number for {key} mentioned in the provided text? "
        "Answer with the number only."
    )
    new = Hidden(sentence, key, value, later)
    return Asking("updated", index, key, question, (value,), (old.value,), (old, new), (1,))


def multi_value(draw: Draw, index: int, count: int) -> Asking:
    """One key with several values, all of them wanted."""
    key = draw.keys.take()
    places = [draw.stratum(i, VALUES_OF_A_KEY) for i in range(VALUES_OF_A_KEY)]
    facts = tuple(draw.fact(key, place) for place in places)
    question = (
        f"What are all the special magic numbers for {key} mentioned in the provided text? "
        "Answer with the numbers only."
    )
    values = tuple(fact.value for fact in facts)
    everywhere = tuple(range(VALUES_OF_A_KEY))
    return Asking("multi-value", index, key, question, values, (), facts, everywhere)


def two_hop(draw: Draw, index: int, count: int) -> Asking:
    """The number of one key is said to be that of another, which stands elsewhere."""
    answering, linking = draw.stratum(index, count), Stratum(draw.rng.random())
    asked, other = draw.keys.take(), draw.keys.take()
    fact = draw.fact(other, answering)
    sentence = f"The special magic number for {asked} is the same as the one for {other}."
    link = Hidden(sentence, asked, "", linking)
    hidden = (fact, link) if answering.at <= linking.at else (link, fact)
    question = Needle(asked, "").question
    place = hidden.index(fact)
    return Asking("two-hop", index, asked, question, (fact.value,), (), hidden, (place,))


def paraphrased(draw: Draw, index: int, count: int) -> Asking:
    """Needle and question say the same in other words."""
    pair = draw.paraphrases.pop()
    value = draw.values.take()
    hidden = Hidden(pair.sentence(value), pair.key, value, draw.stratum(index, count))
    return Asking("paraphrased", index, pair.key, pair.question, (value,), (), (hidden,), (0,))


HIDING: dict[Probe, Callable[[Draw, int, int], Asking]] = {
    "near-miss": near_miss,
    "updated": updated,
    "multi-value": multi_value,
    "two-hop": two_hop,
    "paraphrased": paraphrased,
}
"""Probes that hide something, in the order of drawing: near misses need the most free keys."""


def multikey(draw: Draw, index: int, count: int) -> Asking:
    """The main task: one needle among many."""
    return needle("multikey", index, draw.keys.take(), draw.values.take(),
                  draw.stratum(index, count))  # fmt: skip
