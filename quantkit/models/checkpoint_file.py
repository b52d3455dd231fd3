"""checkpoint.json: the files of a model that a build was made from."""

from __future__ import annotations

from typing import Literal

from quantkit.core.documents import JsonDocument, Record

CHECKPOINT_FILE = "checkpoint.json"


class SourceFile(Record):
    """A file of the model."""

    size_bytes: int
    sha256: str


class CheckpointFile(JsonDocument):
    """checkpoint.json.

    Attributes:
        model: OWNER/NAME[@REVISION], or a name.
        commit: of the repository; None where the model came from this disk.
        files: by name.
    """

    unversioned = 1
    version: Literal[1] = 1
    model: str
    commit: str | None
    files: dict[str, SourceFile]
