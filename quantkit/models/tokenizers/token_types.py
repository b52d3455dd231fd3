"""The tokens of a GGUF: a text and a type for every row of the embedding."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import IntEnum

from quantkit.core.errors import InputError
from quantkit.models.transformers_reader import AddedToken, LoadedTokenizer


class TokenType(IntEnum):
    """`enum llama_token_type`, the values of `tokenizer.ggml.token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


def converted(token: AddedToken) -> tuple[str, TokenType]:
    """An added token as llama.cpp expects it: the text that it stands for, and its type."""
    if is_control(token, token.decoded):
        return token.decoded, TokenType.CONTROL
    return token.decoded.replace("\u2581", " "), TokenType.USER_DEFINED


def is_control(token: AddedToken, text: str) -> bool:
    """Whether it is a control token; some models do not mark them as special."""
    return (
        bool(token.special)
        or text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or re.fullmatch(r"<\|.*\|>|<\uff5c.*\uff5c>|<unused.*>", text, re.DOTALL) is not None
    )


def texts_by_id(tokenizer: LoadedTokenizer, rows: int) -> Mapping[int, str]:
    """The text of every token that has a row of the embedding.

    Added tokens without a row are left out, as llama.cpp's converter leaves them out of a
    SentencePiece model: the model cannot read them.
    """
    texts = {token_id: text for text, token_id in tokenizer.ids.items()}
    last = max((i for i in texts if i not in tokenizer.added), default=-1)
    if not 0 <= last < rows:
        raise InputError(
            f"the tokenizer has token ids up to {last}, but config.json says vocab_size {rows}; "
            "they do not belong together"
        )
    return {token_id: text for token_id, text in texts.items() if token_id < rows}


def refuse_unreadable(tokens: Sequence[str]) -> None:
    """What ends llama.cpp's process when it loads the file, or makes it read another token."""
    first_of: dict[str, int] = {}
    for token_id, text in enumerate(tokens):
        if "\0" in text:
            raise InputError(
                f"token {token_id}, {text!r}, has a null character, where llama.cpp ends a token; "
                "the checkpoint cannot be converted"
            )
        first = first_of.setdefault(text, token_id)
        if first != token_id:
            raise InputError(
                f"the tokens {first} and {token_id} are both {text!r}, and llama.cpp takes a text "
                "only once; the checkpoint cannot be converted"
            )
