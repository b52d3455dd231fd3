"""JSON and YAML files as validated models; errors name the file and the field."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from quantkit.core.errors import InputError
from quantkit.core.files import without_controls, write_text
from quantkit.core.parsing import (
    MOST_JSON_BYTES,
    MOST_YAML_BYTES,
    bounded_json,
    bounded_yaml,
    read_bounded,
)
from quantkit.core.units import shown

Amount = Annotated[FiniteFloat, Field(ge=0)]
"""A finite number that is not negative: JSON's readers know NaN and infinities."""


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
        return without_controls(self.model_dump_json(indent=1)) + "\n"

    @classmethod
    def read(cls, path: Path) -> Self:
        """The document in the file `path`.

        Raises:
            InputError: it cannot be read, is damaged, or has another version.
        """
        return cls.parse(read_bounded(path, MOST_JSON_BYTES), str(path))

    @classmethod
    def parse(cls, content: bytes, name: str) -> Self:
        """The document in `content`, which errors call `name`.

        Raises:
            InputError: it is damaged, or has another version.
        """
        found = bounded_json(content, name)
        expected = cls.model_fields["version"].default
        version = found.get("version", cls.unversioned) if isinstance(found, dict) else expected
        if version != expected:
            newer = isinstance(version, int) and version > expected
            advice = "install a newer one" if newer else "make it again, or use an older one"
            raise InputError(
                f"{name} has format version {shown(str(found.get('version', 'none')))}, and this "
                f"version of quantkit reads {expected}: {advice}"
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


class Strict(BaseModel):
    """A section of a file: frozen, and an unknown field is a mistake that is named.

    Numbers are finite: pydantic would read the text "inf" as one that is larger than any limit.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


ModelT = TypeVar("ModelT", bound=BaseModel)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        InputError: the file cannot be read, is not YAML, or is not a mapping.
    """
    content = bounded_yaml(read_bounded(path, MOST_YAML_BYTES), str(path))
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold a mapping of fields, not {type(content).__name__}")
    return content


def validated(model: type[ModelT], content: dict[str, Any], path: Path) -> ModelT:
    """`content` as a `model`.

    Raises:
        InputError: a field is missing, unknown or out of range; all are named.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, item['loc'])) or 'the file'}: {item['msg']}"
            for item in error.errors()
        )
        raise InputError(f"{path}: {problems}") from None
