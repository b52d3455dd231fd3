"""What can be read of a file that is to be published: its texts, and the place of each.

GGUF files are read as far as their header, pictures as far as their text chunks. All else is text.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import struct
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Literal

from quantkit.core.errors import InputError
from quantkit.formats.gguf_file import GGUFFile
from quantkit.formats.gguf_header import MAGIC

Voice = Literal["builder", "page", "model", "checkpoint"]
_PNG = b"\x89PNG\r\n\x1a\n"
_CHECKPOINT_KEYS = "tokenizer."
"""Chat template and vocabulary come from the checkpoint, and hold anything that people write."""
_ANSWER = "answer"
"""In a line of niah.jsonl; the other fields are quantkit's."""
_PAGES = (".html", ".md")
_DATA_URL = re.compile(r"data:(?P<type>[\w/+.-]+)(?:;[\w=-]+)*;base64,(?P<data>[A-Za-z0-9+/]*=*)")
_MOST_PICTURE_TEXT_BYTES = 1 << 20


@dataclass(frozen=True)
class Passage:
    """Texts of one file that are searched together.

    Attributes:
        text: the pieces, one a line; a piece may have lines of its own.
        starts: where in `text` each piece begins.
        place: number of a piece → a line, a JSON path, a GGUF key.
        voice: whose words they are: those of whoever builds and of quantkit; a page's, which may
            quote a model's answers; a model's answers; or what came with the checkpoint.
    """

    text: str
    starts: Sequence[int]
    place: Callable[[int], str]
    voice: Voice = "builder"

    def at(self, offset: int) -> str:
        """The place of the piece that holds character `offset`."""
        return self.place(bisect_right(self.starts, offset) - 1)


def passages(path: Path, name: str) -> Iterator[Passage]:
    """All that can be read of the file at `path`, which is called `name` in the release.

    Raises:
        InputError: it cannot be read, or is a broken GGUF or PNG file.
    """
    try:
        with path.open("rb") as file:
            head = file.read(len(_PNG))
        if head.startswith(MAGIC):
            yield from _gguf(path)
            return
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    if head == _PNG:
        yield _joined(_picture_texts(content, name))
        return
    text = content.decode("utf-8", errors="replace")
    structured = _structured(text, name)
    yield from _text(text, name) if structured is None else structured


def _joined(pieces: Iterable[tuple[str, str]], voice: Voice = "builder") -> Passage:
    """A passage of (place, text)."""
    places, texts = [], []
    for place, text in pieces:
        places.append(place)
        texts.append(text)
    return _listed(texts, places.__getitem__, voice)


def _listed(texts: Sequence[str], place: Callable[[int], str], voice: Voice) -> Passage:
    starts = list(accumulate((len(text) + 1 for text in texts), initial=0))
    return Passage("\n".join(texts), starts[:-1] or [0], place, voice)


def _gguf(path: Path) -> Iterator[Passage]:
    own: list[tuple[str, str]] = []
    for key, stored in GGUFFile(path).metadata.items():
        value = stored.value
        if isinstance(value, tuple):
            own.append((key, key))
            if stored.kind == "str":
                yield _listed(list(map(str, value)), _member_of(key), _voice_of(key))
        elif _voice_of(key) == "checkpoint":
            yield _joined([(key, f"{key}: {value}")], "checkpoint")
        else:
            own.append((key, f"{key}: {value}"))
    yield _joined(own)


def _voice_of(key: str) -> Voice:
    return "checkpoint" if key.startswith(_CHECKPOINT_KEYS) else "builder"


def _member_of(key: str) -> Callable[[int], str]:
    return lambda number: f"{key}[{number}]"


class _Pairs(list[tuple[str, object]]):
    """An object of JSON with all of its pairs, also those of a key that is there twice."""


def _structured(text: str, name: str) -> Iterator[Passage] | None:
    """The strings of JSON, unescaped; None for what is no JSON and is read as text."""
    try:
        if name.endswith(".json"):
            content = json.loads(text, object_pairs_hook=_Pairs)
            return iter([_joined(_strings(content))])
        if name.endswith(".jsonl"):
            lines = text.split("\n")
            records = [json.loads(x, object_pairs_hook=_Pairs) if x.strip() else 0 for x in lines]
            return _records(records)
    except (ValueError, RecursionError):
        pass
    return None


