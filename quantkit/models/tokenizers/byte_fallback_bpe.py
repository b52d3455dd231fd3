"""A SentencePiece BPE in the form of a tokenizer.json, as GGUF metadata: llama.cpp's model "llama".

Fine-tunes of Llama 2 and Mistral are saved so, without tokenizer.model: merges in place of scores.
llama.cpp joins the two neighbours whose joint text is the token of the highest score, of equals the
leftmost, and knows no merges. Both give the same tokens, for every text, where each token's score
is minus the rank of the merge that makes it from its own characters: when two neighbours spell a
token T together, no merge has crossed the ends of T's text yet, so they are the last two symbols
that T alone is merged to, and their merge is the one with that rank. The proof fails where T alone
ends as two symbols that no merge joins: llama.cpp would join them. Such a tokenizer is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from quantkit.core.errors import InputError
from quantkit.formats.tensors import Metadata
from quantkit.models.families.base import meta
from quantkit.models.tokenizers.merges import Ranks, merge_ranks, merged, unreachable
from quantkit.models.tokenizers.token_types import (
    TokenType,
    is_control,
    refuse_unreadable,
    texts_by_id,
)
from quantkit.models.transformers_reader import AddedToken, LoadedTokenizer

_SPACE = "\u2581"
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
_PREPEND = {"type": "Prepend", "prepend": _SPACE}
_BYTES = frozenset(f"<0x{byte:02X}>" for byte in range(256))
_NEXT = "download tokenizer.model from the same repository too, it is preferred where present"


def byte_fallback_metadata(tokenizer: LoadedTokenizer, rows: int) -> Metadata:
    """Tokens, scores and types, and whether texts get a space before them."""
    model = tokenizer.definition["model"]
    adds_space = _adds_space(tokenizer.definition)
    texts = texts_by_id(tokenizer, rows)
    for token in tokenizer.added.values():
        _refuse_added(token, adds_space)
    missing = _BYTES - set(model["vocab"])
    if missing:
        raise InputError(
            f"tokenizer.json lacks the byte tokens {', '.join(sorted(missing)[:3])}…; llama.cpp "
            f"needs all 256: {_NEXT}"
        )
    tokens = [texts.get(i, f"[PAD{i}]") for i in range(rows)]
    refuse_unreadable(tokens)
    ranks = merge_ranks(model["merges"])
    _refuse_merging(ranks, model, {token.text for token in tokenizer.added.values()})
    types, scores = [], []
    for token_id, text in enumerate(tokens):
        added = tokenizer.added.get(token_id)
        if token_id not in texts:
            types.append(TokenType.UNUSED)
        elif text == model.get("unk_token"):
            types.append(TokenType.UNKNOWN)
        elif added is not None:
            types.append(TokenType.CONTROL if is_control(added, text) else TokenType.USER_DEFINED)
        else:
            types.append(TokenType.BYTE if text in _BYTES else TokenType.NORMAL)
        scores.append(_score(text, ranks, added is not None))
    return {
        "tokenizer.ggml.model": meta("str", "llama"),
        "tokenizer.ggml.pre": meta("str", "default"),
        "tokenizer.ggml.tokens": meta("str", tokens),
        "tokenizer.ggml.scores": meta("f32", scores),
        "tokenizer.ggml.token_type": meta("i32", types),
        "tokenizer.ggml.add_space_prefix": meta("bool", adds_space),
    }


def _adds_space(definition: Mapping[str, Any]) -> bool:
    """Whether a text, and what follows a special token, gets a space before it; always or never.

    Metaspace adds one only where there is none yet, or only at the very start: llama.cpp cannot.
    """
    match definition.get("normalizer"), definition.get("pre_tokenizer"):
        case {"type": "Sequence", "normalizers": [first, second]}, None if (
            first == _PREPEND and second == _REPLACE
        ):
            return True
        case normalizer, None if normalizer in (
            _REPLACE,
            {"type": "Sequence", "normalizers": [_REPLACE]},
        ):
            return False
        case None, {
            "type": "Metaspace",
            "replacement": "\u2581",
            "prepend_scheme": "never",
            "split": False,
        }:
            return False
        case normalizer, pre_tokenizer:
            raise InputError(
                f"tokenizer.json prepares text by {str(normalizer)[:200]} and "
                f"{str(pre_tokenizer)[:200]}, which llama.cpp cannot do: it puts a space before "
                f"every text or before none; {_NEXT}"
            )


def _refuse_added(token: AddedToken, adds_space: bool) -> None:
    """Added tokens that the library finds elsewhere than llama.cpp, which takes text as it is."""
    if token.takes_space or (token.normalized and (adds_space or " " in token.text)):
        raise InputError(
            f"tokenizer.json looks for the added token {token.text!r} in normalized text, with "
            f"the white space beside it or as a word; llama.cpp in the text as it is: {_NEXT}"
        )


def _refuse_merging(ranks: Ranks, model: Mapping[str, Any], added: Set[str]) -> None:
    """Merging that is not by characters alone."""
    if any(part in _BYTES for pair in ranks for part in pair):
        raise InputError(f"tokenizer.json merges byte tokens, which llama.cpp does not: {_NEXT}")
    if model.get("ignore_merges"):
        words = (text for text in model["vocab"] if text not in added and text not in _BYTES)
        lost = next(unreachable(words, ranks), None)
        if lost is not None:
            raise InputError(
                f"tokenizer.json has ignore_merges, and no merges lead to the token {lost!r}; "
                f"llama.cpp would not find it: {_NEXT}"
            )


def _score(text: str, ranks: Ranks, is_added: bool) -> float:
    symbols, last = merged(text, ranks)
    if len(symbols) == 2 and not is_added:  # Added tokens are cut out of the text before.
        raise InputError(
            f"tokenizer.json has the token {text!r}, but no merge of {symbols[0]!r} and "
            f"{symbols[1]!r}; llama.cpp would merge them: {_NEXT}"
        )
    # A token of one character, or that nothing leads to, is never merged: last of all.
    return -float(last if len(symbols) == 1 and last >= 0 else len(ranks))
