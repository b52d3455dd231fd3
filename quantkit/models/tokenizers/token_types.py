"""What kind a token is, and the text that llama.cpp looks for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import IntEnum

from quantkit.core.errors import InputError
from quantkit.models.tokenizers.special_tokens import AddedToken


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
    text = token.text if token.normalized else _decoded(token.text)
    if is_control(token, text):
        return text, TokenType.CONTROL
    return text.replace("\u2581", " "), TokenType.USER_DEFINED


def is_control(token: AddedToken, text: str) -> bool:
    """Whether it is no text; some models forget to mark such tokens as special."""
    return (
        bool(token.special)
        or text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or re.fullmatch(r"<\|.*\|>|<\uff5c.*\uff5c>|<unused.*>", text, re.DOTALL) is not None
    )


def refuse_unreadable(tokens: Sequence[str]) -> None:
    """What ends llama.cpp's process when it loads the file, or makes it read another token.

    Raises:
        InputError: two tokens are equal, or one has a null character, where llama.cpp cuts it off.
    """
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


def _byte_of_character() -> dict[str, int]:
    """GPT-2's printable character of each byte, the other way round."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + i): byte for i, byte in enumerate(rest)}


_BYTE_OF = _byte_of_character()


def _decoded(text: str) -> str:
    """What a byte-level decoder makes of a token; text that spells no bytes of a text stays."""
    try:
        return bytes(_BYTE_OF[character] for character in text).decode("utf-8")
    except (KeyError, UnicodeDecodeError):
        return text