def _records(records: Sequence[object]) -> Iterator[Passage]:
    """A string that is there again, such as a key, counts where it is first."""
    answers, others = dict[str, str](), dict[str, str]()
    for number, record in enumerate(records, 1):
        answered, rest = _Pairs(), record
        if isinstance(record, _Pairs):
            answered = _Pairs(pair for pair in record if pair[0] == _ANSWER)
            rest = _Pairs(pair for pair in record if pair[0] != _ANSWER)
        for pieces, part in ((answers, answered), (others, rest)):
            for place, text in _strings(part):
                if text not in pieces:
                    pieces[text] = f"line {number}: {place}"
    yield _listed(list(answers), list(answers.values()).__getitem__, "model")
    yield _listed(list(others), list(others.values()).__getitem__, "builder")


def _strings(value: object, path: str = "") -> Iterator[tuple[str, str]]:
    """(path, `key: value`) of all strings and keys below `value`."""
    if isinstance(value, _Pairs):
        for key, member in value:
            below = f"{path}.{key}" if path else key
            if isinstance(member, str):
                yield below, f"{key}: {member}"
            else:
                yield below, key
                yield from _strings(member, below)
    elif isinstance(value, list):
        for number, member in enumerate(value):
            yield from _strings(member, f"{path}[{number}]")
    elif isinstance(value, str):
        yield path, value


def _text(text: str, name: str) -> Iterator[Passage]:
    """Lines, and the texts of pictures that lie in them; their data is left out."""
    pictures = []
    for match in _DATA_URL.finditer(text):
        if match["type"] != "image/png" or not match["data"]:
            continue
        try:
            content = base64.b64decode(match["data"], validate=True)
        except binascii.Error as error:
            raise InputError(f"{name} has a picture that is no base64: {error}") from None
        line = text.count("\n", 0, match.start()) + 1
        found = _picture_texts(content, f"a picture in line {line} of {name}")
        pictures += [(f"line {line}, picture, {place}", words) for place, words in found]
    plain = _DATA_URL.sub("data:", text)
    voice: Voice = "page" if name.endswith(_PAGES) else "builder"
    yield _listed(plain.split("\n"), lambda number: f"line {number + 1}", voice)
    if pictures:
        yield _joined(pictures)


def _picture_texts(content: bytes, name: str) -> Iterator[tuple[str, str]]:
    """(chunk and keyword, text) of the chunks tEXt, zTXt, iTXt and eXIf of a PNG.

    Raises:
        InputError: it is cut short, or a text is broken.
    """
    at = len(_PNG)
    if content[:at] != _PNG:
        raise InputError(f"{name} is no PNG; draw it again")
    while True:
        if at + 12 > len(content):
            raise InputError(f"{name} is cut short: the picture has no end; draw it again")
        size, kind = struct.unpack_from(">I4s", content, at)
        body = content[at + 8 : at + 8 + size]
        if kind == b"IEND":
            return
        try:
            yield from _chunk_text(kind, body)
        except (ValueError, zlib.error) as error:
            raise InputError(
                f"{name} has a broken text, {kind.decode('latin-1')} at byte {at}: {error}; draw "
                "it again"
            ) from None
        at += 12 + size


def _chunk_text(kind: bytes, body: bytes) -> Iterator[tuple[str, str]]:
    """PNG specification, third edition, section 11.3."""
    if kind == b"eXIf":
        yield "eXIf", body.decode("latin-1")
    if kind not in (b"tEXt", b"zTXt", b"iTXt"):
        return
    keyword, rest = body.split(b"\0", 1)
    encoding = "latin-1"
    if kind == b"zTXt":
        rest = _inflated(rest[1:])
    if kind == b"iTXt":
        encoding, compressed = "utf-8", rest[0]
        language, translated, rest = rest[2:].split(b"\0", 2)
        rest = _inflated(rest) if compressed else rest
        rest = b" ".join((language, translated, rest))
    name = keyword.decode("latin-1")
    yield f"{kind.decode()} {name}", f"{name}: {rest.decode(encoding, errors='replace')}"


def _inflated(data: bytes) -> bytes:
    inflater = zlib.decompressobj()
    found = inflater.decompress(data, _MOST_PICTURE_TEXT_BYTES)
    if inflater.unconsumed_tail:
        raise ValueError(f"more than {_MOST_PICTURE_TEXT_BYTES} bytes of text")
    return found
