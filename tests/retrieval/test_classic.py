"""Classic prompts: one needle each, at its depth, in a context that is filled."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_prompts import FRAME, SENTENCES, Tokenizer, build, one_of_all, text_of, whole

from quantkit.core.errors import InputError
from quantkit.retrieval.needles import SINGLE_INSTRUCTION, Needle

LENGTHS = (6_000, 20_000)
DEPTHS = (0.0, 0.1, 0.5, 0.9, 1.0)
HAYSTACK = " ".join(SENTENCES)
CLASSIC = {"mode": "classic", "context_tokens": LENGTHS, "depths": DEPTHS}


@one_of_all
def test_every_prompt_is_whole(tokenizer: Tokenizer) -> None:
    prompts = build(tokenizer, **CLASSIC)
    assert prompts.keys == dict.fromkeys(LENGTHS, 1)
    places = {(b.question.context_tokens, b.question.index) for b in prompts.branches}
    assert places == {(length, i) for length in LENGTHS for i in range(len(DEPTHS))}
    for branch in prompts.branches:
        question = branch.question
        text = text_of(tokenizer, prompts, branch)
        assert np.array_equal(whole(prompts, branch), tokenizer.encode(text))
        before = FRAME.instructing(SINGLE_INSTRUCTION).before
        needle = Needle(question.key, *question.values)
        assert text.startswith(f"<|im_start|>user\n{SINGLE_INSTRUCTION}\n\n")
        assert text.endswith(FRAME.between + needle.question + FRAME.after)
        haystack = text.removeprefix(before).removesuffix(
            FRAME.between + needle.question + FRAME.after
        )
        assert haystack.count(needle.sentence) == text.count(needle.value) == 1
        plain = haystack.replace(f"{needle.sentence} ", "")
        assert f" {plain} " in f" {HAYSTACK} {HAYSTACK} "
        left = question.context_tokens - branch.prompt_tokens - question.answer_tokens
        assert 0 <= left <= tokenizer.word_tokens
        near = 350 * tokenizer.word_tokens / 16 / question.context_tokens + 0.03
        assert abs(question.depth - DEPTHS[question.index]) < near
        assert abs(question.depth - haystack.index(needle.sentence) / len(haystack)) < 0.02
        assert question.task == "single"
        assert question.lures == ()


@one_of_all
def test_the_stream_has_no_needle(tokenizer: Tokenizer) -> None:
    prompts = build(tokenizer, **CLASSIC)
    leaving = [branch.leaves_at for branch in prompts.branches]
    assert leaving == sorted(leaving)
    assert leaving[-1] == len(prompts.stream)
    text = tokenizer.decode(prompts.stream)
    assert not re.search(r"magic numbers for|is: \d{5}", text)
    assert prompts.classic_tokens == sum(len(whole(prompts, b)) for b in prompts.branches)
    tails = sum(len(branch.tokens) for branch in prompts.branches)
    assert prompts.prefill_tokens + prompts.question_tokens == len(prompts.stream) + tails
    for branch in prompts.branches:
        # it leaves where its needle begins, or in the words that the sentence there begins with
        rest = tokenizer.decode(whole(prompts, branch)[branch.leaves_at - 1 :])
        assert 0 <= rest.index("magic numbers for") < 60
        assert 5 < branch.own_tokens < 250


@given(seed=st.integers(0, 10**6), depth=st.floats(0, 1))
@settings(max_examples=10)
def test_needle_is_near_the_depth(seed: int, depth: float) -> None:
    prompts = build(seed=seed, mode="classic", context_tokens=(20_000,), depths=(depth,))
    assert abs(prompts.branches[0].question.depth - depth) < 0.03


def test_what_cannot_be_built_is_said() -> None:
    with pytest.raises(InputError, match=r"256 tokens leaves 0 .* needle takes \d+; use a longer"):
        build(mode="classic", context_tokens=(256,))
    with pytest.raises(InputError, match="without repeating"):
        build(mode="classic", context_tokens=(2 * len(HAYSTACK),))
