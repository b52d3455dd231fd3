"""A byte-level BPE in tokenizer.json as GGUF metadata: llama.cpp's model "gpt2"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quantkit.core.errors import InputError
from quantkit.formats.tensors import Metadata
from quantkit.models.families.base import meta
from quantkit.models.tokenizers.merges import Pair, distinct, merge_pair
from quantkit.models.tokenizers.pre_tokenizers import pre_tokenizer_name
from quantkit.models.tokenizers.special_tokens import AddedToken, added_tokens
from quantkit.models.tokenizers.token_types import TokenType, converted, refuse_unreadable


def byte_level_metadata(tokenizer: Mapping[str, Any], vocabulary: int) -> Metadata:
    """Tokens, types and merges, and the name of the pre-tokenizer.

    Ids without a token become `[PADi]` of type UNUSED, so there is a token for every row of the
    embedding. NFC, the normalizer of Qwen, is left out: llama.cpp has none, so text must come to
    it normalized, as nearly all text is.

    Raises:
        InputError: the tokenizer does what llama.cpp cannot do, or does not fit the vocabulary.
    """
    model = tokenizer["model"]
    _refuse_normalizer(tokenizer.get("normalizer"))
    refuse_model_options(model)
    text_of, added = tokens_by_id(tokenizer, vocabulary)
    tokens: list[str] = []
    types: list[int] = []
    for token_id in range(vocabulary):
        text = text_of.get(token_id)
        if text is None:
            tokens.append(f"[PAD{token_id}]")
            types.append(TokenType.UNUSED)
        elif text in added:
            text, kind = converted(added[text])
            tokens.append(text)
            types.append(kind)
        else:
            tokens.append(text)
            types.append(TokenType.NORMAL)
    refuse_unreadable(tokens)
    merges = [_joined(pair) for pair in distinct([merge_pair(m) for m in model["merges"]])]
    return {
        "tokenizer.ggml.model": meta("str", "gpt2"),
        "tokenizer.ggml.pre": meta("str", pre_tokenizer_name(tokenizer)),
        "tokenizer.ggml.tokens": meta("str", tokens),
        "tokenizer.ggml.token_type": meta("i32", types),
        "tokenizer.ggml.merges": meta("str", merges),
    }


def tokens_by_id(
    tokenizer: Mapping[str, Any], vocabulary: int
) -> tuple[dict[int, str], dict[str, AddedToken]]:
    """Every token's text by its id, and the added tokens by their text.

    Raises:
        InputError: an id is no number, or outside the vocabulary.
    """
    added = {token.text: token for token in added_tokens(tokenizer)}
    ids = tokenizer["model"]["vocab"] | {text: token.token_id for text, token in added.items()}
    if any(type(token_id) is not int for token_id in ids.values()):
        raise InputError("tokenizer.json: an id in the vocabulary is no number; download it again")
    text_of = {token_id: text for text, token_id in ids.items()}
    if not ids or max(text_of) >= vocabulary or min(text_of) < 0:
        raise InputError(
            f"tokenizer.json has token ids up to {max(text_of, default=None)}, but config.json "
            f"says vocab_size {vocabulary}; they do not belong together"
        )
    return text_of, added


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


def _joined(pair: Pair) -> str:
    joined = " ".join(pair)
    if joined.count(" ") == 1:
        return joined
    # A space inside a part would be taken for the separator: llama.cpp reads U+0120 for it.
    return " ".join(part.replace(" ", "\u0120") for part in pair)
