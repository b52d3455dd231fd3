"""One-pass prompts: each is exactly the prompt that its question would have on its own."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_prompts import (
    ALL_PROBES,
    BY_CHARACTER,
    BY_WORDS,
    CHATML,
    FRAME,
    SENTENCES,
    Tokenizer,
    build,
    context,
    one_of_all,
    rung,
    text_of,
    whole,
)

from quantkit.config.recipe import RetrievalRecipe
from quantkit.core.errors import InputError
from quantkit.retrieval.branches import Frame, frame_of
from quantkit.retrieval.needles import INSTRUCTION
from quantkit.retrieval.prompts import prompts_of

LENGTHS = (20_000, 30_000, 60_000)
HIDDEN = re.compile(
    r"(?:One of the special magic numbers for [a-z-]+ is: [0-9]{5}\."
    r"|The special magic number for [a-z-]+ has changed: it is now [0-9]{5}\."
    r"|The special magic number for [a-z-]+ is the same as the one for [a-z-]+\."
    r"|(?:The|You) [^.]*[0-9]{5}[^.]*\.) ?"
)
HAYSTACK = " ".join(SENTENCES)
both_modes = pytest.mark.parametrize(
    "changes", [{}, {"mode": "classic", "context_tokens": (6_000, 20_000)}]
)


@one_of_all
@pytest.mark.parametrize("seed", [3, 4])
def test_every_whole_prompt_is_the_templates_own(tokenizer: Tokenizer, seed: int) -> None:
    prompts = build(tokenizer, seed)
    assert len(prompts.branches) == 3 * (12 + sum(ALL_PROBES.values()))
    for length in LENGTHS:
        shared, branches = context(tokenizer, prompts, length), rung(prompts, length)
        left = [length - b.prompt_tokens - b.question.answer_tokens for b in branches]
        assert 0 <= min(left) <= tokenizer.word_tokens
        for branch in branches:
            text = text_of(tokenizer, prompts, branch)
            assert np.array_equal(whole(prompts, branch), tokenizer.encode(text))
            assert text.startswith(f"<|im_start|>user\n{INSTRUCTION}\n\n{shared}\n\n")
            assert text.endswith("<|im_end|>\n<|im_start|>assistant\n<think></think>")
            question = text.removeprefix(FRAME.before + shared)
            if branch.question.task != "paraphrased":
                assert question.count(branch.question.key) == 1


@one_of_all
def test_branches_leave_the_stream_as_late_as_can_be(tokenizer: Tokenizer) -> None:
    prompts = build(tokenizer)
    leaving = [branch.leaves_at for branch in prompts.branches]
    assert leaving == sorted(leaving)
    assert leaving[-1] == len(prompts.stream)
    for length in LENGTHS:
        branches = rung(prompts, length)
        (at,) = {branch.leaves_at for branch in branches}
        following = {int(branch.tokens[0]) for branch in branches}
        assert len(following | {int(token) for token in prompts.stream[at : at + 1]}) > 1
        # the haystack is decoded once: what is left is little more than the question
        assert all(branch.haystack_tokens == 0 for branch in branches)
        assert max(len(branch.tokens) for branch in branches) < 300
    assert prompts.prefill_tokens == len(prompts.stream)
    assert prompts.question_tokens == sum(len(branch.tokens) for branch in prompts.branches)
    assert prompts.classic_tokens == sum(len(whole(prompts, b)) for b in prompts.branches)


@one_of_all
def test_cuts_are_at_words_of_the_haystack(tokenizer: Tokenizer) -> None:
    prompts = build(tokenizer)
    texts = [context(tokenizer, prompts, length) for length in LENGTHS]
    for text, longer in itertools.pairwise(texts):
        assert longer.startswith(text + " ")
    for text in texts:
        # without the hidden sentences it is the haystack, from some sentence on to some word
        plain = HIDDEN.sub("", text)
        assert not re.search("magic number", plain)
        assert f" {plain} " in f" {HAYSTACK} {HAYSTACK} "


@one_of_all
def test_values_keys_and_depths_are_those_of_the_text(tokenizer: Tokenizer) -> None:
    prompts = build(tokenizer)
    values: list[str] = []
    for length in LENGTHS:
        text = context(tokenizer, prompts, length)
        told = re.findall(r"special magic numbers? for ([a-z]+-[a-z]+) (?:is|has)", text)
        assert prompts.keys[length] == len(set(told))
        for question in (branch.question for branch in rung(prompts, length)):
            assert all(text.count(value) == 1 for value in (*question.values, *question.lures))
            values += question.values
            places = [text.index(value) / len(text) for value in question.values]
            depth = sum(places) / len(places) if places else 0.5
            assert abs(question.depth - depth) < (0.03 if places else 1e-9)
    assert len(values) == len(set(values))
    assert not any(value in HAYSTACK for value in values)
    assert prompts.keys[60_000] == 3 * (12 + 3 * 3 + 3 + 2 + 2 * 3)


@given(seed=st.integers(0, 10**6), needles=st.integers(1, 60))
@settings(max_examples=20)
def test_depths_are_stratified(seed: int, needles: int) -> None:
    prompts = build(BY_CHARACTER, seed, needles=needles, probes={})
    for length in LENGTHS:
        depths = [branch.question.depth for branch in rung(prompts, length)]
        assert depths == sorted(depths)
        near = 700 / length  # a sentence is 600 characters long at most
        for index, depth in enumerate(depths):
            assert index / needles - near <= depth <= (index + 1) / needles


def test_keys_of_different_questions_differ() -> None:
    prompts = build(probes=ALL_PROBES | {"near-miss": 9, "two-hop": 9})
    keys = [branch.question.key for branch in prompts.branches]
    assert len(set(keys)) == len(keys)


def test_lures_are_hidden_near_misses() -> None:
    prompts = build(near_misses=2)
    for length in LENGTHS:
        text = context(BY_CHARACTER, prompts, length)
        found = re.findall(r"for ([a-z]+-[a-z]+) (?:is: |has changed: it is now )(\d+)", text)
        told = [(value, key) for key, value in found]
        for branch in rung(prompts, length, "multikey"):
            key, lures = branch.question.key, branch.question.lures
            words = set(key.split("-"))
            near = {
                value for value, other in told if other != key and words & set(other.split("-"))
            }
            assert len(lures) == len(set(lures)) == min(2, len(near))
            assert set(lures) <= near
    assert sum(bool(b.question.lures) for b in rung(prompts, 60_000, "multikey")) >= 10
    assert not any(branch.question.lures for branch in build(near_misses=0).branches)


@pytest.mark.parametrize("tokenizer", [BY_CHARACTER, BY_WORDS], ids=lambda t: t.name)
def test_candidates_follow_the_prompt(tokenizer: Tokenizer) -> None:
    spaced = Frame(FRAME.before, FRAME.between, f"{FRAME.after} Answer:", " ")
    prompts = build(tokenizer, shape=spaced, context_tokens=(9_000, 14_000), needles=5)
    for branch in prompts.branches:
        question = branch.question
        if len(question.values) != 1:
            assert branch.candidates == ()
            continue
        assert len(branch.candidates) == 1 + len(question.lures)
        for value, tokens in zip(
            (*question.values, *question.lures), branch.candidates, strict=True
        ):
            longer = np.concatenate([whole(prompts, branch), tokens])
            assert tokenizer.decode(longer).endswith(f"Answer: {value}")
            assert np.array_equal(longer, tokenizer.encode(tokenizer.decode(longer)))


def test_no_candidates_where_they_cannot_follow() -> None:
    # "<think></think>" and a value are one word to this tokenizer
    assert not any(branch.candidates for branch in build(BY_WORDS).branches)
    assert not any(branch.candidates for branch in build(thinking=True, answer_tokens=256).branches)


def test_several_values_have_room_for_several() -> None:
    prompts = build()
    limits = {b.question.task: b.question.answer_tokens for b in prompts.branches}
    assert limits.pop("multi-value") == 4 * 16
    assert set(limits.values()) == {16}
    thinking = build(thinking=True, answer_tokens=1000)
    limits = {b.question.task: b.question.answer_tokens for b in thinking.branches}
    assert limits["multi-value"] == 1000 + 3 * 24


@both_modes
def test_bos_comes_first_and_counts(changes: dict[str, object]) -> None:
    plain, with_bos = build(**changes), build(bos=1, **changes)
    assert with_bos.stream[0] == 1
    for branch in with_bos.branches:
        length = branch.question.context_tokens
        assert branch.prompt_tokens + branch.question.answer_tokens <= length
        assert np.array_equal(whole(with_bos, branch)[1:2], plain.stream[:1])
    # the frame begins with it already
    assert build(bos=ord("<"), **changes).digest == plain.digest


@both_modes
def test_same_seed_same_prompts(changes: dict[str, object]) -> None:
    first, second, other = build(**changes), build(**changes), build(seed=4, **changes)
    assert first.digest == second.digest != other.digest
    assert first.keys == second.keys
    assert not np.array_equal(first.stream[:4000], other.stream[:4000])


def test_other_lures_are_other_prompts() -> None:
    assert build(near_misses=1).digest != build().digest


def test_one_length_is_a_ladder_too() -> None:
    prompts = build(context_tokens=(20_000,), needles=1, probes={})
    (branch,) = prompts.branches
    assert prompts.keys == {20_000: 1}
    assert len(branch.tokens) == 1  # nothing to differ from: the stream is the prompt
    assert BY_CHARACTER.decode(whole(prompts, branch)).endswith(FRAME.after)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"context_tokens": (2_500,)}, r"2500 tokens leaves \d+ .* take \d+.*fewer needles"),
        ({"context_tokens": (256, 60_000)}, "256 tokens leaves 0 .*use a longer context"),
        ({"digits": 3, "needles": 200}, "numbers of 3 digits run out: .*use more digits"),
        ({"probes": {"paraphrased": 100}, "context_tokens": range(10**6, 10**6 + 8)},
         "800 paraphrased probes are wanted, 730 can be"),
        ({"needles": 400, "probes": {}, "context_tokens": range(10**6, 10**6 + 20)},
         "8000 keys are wanted, 5690 can be told apart"),
        ({"needles": 1, "probes": {"absent": 1}, "context_tokens": (20_000,)},
         "whose words occur in the 1 that are hidden; ask for more needles"),
    ],
)  # fmt: skip
def test_what_cannot_be_built_is_said(changes: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        build(**changes)


def test_a_short_haystack_is_not_repeated() -> None:
    short = [f"This is sentence {'abcdefghij'[i % 10]} of a short text." for i in range(2000)]
    recipe = RetrievalRecipe(context_tokens=(100_000,), needles=4)
    with pytest.raises(InputError, match=r"fills only \d+ of 100000 tokens without repeating"):
        prompts_of(BY_CHARACTER.encode, FRAME, short, recipe, 1)
    with pytest.raises(InputError, match="no sentences"):
        prompts_of(BY_CHARACTER.encode, FRAME, [], recipe, 1)


def test_frames() -> None:
    assert frame_of(None).after.endswith("Answer:")
    assert frame_of(CHATML, thinking=True).after.endswith("assistant\n")
    with pytest.raises(InputError, match="template fails"):
        frame_of("{{ raise_exception('no') }}")
    with pytest.raises(InputError, match="changes the message"):
        frame_of("{{ messages[0].content | upper }}")
    with pytest.raises(InputError, match="no chat template, so it cannot be asked to think"):
        frame_of(None, thinking=True)
    with pytest.raises(InputError, match="changes the message"):
        Frame("Other words: ", "\n", "").instructing("A special magic number")
