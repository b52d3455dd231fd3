"""release.json: what a release consists of, and what it was made from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from quantkit.core.json_documents import JsonDocument, Record


class ReleasedLevel(Record):
    """A level of a release.

    Attributes:
        files: its GGUF files, the first shard first.
        evidence: the folder of its allocation.json, validation.json and niah.jsonl.
    """

    files: tuple[str, ...] = Field(min_length=1)
    evidence: str
    passed: bool
    baseline: bool
    size_bytes: int = Field(ge=0)
    bits_per_weight: float = Field(ge=0, le=64)


class ReleaseSource(Record):
    """The model on the Hub that a release was made from; None where it is not known."""

    repository: str | None = None
    commit: str | None = None


class Manifest(JsonDocument):
    """release.json.

    Attributes:
        model: what artifacts are called after.
        mtp: whether prediction layers are in the artifacts.
        imatrix: the importance matrix's file.
        versions: program or package → the version that it was made with.
    """

    version: Literal[2] = 2
    model: str
    architecture: str
    parameters: int = Field(ge=0)
    source: ReleaseSource
    mtp: Literal["drop", "keep"]
    imatrix: str
    versions: dict[str, str]
    levels: dict[str, ReleasedLevel]
