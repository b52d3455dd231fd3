"""The pieces of a SentencePiece `tokenizer.model`, without the sentencepiece library.

The file is a protocol buffer (sentencepiece_model.proto): field 1 of the message repeats for every
piece {1: text, 2: score as F32, 3: type}; field 2 says how it was trained {3: model type}; field 3
how text is prepared {3: whether a space is put before it}. Nothing else in it fits into a GGUF.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from quantkit.core.errors import InputError

_NORMAL = 1
_MODEL_TYPES = {1: "Unigram", 2: "BPE", 3: "word", 4: "character"}


@dataclass(frozen=True)
class Piece:
    """One piece; `kind` is SentencePiece's type: 1 normal, 2 unknown, 3 control, … 6 byte."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True)
class SentencePieceModel:
    """All pieces in the order of their ids; `adds_space`: a space is put before every text."""

    pieces: tuple[Piece, ...]
    adds_space: bool


def read_model(path: Path) -> SentencePieceModel:
    """The BPE model in `path`.

    Raises:
        InputError: the file cannot be read, is no SentencePiece model, or no BPE.
    """
    try:
        message = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    pieces, kind, adds_space = [], "BPE", True
    try:
        for number, value in _fields(message):
            match number, value:
                case 1, bytes(piece):
                    pieces.append(_piece(piece))
                case 2, bytes(training):
                    kind = _MODEL_TYPES.get(_option(training, 3, default=1), "unknown")
                case 3, bytes(normalizer):
                    adds_space = bool(_option(normalizer, 3, default=1))
    except (ValueError, IndexError, struct.error) as error:
        raise InputError(
            f"{path} is no SentencePiece model ({error}); download it again"
        ) from error
    if not pieces:
        raise InputError(f"{path} holds no pieces; download it again")
    if kind != "BPE":
        raise InputError(
            f"{path} is a SentencePiece model of type {kind}, only BPE is converted; convert the "
            "model with llama.cpp and give the GGUF to --model"
        )
    return SentencePieceModel(tuple(pieces), adds_space)


def _option(message: bytes, number: int, default: int) -> int:
    """The last whole number of that field, as protocol buffers have it."""
    found = [value for field, value in _fields(message) if field == number]
    return found[-1] if found and isinstance(found[-1], int) else default


def _piece(message: bytes) -> Piece:
    text, score, kind = "", 0.0, _NORMAL
    for number, value in _fields(message):
        match number, value:
            case 1, bytes(raw):
                text = raw.decode("utf-8")
            case 2, bytes(raw):
                (score,) = struct.unpack("<f", raw)
            case 3, int(kind):
                pass
    return Piece(text, score, kind)


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of a protocol buffer message; fixed-width values stay bytes."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        match tag & 7:
            case 0:
                value, position = _varint(message, position)
                yield tag >> 3, value
                continue
            case 1:
                size = 8
            case 2:
                size, position = _varint(message, position)
            case 5:
                size = 4
            case wire:
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
