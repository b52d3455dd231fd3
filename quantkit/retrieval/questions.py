"""What one seed hides and asks at each length of the ladder."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from quantkit.config.recipe import RetrievalRecipe, Task
from quantkit.core.errors import InputError
from quantkit.retrieval.paraphrases import draw_paraphrases
from quantkit.retrieval.pools import KeyPool, ValuePool
from quantkit.retrieval.probes import HIDING, KEYS, Draw, absent, multikey
from quantkit.retrieval.tasks import Asking, Hidden


def draw_questions(
    recipe: RetrievalRecipe, lengths: int, rng: random.Random, forbidden: set[str]
) -> list[list[Asking]]:
    """By length of the ladder, its questions in the order of the recipe's tasks.

    Args:
        lengths: how many.
        forbidden: values that must not be drawn: numbers of the haystack.

    Raises:
        InputError: there are too few keys, values or paraphrases for all of them.
    """
    keys = recipe.needles + sum(KEYS[name] * count for name, count in recipe.probes.items())
    draw = Draw(
        rng,
        KeyPool(rng, keys * lengths),
        ValuePool(rng, recipe.digits, forbidden),
        draw_paraphrases(rng),
    )
    wanted = recipe.probes.get("paraphrased", 0) * lengths
    if wanted > len(draw.paraphrases):
        raise InputError(
            f"{wanted} paraphrased probes are wanted, {len(draw.paraphrases)} can be told apart; "
            "ask for fewer, or at fewer lengths"
        )
    drawn: dict[tuple[Task, int], list[Asking]] = {}
    for name, hide in HIDING.items():
        count = recipe.probes.get(name, 0)
        for length in range(lengths):
            drawn[name, length] = [hide(draw, index, count) for index in range(count)]
    for length in range(lengths):
        drawn["multikey", length] = [
            multikey(draw, index, recipe.needles) for index in range(recipe.needles)
        ]
    for length in range(lengths):
        hidden = [key for (_, at), some in drawn.items() if at == length for key in grid_keys(some)]
        drawn["absent", length] = [
            absent(draw, index, hidden) for index in range(recipe.probes.get("absent", 0))
        ]
    return [
        [asking for task in recipe.tasks for asking in drawn[task, length]]
        for length in range(lengths)
    ]


def grid_keys(askings: Iterable[Asking]) -> list[str]:
    """The word pairs that their hidden sentences speak of, each once."""
    speaking = (asking for asking in askings if asking.task != "paraphrased")
    return list(dict.fromkeys(hidden.key for asking in speaking for hidden in asking.hidden))


class Lures:
    """Wrong values among what is hidden in one haystack.

    Args:
        hidden: all that stands in it.
    """

    def __init__(self, hidden: Sequence[Hidden]) -> None:
        self._by_word: dict[str, list[Hidden]] = {}
        for some in hidden:
            for word in some.key.split("-") if some.value else ():
                self._by_word.setdefault(word, []).append(some)

    def of(self, asking: Asking, most: int, rng: random.Random) -> tuple[str, ...]:
        """At most `most`: its own, or a random choice of values whose keys share a word with its.

        A key that leads to the answer counts as asked for.
        """
        if asking.lures:
            return asking.lures[:most]
        own = {asking.key, *(hidden.key for hidden in asking.hidden)}
        near = {
            some.value: None
            for key in sorted(own)
            for word in key.split("-")
            for some in self._by_word.get(word, ())
            if some.key not in own
        }
        return tuple(rng.sample(list(near), min(most, len(near))))
