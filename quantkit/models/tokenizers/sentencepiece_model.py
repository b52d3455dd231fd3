"""The pieces of a SentencePiece `tokenizer.model`, without the sentencepiece library (ADR 16).

The file is a protocol buffer (sentencepiece_model.proto): field 1 of the message repeats for every
piece {1: text, 2: score as F32, 3: type}; field 2 says how it was trained {3: model type}; field 3
how text is prepared {3: whether a space is put before it}. Nothing else in it fits into a GGUF.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from quantkit.core.errors import InputError

_MODEL_TYPES = {1: "Unigram", 2: "BPE", 3: "word", 4: "character"}


class Piece(NamedTuple):
    """One piece; `kind` is SentencePiece's type: 1 normal, 2 unknown, 3 control, … 6 byte."""

    text: str
    score: float
    kind: int


class SentencePieceModel(NamedTuple):
    """All pieces in the order of their ids; `adds_space`: a space is put before every text."""

    pieces: tuple[Piece, ...]
    adds_space: bool


def read_model(path: Path) -> SentencePieceModel:
    """The BPE model in `path`.

    Raises:
        InputError: the file cannot be read, is no SentencePiece model, or no BPE.
    """
    try:
        fields = list(_fields(path.read_bytes()))
        pieces = tuple(_piece(value) for number, value in fields if number == 1)
        training, preparation = (
            dict(_fields(b"".join(value for number, value in fields if number == wanted)))
            for wanted in (2, 3)
        )
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, AttributeError, IndexError, struct.error) as error:
        raise InputError(
            f"{path} is no SentencePiece model ({error}); download it again"
        ) from error
    kind = _MODEL_TYPES.get(training.get(3, 1 if training else 2), "unknown")
    if kind != "BPE" or not pieces:
        raise InputError(
            f"{path} holds {len(pieces)} pieces of a model of type {kind}; only BPE is converted: "
            "convert the model with llama.cpp and give the GGUF to --model"
        )
    return SentencePieceModel(pieces, bool(preparation.get(3, 1)))


def _piece(message: Any) -> Piece:  # noqa: ANN401 - what is no bytes raises TypeError
    values = dict(_fields(message))
    (score,) = struct.unpack("<f", values.get(2, bytes(4)))
    return Piece(values.get(1, b"").decode("utf-8"), score, int(values.get(3, 1)))


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
