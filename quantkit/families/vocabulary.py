"""A checkpoint's tokenizer as GGUF metadata, read from its files without transformers or torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import IntEnum
from pathlib import Path
from typing import Any

from quantkit.errors import InputError
from quantkit.families.base import Config, config_int, meta
from quantkit.families.pre_tokenizers import pre_tokenizer_name
from quantkit.families.sentencepiece_model import read_pieces
from quantkit.families.special_tokens import (
    AddedToken,
    added_tokens,
    read_json,
    special_token_metadata,
)
from quantkit.values import Metadata


class TokenType(IntEnum):
    """`enum llama_token_type`, the values of `tokenizer.ggml.token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


def tokenizer_metadata(folder: Path, config: Config) -> Metadata:
    """All `tokenizer.*` metadata of the checkpoint in `folder`.

    A SentencePiece `tokenizer.model` goes first where there is one, as in llama.cpp's converter,
    but not for Nemotron-H, whose tokenizer is always a byte-level BPE in tokenizer.json.

    Raises:
        InputError: there is no tokenizer that is understood, or it does not fit the vocabulary.
    """
    vocabulary = config_int(config, "vocab_size")
    is_nemotron = config.get("model_type") == "nemotron_h"
    if (folder / "tokenizer.model").is_file() and not is_nemotron:
        result = _sentencepiece(folder, vocabulary) | special_token_metadata(
            folder, config, read_json(folder / "tokenizer.json", optional=True), vocabulary
        )
    else:
        tokenizer = read_json(folder / "tokenizer.json")
        result = _byte_level_bpe(tokenizer, vocabulary)
        result |= special_token_metadata(folder, config, tokenizer, vocabulary)
        # The one key that llama.cpp's converter lacks: a tokenizer that says nothing of BOS adds
        # none, but llama.cpp would for tekken, pixtral and llama-bpe where the key is absent.
        result.setdefault("tokenizer.ggml.add_bos_token", meta("bool", False))
    if not is_nemotron:
        options = read_json(folder / "tokenizer_config.json", optional=True)
        if isinstance(options.get("add_prefix_space"), bool):
            result["tokenizer.ggml.add_space_prefix"] = meta("bool", options["add_prefix_space"])
        if vocabulary == 49152:
            # SmolLM and Granite declare a BOS that they were not trained with; llama.cpp too.
            result["tokenizer.ggml.add_bos_token"] = meta("bool", False)
    return result


def _byte_level_bpe(tokenizer: Mapping[str, Any], vocabulary: int) -> Metadata:
    """Model "gpt2": tokens, types and merges of a byte-level BPE.

    Ids without a token become `[PADi]` of type UNUSED, so there is a token for every row of the
    embedding.
    """
    match tokenizer.get("model"):
        case {"type": "BPE", "vocab": dict(vocab), "merges": list(merges), **model}:
            pass
        case other:
            kind = other.get("type") if isinstance(other, dict) else None
            raise InputError(
                f"tokenizer.json holds a model of type {kind!r}, only BPE is converted; "
                "convert the model with llama.cpp and give the GGUF to --model"
            )
    if model.get("byte_fallback"):
        raise InputError(
            "tokenizer.json is a SentencePiece model in another form, without its scores; "
            "download tokenizer.model from the same repository too"
        )
    added = {token.text: token for token in added_tokens(tokenizer)}
    ids = vocab | {text: token.token_id for text, token in added.items()}
    if any(type(token_id) is not int for token_id in ids.values()):
        raise InputError("tokenizer.json: an id in the vocabulary is no number; download it again")
    text_of = {token_id: text for text, token_id in ids.items()}
    if not ids or max(text_of) >= vocabulary or min(text_of) < 0:
        raise InputError(
            f"tokenizer.json has token ids up to {max(text_of, default=None)}, but config.json "
            f"says vocab_size {vocabulary}; they do not belong together"
        )
    tokens: list[str] = []
    types: list[int] = []
    for token_id in range(vocabulary):
        text = text_of.get(token_id)
        if text is None:
            tokens.append(f"[PAD{token_id}]")
            types.append(TokenType.UNUSED)
        elif text in added:
            text, kind = _converted(added[text])
            tokens.append(text)
            types.append(kind)
        else:
            tokens.append(text)
            types.append(TokenType.NORMAL)
    return {
        "tokenizer.ggml.model": meta("str", "gpt2"),
        "tokenizer.ggml.pre": meta("str", pre_tokenizer_name(tokenizer)),
        "tokenizer.ggml.tokens": meta("str", tokens),
        "tokenizer.ggml.token_type": meta("i32", types),
        "tokenizer.ggml.merges": meta("str", [_merge(pair) for pair in merges]),
    }


def _converted(token: AddedToken) -> tuple[str, TokenType]:
    """An added token as llama.cpp expects it: the text that it stands for, and its type."""
    text = token.text if token.normalized else _decoded(token.text)
    if token.special or _looks_special(text):
        return text, TokenType.CONTROL
    return text.replace("\u2581", " "), TokenType.USER_DEFINED


def _looks_special(text: str) -> bool:
    """Some models forget to mark their control tokens as special; these are meant so."""
    return text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]") or bool(
        re.fullmatch(r"<\|.*\|>|<\uff5c.*\uff5c>|<unused.*>", text, re.DOTALL)
    )


def _byte_of_character() -> dict[str, int]:
    """GPT-2's printable character of each byte, the other way round."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + i): byte for i, byte in enumerate(rest)}


_BYTE_OF = _byte_of_character()


def _decoded(text: str) -> str:
    """What a byte-level decoder makes of a token; text outside the byte alphabet stays."""
    if all(character in _BYTE_OF for character in text):
        return bytes(_BYTE_OF[c] for c in text).decode("utf-8", errors="replace")
    return text


def _merge(pair: object) -> str:
    """A merge as "left right"; older files store it so, newer as two strings."""
    match pair:
        case str(text):
            return text
        case [str(left), str(right)]:
            # A space inside a part would be taken for the separator: llama.cpp reads U+0120 for it.
            return f"{left.replace(' ', chr(0x120))} {right.replace(' ', chr(0x120))}"
        case _:
            raise InputError(f"tokenizer.json: {pair!r} is no merge; download it again")


def _sentencepiece(folder: Path, vocabulary: int) -> Metadata:
    """Model "llama": pieces, scores and types of tokenizer.model, then the added tokens."""
    tokens = [f"[PAD{i}]" for i in range(vocabulary)]
    scores = [-10000.0] * vocabulary
    types: list[int] = [TokenType.UNUSED] * vocabulary
    for token_id, piece in enumerate(read_pieces(folder / "tokenizer.model")[:vocabulary]):
        tokens[token_id], scores[token_id] = piece.text, piece.score
        # SentencePiece numbers its types like llama.cpp; user-defined pieces are found as normal.
        is_user_defined = piece.kind == TokenType.USER_DEFINED
        types[token_id] = TokenType.NORMAL if is_user_defined else piece.kind
    for token in _added_over_pieces(folder):
        token_id = token.token_id
        if not 0 <= token_id < vocabulary:
            continue  # llama.cpp's converter leaves these out too: no embedding row, no use.
        if token.special is None:
            tokens[token_id], types[token_id] = token.text, TokenType.USER_DEFINED
        else:
            tokens[token_id], types[token_id] = _converted(token)
        scores[token_id] = -1000.0
    return {
        "tokenizer.ggml.model": meta("str", "llama"),
        "tokenizer.ggml.pre": meta("str", "default"),
        "tokenizer.ggml.tokens": meta("str", tokens),
        "tokenizer.ggml.scores": meta("f32", scores),
        "tokenizer.ggml.token_type": meta("i32", types),
    }


def _added_over_pieces(folder: Path) -> list[AddedToken]:
    """Added tokens of both files that name them; the later entries win."""
    found = []
    for text, token_id in read_json(folder / "added_tokens.json", optional=True).items():
        if type(token_id) is not int:
            raise InputError(f"added_tokens.json: {text!r} has the id {token_id!r}")
        found.append(AddedToken(text, token_id, normalized=True))
    options = read_json(folder / "tokenizer_config.json", optional=True)
    for key, entry in (options.get("added_tokens_decoder") or {}).items():
        match entry:
            case {"content": str(text), **rest} if key.isdecimal():
                # Pieces are text already: there is nothing to decode.
                special = bool(rest.get("special"))
                found.append(AddedToken(text, int(key), special, normalized=True))
            case _:
                raise InputError(f"tokenizer_config.json: {key!r}: {entry!r} is no added token")
    return found
