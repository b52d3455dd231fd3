"""The pieces of a SentencePiece `tokenizer.model`, without the sentencepiece library.

The file is a protocol buffer (sentencepiece_model.proto): field 1 of the message repeats for every
piece {1: text, 2: score as F32, 3: type}. Nothing else in it is needed for a GGUF.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from quantkit.errors import InputError

_NORMAL = 1


@dataclass(frozen=True)
class Piece:
    """One piece; `kind` is SentencePiece's type: 1 normal, 2 unknown, 3 control, … 6 byte."""

    text: str
    score: float
    kind: int


def read_pieces(path: Path) -> list[Piece]:
    """All pieces in the order of their ids.

    Raises:
        InputError: the file cannot be read or is no SentencePiece model.
    """
    try:
        message = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    try:
        pieces = [
            _piece(value)
            for number, value in _fields(message)
            if number == 1 and isinstance(value, bytes)
        ]
    except (ValueError, IndexError, struct.error) as error:
        raise InputError(
            f"{path} is no SentencePiece model ({error}); download it again"
        ) from error
    if not pieces:
        raise InputError(f"{path} holds no pieces; download it again")
    return pieces


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
