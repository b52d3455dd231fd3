"""The questions of one seed: what each task hides and asks, and which answers would be wrong.

multi-value is worded as RULER's `niah_multivalue` (arXiv:2404.06654).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from quantkit.config.recipe import RetrievalRecipe, Task
from quantkit.core.errors import InputError
from quantkit.retrieval.needles import KeyPool, Needle, Paraphrase, ValuePool, draw_paraphrases

VALUES_OF_A_KEY = 4
"""As many as RULER hides for `niah_multivalue`."""
MORE_VALUE_TOKENS = 24
"""At most, for each further value of an answer: the rest of a long limit is for thinking, which is
done once."""


@dataclass(frozen=True)
class Stratum:
    """Where a sentence is wanted, as shares of the haystack of its length, 0 to 1.

    Attributes:
        until: the latest place, as far as sentence boundaries allow.
    """

    at: float
    until: float = 1.0


@dataclass(frozen=True)
class Hidden:
    """One sentence in the haystack.

    Attributes:
        key: its subject, a pair of words, or PERSON-FACT.
        value: empty where the sentence gives none.
    """

    sentence: str
    key: str
    value: str
    place: Stratum


@dataclass(frozen=True)
class TaskQuestion:
    """One question, and what is hidden for it.

    Attributes:
        index, values: as in `Question`.
        hidden: in the order of their places; equal places keep this order.
        answered_by: indices into `hidden` of the sentences with the answer.
        lures: wrong values of its own, the likeliest first.
    """

    task: Task
    index: int
    key: str
    question: str
    values: tuple[str, ...] = ()
    hidden: tuple[Hidden, ...] = ()
    answered_by: tuple[int, ...] = ()
    lures: tuple[str, ...] = ()

    def answer_limit(self, answer_tokens: int) -> int:
        """Tokens of an answer with all values; `answer_tokens` is the limit for one."""
        return answer_tokens + max(len(self.values) - 1, 0) * min(answer_tokens, MORE_VALUE_TOKENS)


@dataclass(frozen=True)
class _Draw:
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
        needle = Needle(key, self.values.take())
        return Hidden(needle.sentence, key, needle.value, place)


def _multikey(draw: _Draw, index: int, count: int) -> TaskQuestion:
    """The main task: one needle among many."""
    needle = Needle(draw.keys.take(), draw.values.take())
    hidden = Hidden(needle.sentence, needle.key, needle.value, draw.stratum(index, count))
    values = (needle.value,)
    return TaskQuestion("multikey", index, needle.key, needle.question, values, (hidden,), (0,))


def _near_miss(draw: _Draw, index: int, count: int) -> TaskQuestion:
    """The two closest keys are hidden within a few sentences of the one in the question."""
    place = draw.stratum(index, count)
    asked, *others = draw.keys.take_with_neighbours()
    right, *wrong = facts = [draw.fact(key, place) for key in (asked, *others)]
    order = draw.rng.sample(range(len(facts)), len(facts))
    return TaskQuestion(
        "near-miss", index, asked, Needle(asked, "").question, (right.value,),
        tuple(facts[i] for i in order), (order.index(0),), tuple(fact.value for fact in wrong),
    )  # fmt: skip


def _absent(draw: _Draw, index: int, hidden_keys: list[str]) -> TaskQuestion:
    """A key that is hidden nowhere, although both of its words are; "none" is right."""
    key = draw.keys.take_between(hidden_keys)
    question = f"{Needle(key, '').question} If it is not mentioned, answer: none."
    return TaskQuestion("absent", index, key, question)


def _updated(draw: _Draw, index: int, count: int) -> TaskQuestion:
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
    return TaskQuestion("updated", index, key, question, (value,), (old, new), (1,), (old.value,))


def _multi_value(draw: _Draw, index: int, count: int) -> TaskQuestion:
    """One key with several values; the answer needs all of them."""
    key = draw.keys.take()
    places = [draw.stratum(i, VALUES_OF_A_KEY) for i in range(VALUES_OF_A_KEY)]
    facts = tuple(draw.fact(key, place) for place in places)
    question = (
        f"What are all the special magic numbers for {key} mentioned in the provided text? "
        "Answer with the numbers only."
    )
    values = tuple(fact.value for fact in facts)
    answering = tuple(range(len(facts)))
    return TaskQuestion("multi-value", index, key, question, values, facts, answering)


def _two_hop(draw: _Draw, index: int, count: int) -> TaskQuestion:
    """One sentence says that a key has the number of another key, which another sentence gives."""
    answering, linking = draw.stratum(index, count), Stratum(draw.rng.random())
    asked, other = draw.keys.take(), draw.keys.take()
    fact = draw.fact(other, answering)
    sentence = f"The special magic number for {asked} is the same as the one for {other}."
    link = Hidden(sentence, asked, "", linking)
    hidden = (fact, link) if answering.at <= linking.at else (link, fact)
    question, place = Needle(asked, "").question, hidden.index(fact)
    return TaskQuestion("two-hop", index, asked, question, (fact.value,), hidden, (place,))


def _paraphrased(draw: _Draw, index: int, count: int) -> TaskQuestion:
    """Needle and question have the same meaning in different words."""
    pair = draw.paraphrases.pop()
    value = draw.values.take()
    hidden = Hidden(pair.sentence(value), pair.key, value, draw.stratum(index, count))
    return TaskQuestion("paraphrased", index, pair.key, pair.question, (value,), (hidden,), (0,))


_HIDING: dict[Task, tuple[int, Callable[[_Draw, int, int], TaskQuestion]]] = {
    "near-miss": (3, _near_miss),
    "updated": (1, _updated),
    "multi-value": (1, _multi_value),
    "two-hop": (2, _two_hop),
    "paraphrased": (0, _paraphrased),
    "multikey": (1, _multikey),
}
"""The tasks that hide something: keys that a question takes, and how it is drawn. In the order of
drawing: near misses need the most free keys."""


def draw_questions(
    recipe: RetrievalRecipe, lengths: int, rng: random.Random, forbidden: set[str]
) -> list[list[TaskQuestion]]:
    """For each length of the ladder its questions, in the order of the recipe's tasks.

    Args:
        lengths: their number.
        forbidden: values that must not be drawn: numbers of the haystack.

    Raises:
        InputError: there are too few keys, values or paraphrases for all of them.
    """
    counts = {task: recipe.trials(task) // len(recipe.seeds) for task in recipe.tasks}
    keys = counts.get("absent", 0)
    keys += sum(counts.get(task, 0) * taken for task, (taken, _) in _HIDING.items())
    pool, values = KeyPool(rng, keys * lengths), ValuePool(rng, recipe.digits, forbidden)
    draw = _Draw(rng, pool, values, draw_paraphrases(rng))
    wanted = counts.get("paraphrased", 0) * lengths
    if wanted > len(draw.paraphrases):
        raise InputError(
            f"{wanted} paraphrased probes are wanted, {len(draw.paraphrases)} can be told apart; "
            "ask for fewer, or at fewer lengths"
        )
    drawn: list[dict[Task, list[TaskQuestion]]] = [{} for _ in range(lengths)]
    for task, (_, hide) in _HIDING.items():
        count = counts.get(task, 0)
        for some in drawn:
            some[task] = [hide(draw, index, count) for index in range(count)]
    for some in drawn:
        hidden = grid_keys(question for questions in some.values() for question in questions)
        some["absent"] = [_absent(draw, i, hidden) for i in range(counts.get("absent", 0))]
    return [[question for task in recipe.tasks for question in some[task]] for some in drawn]


def grid_keys(questions: Iterable[TaskQuestion]) -> list[str]:
    """The word pairs that their hidden sentences are about, each once."""
    by_words = (question for question in questions if question.task != "paraphrased")
    return list(dict.fromkeys(hidden.key for question in by_words for hidden in question.hidden))


def values_by_word(hidden: Iterable[Hidden]) -> dict[str, list[Hidden]]:
    """Word of a key → the sentences with a value whose keys contain it."""
    by_word: dict[str, list[Hidden]] = {}
    for one in hidden:
        for word in one.key.split("-") if one.value else ():
            by_word.setdefault(word, []).append(one)
    return by_word


def draw_lures(
    question: TaskQuestion, by_word: Mapping[str, Sequence[Hidden]], most: int, rng: random.Random
) -> tuple[str, ...]:
    """At most `most` wrong values: its own, or random ones of keys that share a word with its keys.

    The keys of all its sentences count, also of one that only leads to the answer.

    Args:
        by_word: of all that is hidden in its haystack.
    """
    if question.lures:
        return question.lures[:most]
    own = {question.key, *(hidden.key for hidden in question.hidden)}
    words = [word for key in sorted(own) for word in key.split("-")]
    near = dict.fromkeys(
        one.value for word in words for one in by_word.get(word, ()) if one.key not in own
    )
    return tuple(rng.sample(list(near), min(most, len(near))))
