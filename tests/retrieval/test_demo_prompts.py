"""Prompts by the demo model's own tokenizer and chat template, as llama.cpp has them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from demo_artifacts import write_demo
from small_prompts import ALL_PROBES, Tokenizer, text_of, whole

from quantkit.config.recipe import RetrievalRecipe
from quantkit.core.paths import sentences
from quantkit.llamacpp.llama import Model
from quantkit.llamacpp.settings import DeviceSettings
from quantkit.retrieval.branches import Prompts, frame_of
from quantkit.retrieval.needles import INSTRUCTION, SINGLE_INSTRUCTION
from quantkit.retrieval.prompts import prompts_of
from quantkit.retrieval.scoring import THINKING_TAGS, score

LENGTHS = (2048, 8192, 32768)
LADDER = RetrievalRecipe(context_tokens=LENGTHS, needles=8, probes=dict.fromkeys(ALL_PROBES, 1))
KEYS = 8 + 3 + 1 + 1 + 2  # hidden for one length; absent keys are not, paraphrases have none


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    path = write_demo(tmp_path_factory.mktemp("demo") / "demo.gguf")
    model = Model(path, DeviceSettings(1, use_extra_buffers=False, gpu_layers=0), weightless=True)
    yield model
    model.close()


@pytest.fixture(scope="module")
def tokenizer(demo: Model) -> Tokenizer:
    vocab, every = demo.vocab, range(demo.vocab.size)
    return Tokenizer("demo", vocab.tokenize, lambda ids: vocab.text(ids.tolist(), every), 8)


def prompts(demo: Model, recipe: RetrievalRecipe, seed: int = 1, bos: int | None = None) -> Prompts:
    shape = frame_of(demo.chat_template(), thinking=recipe.thinking)
    return prompts_of(demo.vocab.tokenize, shape, sentences(), recipe, seed, bos)


def assert_filled(tokenizer: Tokenizer, found: Prompts, bos: bool = False) -> None:
    """Each prompt, and with its right answer, has the tokens of its text; the longest fills it."""
    left: dict[int, list[int]] = {}
    for branch in found.branches:
        length, limit = branch.question.context_tokens, branch.question.answer_tokens
        left.setdefault(length, []).append(length - branch.prompt_tokens - limit)
        tokens = whole(found, branch)[bos:]
        for more in ((), *branch.candidates[:1]):
            longer = np.concatenate([tokens, more]).astype(np.int32)
            assert np.array_equal(tokenizer.encode(tokenizer.decode(longer)), longer)
    assert all(0 <= min(some) <= tokenizer.word_tokens for some in left.values())


@pytest.mark.parametrize(
    ("bos", "digest"),
    [
        (False, "864d8874db1b2fcf75c035cb5d5908ad6dce1ae7379fc0a638e849bffb556989"),
        (True, "a972d03e5bb0eba23ae4c5b5b862c3fbaa99457e63b25bd4cceff1413ab81fc3"),
    ],
)
def test_ladder(demo: Model, tokenizer: Tokenizer, bos: bool, digest: str) -> None:
    begin = demo.vocab.eos if bos else None  # any token will do
    found = prompts(demo, LADDER, bos=begin)
    assert len(found.branches) == 3 * (8 + len(ALL_PROBES))
    assert found.keys[32768] == 3 * KEYS > found.keys[8192] > found.keys[2048] >= KEYS
    assert bool(found.stream[0] == demo.vocab.eos) is bos
    assert_filled(tokenizer, found, bos)
    assert len({branch.rung for branch in found.branches}) == len(LENGTHS)
    for branch in found.branches:
        question, text = branch.question, tokenizer.decode(whole(found, branch)[bos:])
        assert text.startswith(f"<|im_start|>user\n{INSTRUCTION}\n\n")
        assert text.endswith("<|im_end|>\n<|im_start|>assistant\n<think></think>")
        assert all(text.count(value) == 1 for value in question.values)
        if len(question.values) == 1:
            candidates = tuple(tokenizer.decode(tokens) for tokens in branch.candidates)
            assert candidates == (*question.values, *question.lures)
    # in every process and version: answers and saved states of an interrupted run are of these
    assert found.digest == digest


def test_classic(demo: Model, tokenizer: Tokenizer) -> None:
    recipe = RetrievalRecipe(mode="classic", context_tokens=LENGTHS)
    found = prompts(demo, recipe, seed=2)
    assert found.keys == dict.fromkeys(LENGTHS, 1)
    assert len(found.branches) == 9
    assert_filled(tokenizer, found)
    for branch in found.branches:
        question, text = branch.question, text_of(tokenizer, found, branch)
        assert text.startswith(f"<|im_start|>user\n{SINGLE_INSTRUCTION}\n\n")
        assert text.count("magic numbers for") == 1
        near = 0.01 + 64 / question.context_tokens
        assert abs(question.depth - recipe.depths[question.index]) < near
        assert tuple(map(tokenizer.decode, branch.candidates)) == question.values


def test_the_end_of_thinking_is_seen_if_it_is_a_special_token(demo: Model) -> None:
    vocab = demo.vocab
    tags = [int(token) for tag in THINKING_TAGS for token in vocab.tokenize(tag)]
    assert len(tags) == 2
    answer = [int(token) for token in vocab.tokenize("Not 11111.</think>48213")]
    assert vocab.text(answer) == "Not 11111.48213"
    text = vocab.text(answer, tags)
    assert text == "Not 11111.</think>48213"
    assert score("multikey", ("48213",), text, thinking=True).hit
    assert not score("multikey", ("11111",), text, thinking=True).hit
