"""A byte-level BPE as GGUF metadata: llama.cpp's model "gpt2"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quantkit.core.errors import InputError
from quantkit.formats.tensors import Metadata
from quantkit.models.families.base import meta
from quantkit.models.tokenizers.pre_tokenizers import pre_tokenizer_name
from quantkit.models.tokenizers.token_types import (
    TokenType,
    converted,
    refuse_unreadable,
    texts_by_id,
)
from quantkit.models.transformers_reader import LoadedTokenizer


def byte_level_metadata(tokenizer: LoadedTokenizer, rows: int) -> Metadata:
    """Tokens, types and merges, and the name of the pre-tokenizer.

    Ids without a token become `[PADi]` of type UNUSED, so there is a token for every row of the
    embedding. NFC, the normalizer of Qwen, is left out: llama.cpp has none, so text must come to
    it normalized, as nearly all text is.

    Raises:
        InputError: the tokenizer does what llama.cpp cannot do, or does not fit the vocabulary.
    """
    model = tokenizer.definition["model"]
    _refuse_normalizer(tokenizer.definition.get("normalizer"))
    refuse_model_options(model)
    texts = texts_by_id(tokenizer, rows)
    tokens = [texts.get(token_id, f"[PAD{token_id}]") for token_id in range(rows)]
    types = [TokenType.NORMAL if i in texts else TokenType.UNUSED for i in range(rows)]
    for token_id, token in tokenizer.added.items():
        if token_id < rows:
            tokens[token_id], types[token_id] = converted(token)
    refuse_unreadable(tokens)
    return {
        "tokenizer.ggml.model": meta("str", "gpt2"),
        "tokenizer.ggml.pre": meta("str", pre_tokenizer_name(tokenizer.definition)),
        "tokenizer.ggml.tokens": meta("str", tokens),
        "tokenizer.ggml.token_type": meta("i32", types),
        "tokenizer.ggml.merges": meta("str", [_joined(pair) for pair in model["merges"]]),
    }


def refuse_model_options(model: Mapping[str, Any]) -> None:
    """What a BPE model may have and llama.cpp does not know.

    Raises:
        InputError: the model has it.
    """
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(key):
            raise InputError(
                f"tokenizer.json has {key} {model[key]!r}, which llama.cpp does not know; only "
                "plain BPE is converted"
            )


def _refuse_normalizer(normalizer: object) -> None:
    match normalizer:
        case None | {"type": "NFC"} | {"type": "Sequence", "normalizers": [] | [{"type": "NFC"}]}:
            return
        case _:
            raise InputError(
                f"tokenizer.json changes text by {str(normalizer)[:300]} before it is encoded, "
                "and llama.cpp cannot; only tokenizers without a normalizer or with NFC are "
                "converted"
            )


def _joined(pair: Sequence[str]) -> str:
    joined = " ".join(pair)
    if joined.count(" ") == 1:
        return joined
    # A space inside a part would be taken for the separator: llama.cpp reads U+0120 for it.
    return " ".join(part.replace(" ", "\u0120") for part in pair)
