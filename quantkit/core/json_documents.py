"""JSON files with one schema each: the class that writes a file also reads and validates it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from quantkit.core.errors import InputError
from quantkit.core.files import write_text
from quantkit.core.printable import shown

MOST_DIGITS = 19
"""Of a whole number: JSON allows thousands, which no float holds and no message should print."""


class Record(BaseModel):
    """A part of a document: frozen, without conversions between types or unknown fields."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", ser_json_inf_nan="constants"
    )


class JsonDocument(Record):
    """A whole JSON file.

    A subclass declares `version: Literal[N] = N` and raises N when a reader of the earlier form
    would misunderstand the file.

    Attributes:
        unversioned: the version of files that have no version field; None: there are none.
    """

    unversioned: ClassVar[int | None] = None
    version: int

    def write(self, path: Path) -> None:
        """Write the document to `path` atomically."""
        write_text(path, self.text())

    def text(self) -> str:
        """The file's content."""
        return self.model_dump_json(indent=1) + "\n"

    @classmethod
    def read(cls, path: Path) -> Self:
        """The document in the file `path`.

        Raises:
            InputError: it cannot be read, is damaged, or has another version.
        """
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from None
        return cls.parse(content, str(path))

    @classmethod
    def parse(cls, content: bytes, name: str) -> Self:
        """The document in `content`, which errors call `name`.

        Raises:
            InputError: it is damaged, or has another version.
        """
        found = bounded_json(content, name)
        expected = cls.model_fields["version"].default
        if isinstance(found, dict) and found.get("version", cls.unversioned) != expected:
            raise InputError(
                f"{name} has format version {shown(str(found.get('version', 'none')))}, and this "
                f"version of quantkit reads {expected}: make it again"
            )
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            raise InputError(f"{name} is damaged: {first_problem(error)}") from None


def first_problem(error: ValidationError) -> str:
    """The first place that is wrong and why, and how many more there are."""
    problems = error.errors(include_url=False, include_input=False)
    first = problems[0]
    place = shown(".".join(map(str, first["loc"]))) or "the file"
    more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
    return f"{place}: {first['msg']}{more}"


def bounded_json(content: bytes, name: str) -> Any:  # noqa: ANN401 - any JSON
    """The value in `content`, which errors call `name`.

    Raises:
        InputError: it is not JSON, or a whole number has more than `MOST_DIGITS` digits.
    """
    try:
        return json.loads(content, parse_int=_bounded)
    except (ValueError, RecursionError) as reason:
        raise InputError(f"{name} is not valid JSON: {reason}") from None


def _bounded(digits: str) -> int:
    if len(digits.lstrip("-")) > MOST_DIGITS:
        raise ValueError(f"a whole number of more than {MOST_DIGITS} digits")
    return int(digits)
