"""A SentencePiece tokenizer.model as GGUF metadata: llama.cpp's model "llama" (ADR 16).

The file is a protocol buffer (sentencepiece_model.proto): field 1 of the message repeats for every
piece {1: text, 2: score as F32, 3: type}; field 2 says how it was trained {3: model type}; field 3
how text is prepared {3: whether a space is put before it}. Nothing else in it fits into a GGUF.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quantkit.core.errors import InputError
from quantkit.core.parsing import MOST_JSON_BYTES, read_bounded
from quantkit.formats.tensors import Metadata
from quantkit.models.families.base import Config, meta
from quantkit.models.json_files import read_json
from quantkit.models.tokenizers.token_types import TokenType, converted, refuse_unreadable
from quantkit.models.transformers_reader import AddedToken, LoadedTokenizer, load_tokenizer

_MODEL_TYPES = {1: "Unigram", 2: "BPE", 3: "word", 4: "character"}


def sentencepiece_metadata(
    folder: Path, config: Config, rows: int
) -> tuple[Metadata, LoadedTokenizer]:
    """Pieces, scores and types of tokenizer.model, then the added tokens; and the tokenizer.

    Scores and types are those of llama.cpp's converter. What it does not know of, tokens that are
    special by other files than its own two, becomes a control token.
    """
    tokens = [f"[PAD{i}]" for i in range(rows)]
    scores = [-10000.0] * rows
    types: list[int] = [TokenType.UNUSED] * rows
    pieces, adds_space = _model(folder / "tokenizer.model")
    for token_id, (text, score, kind) in enumerate(pieces[:rows]):
        tokens[token_id], scores[token_id] = text, score
        # SentencePiece numbers its types like llama.cpp; user-defined pieces are found as normal.
        types[token_id] = TokenType.NORMAL if kind == TokenType.USER_DEFINED else kind
    ids = {text: token_id for token_id, (text, _, _) in enumerate(pieces)}
    listed = dict(_listed(folder))
    ids |= {token.text: token_id for token_id, token in listed.items()}
    tokenizer = load_tokenizer(folder, config, ids)
    special = {
        token_id: token
        for token_id, token in tokenizer.added.items()
        if token_id not in listed
        and token_id < rows
        and token.special
        and types[token_id] in (TokenType.NORMAL, TokenType.UNUSED)
    }
    for token_id, token in (listed | special).items():
        if 0 <= token_id < rows:  # llama.cpp's converter leaves the others out: they have no row
            plain = token.special is None
            text, kind = (token.text, TokenType.USER_DEFINED) if plain else converted(token)
            tokens[token_id], types[token_id], scores[token_id] = text, kind, -1000.0
    refuse_unreadable(tokens)
    result = {
        "tokenizer.ggml.model": meta("str", "llama"),
        "tokenizer.ggml.pre": meta("str", "default"),
        "tokenizer.ggml.tokens": meta("str", tokens),
        "tokenizer.ggml.scores": meta("f32", scores),
        "tokenizer.ggml.token_type": meta("i32", types),
    }
    if not adds_space:  # Absent, llama.cpp adds one.
        result["tokenizer.ggml.add_space_prefix"] = meta("bool", False)
    return result, tokenizer


def _listed(folder: Path) -> Iterator[tuple[int, AddedToken]]:
    """The added tokens of the two files that llama.cpp's converter reads; later entries win."""
    for text, token_id in read_json(folder / "added_tokens.json", optional=True).items():
        if type(token_id) is not int or not 0 <= token_id < 1 << 31:
            raise InputError(f"added_tokens.json: {text!r} has the id {token_id!r}")
        yield token_id, AddedToken(text, text, normalized=True)
    options = read_json(folder / "tokenizer_config.json", optional=True)
    for key, entry in (options.get("added_tokens_decoder") or {}).items():
        match entry:
            case {"content": str(text), **rest} if key.isdecimal() and len(key) < 10:
                yield int(key), AddedToken(text, text, bool(rest.get("special")), normalized=True)
            case _:
                raise InputError(f"tokenizer_config.json: {key!r}: {entry!r} is no added token")


def _model(path: Path) -> tuple[list[tuple[str, float, int]], bool]:
    """Text, score and type of each piece of a BPE, and whether texts get a space before them."""
    try:
        fields = list(_fields(read_bounded(path, MOST_JSON_BYTES)))
        pieces = [_piece(value) for number, value in fields if number == 1]
        training, preparation = (
            dict(_fields(b"".join(value for number, value in fields if number == wanted)))
            for wanted in (2, 3)
        )
    except (ValueError, TypeError, AttributeError, IndexError, struct.error) as error:
        raise InputError(
            f"{path} is no SentencePiece model ({error}); download it again"
        ) from error
    if not pieces:
        raise InputError(f"{path} is no SentencePiece model (no pieces); download it again")
    kind = _MODEL_TYPES.get(training.get(3, 1 if training else 2), "unknown")
    if kind != "BPE":
        raise InputError(
            f"{path} holds {len(pieces)} pieces of a model of type {kind}; only BPE is converted: "
            "convert the model with llama.cpp and give the GGUF to --model"
        )
    return pieces, bool(preparation.get(3, 1))


def _piece(message: Any) -> tuple[str, float, int]:  # noqa: ANN401 - a number raises TypeError
    values = dict(_fields(message))
    (score,) = struct.unpack("<f", values.get(2, bytes(4)))
    return values.get(1, b"").decode("utf-8"), score, int(values.get(3, 1))


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """(field number, value) of a protocol buffer message; only a varint's value is a number."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        wire = tag & 7
        if wire == 0:
            value, position = _varint(message, position)
            yield tag >> 3, value
            continue
        if wire == 2:
            size, position = _varint(message, position)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {position}")
        if position + size > len(message):
            raise ValueError(f"a field at byte {position} runs past the end")
        yield tag >> 3, message[position : position + size]
        position += size


def _varint(message: bytes, position: int) -> tuple[int, int]:
    """The variable-length integer at `position`, and the position after it."""
    value = 0
    for shift in range(0, 64, 7):
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError(f"a number at byte {position} is too long")
