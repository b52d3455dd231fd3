"""What a release's JSON says, read strictly: anybody may have written it.

Only what is verified is read; other keys are left alone.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
)

from quantkit.core.errors import InputError
from quantkit.retrieval.results import Answer, TaskScore

PROBLEMS_SHOWN = 3
NAME_SHOWN = 120
LARGEST = (1 << 63) - 1
"""Of whole numbers: JSON allows thousands of digits, which no float holds and no screen."""

Count = Annotated[int, Field(ge=0, le=LARGEST)]
_Scored = TypeVar("_Scored", Answer, TaskScore)


def _bounded(value: _Scored) -> _Scored:
    for name, number in vars(value).items():
        if isinstance(number, int) and abs(number) > LARGEST:
            raise ValueError(f"{name} has more digits than any whole number that quantkit writes")
    return value


class _Claims(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class LevelClaims(_Claims):
    """A level in release.json; `evidence` is the folder of its allocation and validation."""

    files: tuple[str, ...] = Field(min_length=1)
    evidence: str
    passed: bool
    baseline: bool = False
    size_bytes: Count
    bits_per_weight: float = Field(ge=0, le=64)


class SourceClaims(_Claims):
    """What release.json says it was made from; on the Hub, or nothing."""

    repository: str | None
    commit: str | None


class ReleaseClaims(_Claims):
    """release.json."""

    format: Literal[1]
    model: str
    architecture: str
    parameters: Count
    source: SourceClaims
    mtp: Literal["drop", "keep"]
    imatrix: str
    versions: dict[str, str]
    levels: dict[str, LevelClaims] = Field(min_length=1)


class TensorClaims(_Claims):
    """A tensor in allocation.json."""

    type: str
    bytes: Count


class AllocationClaims(_Claims):
    """allocation.json; `preset` is the stock preset whose types it has."""

    total_bytes: Count
    preset: str | None
    tensors: dict[str, TensorClaims]


class RetrievalClaims(_Claims):
    """The section `niah` of validation.json."""

    mode: str
    context_tokens: Count
    trials: Count
    hits: Count
    lower_bound: float
    confidence: float
    minimum_lower_bound: float | None = Field(ge=0, le=1)
    gate: tuple[str, ...]
    clustered: bool
    thinking: bool
    tasks: tuple[Annotated[TaskScore, AfterValidator(_bounded)], ...] = Field(min_length=1)


class ValidationClaims(_Claims):
    """validation.json.

    Attributes:
        artifact: name of each file that was asked, without folder → its SHA-256; None where a
            check does not say, as older ones and `quantkit niah`.
    """

    passed: bool
    niah: RetrievalClaims
    artifact: dict[str, str] | None = None


class FileClaims(_Claims):
    """A file in checkpoint.json."""

    size_bytes: Count
    sha256: str


class CheckpointClaims(_Claims):
    """checkpoint.json: the files of what the release was made from."""

    model: str
    commit: str | None
    files: dict[str, FileClaims]


_ANSWER: TypeAdapter[Answer] = TypeAdapter(Annotated[Answer, AfterValidator(_bounded)])
ClaimsT = TypeVar("ClaimsT", bound=BaseModel)


def parse_claims(kind: type[ClaimsT], content: bytes, name: str) -> ClaimsT:
    """The JSON in `content` as a `kind`.

    Args:
        name: of the file, for messages.

    Raises:
        InputError: it is no JSON, or a key is missing or of another type; names file and key.
    """
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        raise InputError(_problems(error, name)) from None


def parse_answers(content: bytes, name: str) -> list[Answer]:
    """The answers in the lines of a niah.jsonl.

    Raises:
        InputError: a line is no answer; names file, line and key.
    """
    answers = []
    for number, line in enumerate(content.split(b"\n"), 1):
        if line:
            try:
                answers.append(_ANSWER.validate_json(line, strict=True))
            except ValidationError as error:
                raise InputError(_problems(error, f"{name}, line {number}")) from None
    return answers


def _problems(error: ValidationError, name: str) -> str:
    found = [
        f"{'.'.join(shown(str(key)) for key in item['loc']) or 'the file'}: {item['msg']}"
        for item in error.errors(include_url=False, include_input=False)
    ]
    more = f"; and {len(found) - PROBLEMS_SHOWN} more" if len(found) > PROBLEMS_SHOWN else ""
    return f"{name}: {'; '.join(found[:PROBLEMS_SHOWN])}{more}"


def shown(name: str) -> str:
    """A name that a stranger chose, fit for a terminal: short, and without control characters."""
    plain = printable(name[:NAME_SHOWN])
    return plain if len(name) <= NAME_SHOWN else plain + "…"


def printable(text: str) -> str:
    """`text` with control characters and half surrogates written as their codes."""
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)
