"""The texts of a file that is to be published.

GGUF files are read up to their tensors, pictures up to their metadata. Any other file is text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from quantkit.core.errors import InputError
from quantkit.formats.gguf_file import GGUFFile
from quantkit.formats.gguf_header import MAGIC

_PNG = b"\x89PNG\r\n\x1a\n"
_DATA_URL = re.compile(r"data:[\w/+.-]+(?:;[\w=-]+)*;base64,[A-Za-z0-9+/]*=*")
"""Pictures in the report: each is published as a file too, and searched there."""


@dataclass(frozen=True)
class SearchableText:
    """A text of one file.

    Attributes:
        where: a GGUF key or a field of a picture; empty for the lines of a text file.
    """

    text: str
    where: str = ""

    @property
    def is_from_checkpoint(self) -> bool:
        """Whether it is a chat template or vocabulary, which may hold any words."""
        return self.where.startswith("tokenizer.")

    def place(self, offset: int) -> str:
        """Where the character at `offset` is, for people."""
        return self.where or f"line {self.text.count(chr(10), 0, offset) + 1}"


def searchable_texts(path: Path) -> Iterator[SearchableText]:
    """All texts of the file at `path`.

    Raises:
        InputError: it cannot be read, or is a broken GGUF or PNG file.
    """
    try:
        with path.open("rb") as file:
            head = file.read(len(_PNG))
        if head.startswith(MAGIC):
            yield from _metadata_of_gguf(path)
        elif head == _PNG:
            yield from _metadata_of_png(path)
        else:
            text = path.read_bytes().decode("utf-8", errors="replace")
            yield SearchableText(_DATA_URL.sub("data:", text))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None


def _metadata_of_gguf(path: Path) -> Iterator[SearchableText]:
    for key, stored in GGUFFile(path).metadata.items():
        yield SearchableText(key, f"the key {key}")
        if stored.kind == "str":
            values = stored.value if isinstance(stored.value, tuple) else (stored.value,)
            yield SearchableText("\n".join(map(str, values)), key)


def _metadata_of_png(path: Path) -> Iterator[SearchableText]:
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()  # texts may follow the pixels
            fields = image.info
    except (SyntaxError, ValueError) as error:
        raise InputError(f"{path} is not a readable PNG ({error}); draw it again") from None
    for key, value in fields.items():
        text = value.decode("latin-1") if isinstance(value, bytes) else str(value)
        yield SearchableText(f"{key}: {text}", str(key))
