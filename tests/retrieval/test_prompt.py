"""Prompts: the shared prefix is exactly the prompt that each question would have on its own."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit.errors import InputError
from quantkit.retrieval.chat import Frame, frame
from quantkit.retrieval.haystack import sentences
from quantkit.retrieval.needles import INSTRUCTION, draw_needles
from quantkit.retrieval.prompt import Prompt, build_prompt

CHATML = (
    "{%- for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor -%}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{%- if not enable_thinking %}<think></think>{% endif %}{% endif -%}"
)


def by_character(text: str) -> np.ndarray:
    """A tokenizer that never looks across a boundary."""
    return np.frombuffer(text.encode("utf-32-le"), np.int32)


def by_pairs(text: str) -> np.ndarray:
    """A tokenizer that merges across every boundary: pairs of characters from the start."""
    padded = text + " " * (len(text) % 2)
    return np.array(
        [ord(a) * 65536 + ord(b) for a, b in zip(padded[::2], padded[1::2], strict=True)]
    )


def build(tokenize: object, context: int = 20_000, needles: int = 12, seed: int = 3) -> Prompt:
    return build_prompt(
        tokenize,  # type: ignore[arg-type]
        frame(CHATML),
        sentences(),
        context_tokens=context,
        needles=needles,
        digits=5,
        answer_tokens=16,
        seed=seed,
    )


def decode(prompt: Prompt, index: int) -> str:
    whole = np.concatenate([prompt.prefix, prompt.tails[index]]).astype(np.int32)
    return whole.tobytes().decode("utf-32-le")


def test_every_whole_prompt_is_the_templates_own() -> None:
    prompt = build(by_character)
    texts = [decode(prompt, i) for i in range(12)]
    for text, needle in zip(texts, prompt.needles, strict=True):
        assert text.startswith(f"<|im_start|>user\n{INSTRUCTION}\n\n")
        assert text.endswith(
            f"\n\n{needle.question}<|im_end|>\n<|im_start|>assistant\n<think></think>"
        )
        assert text.count(needle.value) == 1
        assert text.count(needle.sentence) == 1
    # the prefix is as long as can be: the tails differ in their first token
    assert len({tail[0] for tail in prompt.tails}) > 1


def test_length_is_filled_and_never_exceeded() -> None:
    prompt = build(by_character)
    assert 20_000 - 16 - 1600 < prompt.tokens <= 20_000 - 16


@pytest.mark.parametrize("tokenize", [by_character, by_pairs])
def test_prefix_and_tail_are_the_tokens_of_the_whole(tokenize: object) -> None:
    prompt = build(tokenize)
    again = build(by_character)  # the text itself does not depend on where it is cut
    assert prompt.needles == again.needles
    reference = [decode(again, i) for i in range(12)] if tokenize is by_character else None
    for index in range(12):
        whole = np.concatenate([prompt.prefix, prompt.tails[index]])
        if reference is not None:
            assert np.array_equal(whole, by_character(reference[index]))
        else:
            text = "".join(chr(t >> 16) + chr(t & 65535) for t in whole)
            assert np.array_equal(whole, by_pairs(text.rstrip(" ")))
            assert prompt.needles[index].question in text


@given(seed=st.integers(0, 10**6), needles=st.integers(1, 40))
@settings(max_examples=20, deadline=None)
def test_depths_are_stratified(seed: int, needles: int) -> None:
    prompt = build(by_character, 60_000, needles, seed)
    assert list(prompt.depths) == sorted(prompt.depths)
    for index, depth in enumerate(prompt.depths):
        assert index / needles - 0.03 <= depth <= (index + 1) / needles + 0.03


def test_same_seed_same_prompt() -> None:
    first, second, other = build(by_character), build(by_character), build(by_character, seed=4)
    assert np.array_equal(first.prefix, second.prefix)
    assert not np.array_equal(first.prefix[:4000], other.prefix[:4000])


def test_what_cannot_be_built_is_said() -> None:
    with pytest.raises(InputError, match="longer context or fewer needles"):
        build(by_character, 2_500, 24)
    with pytest.raises(InputError, match="without repeating"):
        build_prompt(
            by_character,
            Frame("", "\n", ""),
            [f"Sentence {i}." for i in range(200)],
            context_tokens=100_000,
            needles=4,
            digits=5,
            answer_tokens=4,
            seed=1,
        )


def test_most_keys_have_a_near_miss() -> None:
    needles = draw_needles(random.Random(1), 64, 5)
    keys = [tuple(n.key.split("-")) for n in needles]
    assert len(set(keys)) == len({n.value for n in needles}) == 64
    near = [any(a != b and (a[0] == b[0] or a[1] == b[1]) for b in keys) for a in keys]
    assert sum(near) >= 60


def test_frames() -> None:
    assert frame(None).after.endswith("Answer:")
    with pytest.raises(InputError, match="template fails"):
        frame("{{ raise_exception('no') }}")
    with pytest.raises(InputError, match="changes the message"):
        frame("{{ messages[0].content | upper }}")
