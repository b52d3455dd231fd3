"""The name of a splitting is found from its definition; that it splits so, by test_round_trip."""

from __future__ import annotations

from typing import Any

import pytest

from quantkit.core.errors import InputError
from quantkit.models.tokenizers.pre_tokenizers import (
    GPT4O,
    LLAMA3,
    MINICPM5,
    QWEN2,
    QWEN35,
    SEED_CODER,
    TEKKEN,
    pre_tokenizer_name,
)


def _pre(*steps: dict[str, Any], **model: object) -> dict[str, Any]:
    steps_before = {"type": "Sequence", "pretokenizers": list(steps)}
    return {"pre_tokenizer": steps_before, "model": {"vocab": {}, "merges": []} | model}


def _split(regex: str, behavior: str = "Isolated", invert: bool = False) -> dict[str, Any]:
    pattern = {"Regex": regex}
    return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert}


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
GPT2 = BYTES | {"use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}


@pytest.mark.parametrize(
    ("tokenizer", "name"),
    [
        (_pre(_split(TEKKEN), BYTES), "tekken"),
        (_pre(_split(LLAMA3), BYTES, ignore_merges=True), "llama-bpe"),
        (_pre(_split(LLAMA3, "Removed", True), BYTES), "dbrx"),
        (_pre(_split(LLAMA3.replace(r"\r\n", "\r\n")), BYTES), "dbrx"),
        (_pre(_split(QWEN2), BYTES), "qwen2"),
        (_pre(_split(GPT4O), BYTES), "gpt-4o"),
        (_pre(_split(QWEN35), BYTES), "qwen35"),
        (_pre(_split(SEED_CODER), BYTES), "seed-coder"),
        (_pre(_split(r"\p{N}{1,3}"), _split(MINICPM5), BYTES, ignore_merges=True), "minicpm5"),
        (_pre(DIGITS, GPT2), "smollm"),
        (_pre(GPT2), "gpt-2"),
    ],
)
def test_splitting_is_found_by_its_definition(tokenizer: dict[str, Any], name: str) -> None:
    assert pre_tokenizer_name(tokenizer) == name


@pytest.mark.parametrize(
    "tokenizer",
    [
        {},
        {"pre_tokenizer": {"type": "Metaspace"}},
        _pre(_split(TEKKEN + "|x"), BYTES),
        _pre(_split(TEKKEN, "MergedWithNext"), BYTES),
        _pre(_split(TEKKEN), BYTES | {"add_prefix_space": True}),
        _pre(_split(TEKKEN)),
    ],
)
def test_unknown_splitting_is_refused_with_its_definition(tokenizer: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"splits text by .* known are .*tekken"):
        pre_tokenizer_name(tokenizer)


REACHED = {"vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}
LOST = REACHED | {"vocab": {"a": 0, "b": 1, "ab": 2, "ba": 3}}


@pytest.mark.parametrize(
    ("regex", "ignore_merges", "name"), [(TEKKEN, False, "tekken"), (QWEN2, True, "qwen2")]
)
def test_the_other_ignore_merges_is_taken_where_it_changes_nothing(
    regex: str, ignore_merges: bool, name: str
) -> None:
    reached = _pre(_split(regex), BYTES, **REACHED, ignore_merges=ignore_merges)
    assert pre_tokenizer_name(reached) == name
    lost = _pre(_split(regex), BYTES, **LOST, ignore_merges=ignore_merges)
    with pytest.raises(InputError, match=f"{name!r} does the opposite, .* token 'ba' differently"):
        pre_tokenizer_name(lost)
    lost["added_tokens"] = [{"id": 3, "content": "ba"}]  # Cut out of the text before.
    assert pre_tokenizer_name(lost) == name


def test_a_token_that_is_no_word_is_looked_for_by_nobody() -> None:
    """`<s>` is cut in two before merges begin, so `ignore_merges` has nothing to ignore."""
    specials = {"vocab": {"a": 0, "b": 1, "ab": 2, "<s>": 3}, "merges": [["a", "b"]]}
    assert pre_tokenizer_name(_pre(_split(TEKKEN), BYTES, **specials)) == "tekken"
