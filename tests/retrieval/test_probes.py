"""Probes: what is hidden for them, what is asked, and what would be wrong."""

from __future__ import annotations

import random
import re

import pytest
from small_prompts import BY_CHARACTER, FRAME, build, rung, text_of

from quantkit.retrieval.branches import Branch, Prompts
from quantkit.retrieval.needles import draw_paraphrases

LENGTH = 60_000
STOP_WORDS = set(
    "a an and answer as at by can did does for from go had has high how in into is it large many "
    "mentioned much number of on only or put that the this to was were what where which who whose "
    "with within you".split()
)


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    return build()


def asked(prompts: Prompts, branch: Branch) -> tuple[str, str]:
    """The haystack and the question."""
    text = text_of(BY_CHARACTER, prompts, branch).removesuffix(FRAME.after)
    haystack, _, question = text.removeprefix(FRAME.before).rpartition(FRAME.between)
    return haystack, question


def told(haystack: str, key: str) -> list[str]:
    return re.findall(
        rf"[^.]*\b{key} (?:is: \d+|has changed: it is now \d+|is the same as [^.]*)\.", haystack
    )


def test_near_misses_stand_beside(prompts: Prompts) -> None:
    for branch in rung(prompts, LENGTH, "near-miss"):
        haystack, question = asked(prompts, branch)
        key, (value,) = branch.question.key, branch.question.values
        assert f"The special magic number for {key}" not in question
        assert f"the special magic number for {key} mentioned" in question
        pattern = r"special magic numbers for ([a-z-]+) is: (\d+)\."
        facts = {m[2]: (m[1], m.start()) for m in re.finditer(pattern, haystack)}
        assert facts[value][0] == key
        adjective, noun = key.split("-")
        others = [facts[lure][0].split("-") for lure in branch.question.lures]
        assert others[0][0] == adjective != others[1][0]
        assert others[1][1] == noun != others[0][1]
        for lure in branch.question.lures:
            assert abs(facts[lure][1] - facts[value][1]) < 1500  # a few sentences


def test_absent_keys_are_nowhere(prompts: Prompts) -> None:
    longest, _ = asked(prompts, rung(prompts, LENGTH)[0])
    for length in (20_000, 30_000, 60_000):
        for branch in rung(prompts, length, "absent"):
            haystack, question = asked(prompts, branch)
            adjective, noun = branch.question.key.split("-")
            assert f"{adjective}-{noun}" not in longest
            assert f"for {adjective}-" in haystack
            assert re.search(rf"-{noun} (?:is|has)", haystack)
            assert question.endswith("If it is not mentioned, answer: none.")
            assert branch.question.values == branch.candidates == ()


def test_update_comes_later(prompts: Prompts) -> None:
    for branch in rung(prompts, LENGTH, "updated"):
        haystack, question = asked(prompts, branch)
        key, (new,), (old,) = branch.question.key, branch.question.values, branch.question.lures
        first, second = told(haystack, key)
        assert first.endswith(f"numbers for {key} is: {old}.")
        assert second.endswith(f"for {key} has changed: it is now {new}.")
        assert "current special magic number" in question


def test_every_value_is_wanted(prompts: Prompts) -> None:
    for branch in rung(prompts, LENGTH, "multi-value"):
        haystack, question = asked(prompts, branch)
        key, values = branch.question.key, branch.question.values
        sentences = told(haystack, key)
        assert [sentence.split()[-1].rstrip(".") for sentence in sentences] == list(values)
        places = [haystack.index(value) / len(haystack) for value in values]
        assert [int(4 * place) for place in places] == [0, 1, 2, 3]
        assert question.startswith(f"What are all the special magic numbers for {key} mentioned")


def test_two_hops_lead_to_the_value(prompts: Prompts) -> None:
    orders = set()
    for length in (20_000, 30_000, 60_000):
        for branch in rung(prompts, length, "two-hop"):
            haystack, question = asked(prompts, branch)
            key, (value,) = branch.question.key, branch.question.values
            (link,) = told(haystack, key)
            other = link.split()[-1].rstrip(".")
            facts = re.findall(rf"numbers for {other} is: (\d+)", haystack)
            assert facts == [value]
            assert other not in question
            orders.add(haystack.index(link) < haystack.index(value))
    assert orders == {True, False}


def test_paraphrases_are_asked_in_other_words(prompts: Prompts) -> None:
    for branch in rung(prompts, LENGTH, "paraphrased"):
        haystack, question = asked(prompts, branch)
        (value,) = branch.question.values
        (sentence,) = re.findall(rf"[^.]*\b{value}\b[^.]*\.", haystack)
        person = branch.question.key.split("-")[0]
        assert person in sentence
        assert person not in question


def test_paraphrases_share_no_content_word() -> None:
    pairs = draw_paraphrases(random.Random(1))
    assert len({pair.key for pair in pairs}) == len(pairs) >= 60
    assert len({pair.asked for pair in pairs}) == len({pair.told for pair in pairs}) == len(pairs)
    assert len({pair.key.split("-")[0] for pair in pairs[:70]}) == 70
    for pair in pairs:
        sentence = pair.sentence("48213")
        assert sentence.count("48213") == 1
        # the first four letters, so that other forms of a word count as the word
        told, wanted = (
            {word[:4] for word in re.findall(r"[a-z]+", text.lower()) if word not in STOP_WORDS}
            for text in (sentence, pair.question)
        )
        assert not told & wanted, (sentence, pair.question)
