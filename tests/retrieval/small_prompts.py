"""Tokenizers whose every token is known, and prompts as text again."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from quantkit.config.recipe import RetrievalRecipe
from quantkit.core.paths import sentences
from quantkit.retrieval.branches import Branch, Frame, Prompts, Tokens, frame_of
from quantkit.retrieval.prompts import prompts_of

CHATML = (
    "{%- for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor -%}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{%- if not enable_thinking %}<think></think>{% endif %}{% endif -%}"
)
FRAME = frame_of(CHATML)
SENTENCES = sentences()[7000:10000]
"""Five times as many as the longest prompt takes."""
ALL_PROBES = {
    "near-miss": 3, "absent": 2, "updated": 3, "multi-value": 2, "two-hop": 3, "paraphrased": 3,
}  # fmt: skip


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer and its inverse; a long word with its space has `word_tokens`."""

    name: str
    encode: Callable[[str], Tokens]
    decode: Callable[[Tokens], str]
    word_tokens: int


def _characters(text: str) -> Tokens:
    return np.frombuffer(text.encode("utf-32-le"), np.int32)


def _text(tokens: Tokens) -> str:
    return tokens.astype(np.int32).tobytes().decode("utf-32-le")


def _pairs(text: str) -> Tokens:
    codes = _characters(text + "\0" * (len(text) % 2)).reshape(-1, 2)
    return (codes[:, 0] * 4096 + codes[:, 1]).astype(np.int32)


def _unpaired(tokens: Tokens) -> str:
    return _text(np.stack([tokens // 4096, tokens % 4096], axis=1).ravel()).rstrip("\0")


_words: dict[str, int] = {}


def _by_words(text: str) -> Tokens:
    found = re.findall(r" [^ ]*", " " + text)
    return np.array([_words.setdefault(word, len(_words)) for word in found], np.int32)


def _joined(tokens: Tokens) -> str:
    known = list(_words)
    return "".join(known[int(token)] for token in tokens)[1:]


BY_CHARACTER = Tokenizer("never looks across a boundary", _characters, _text, 16)
BY_PAIRS = Tokenizer("merges across every boundary", _pairs, _unpaired, 8)
BY_WORDS = Tokenizer("puts a space before every text, as SentencePiece", _by_words, _joined, 1)
TOKENIZERS = (BY_CHARACTER, BY_PAIRS, BY_WORDS)
one_of_all = pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=lambda t: t.name)


def recipe(**changes: object) -> RetrievalRecipe:
    """A ladder of three lengths with every probe, small enough for characters."""
    values: dict[str, object] = {
        "context_tokens": (20_000, 30_000, 60_000),
        "needles": 12,
        "probes": {} if changes.get("mode") == "classic" else ALL_PROBES,
        "answer_tokens": 16,
    }
    return RetrievalRecipe.model_validate({**values, **changes})


def build(
    tokenizer: Tokenizer = BY_CHARACTER,
    seed: int = 3,
    shape: Frame = FRAME,
    bos: int | None = None,
    **changes: object,
) -> Prompts:
    return prompts_of(tokenizer.encode, shape, SENTENCES, recipe(**changes), seed, bos)


def whole(prompts: Prompts, branch: Branch) -> Tokens:
    return np.concatenate([prompts.stream[: branch.leaves_at], branch.tokens])


def text_of(tokenizer: Tokenizer, prompts: Prompts, branch: Branch) -> str:
    return tokenizer.decode(whole(prompts, branch))


def rung(prompts: Prompts, context_tokens: int, task: str | None = None) -> list[Branch]:
    return [
        branch
        for branch in prompts.branches
        if branch.question.context_tokens == context_tokens and task in (None, branch.question.task)
    ]


def context(tokenizer: Tokenizer, prompts: Prompts, context_tokens: int) -> str:
    """The haystack of one length with what is hidden in it."""
    text = text_of(tokenizer, prompts, rung(prompts, context_tokens)[0])
    return text.removeprefix(FRAME.before).rpartition(FRAME.between)[0]
