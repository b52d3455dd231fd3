"""Files of rows: JSON Lines and Parquet, each row a conversation or a text.

Other than the rows themselves nothing decides what becomes of them: the same rows are the same
conversations and texts in both formats. Parquet gives every message all the keys that any has, so
keys without a value are taken for keys that are not there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.core.errors import InputError
from quantkit.models.chat_template import Message

ROW_ENDINGS = (".jsonl", ".parquet")
BATCH_ROWS = 512
"""Rows of a Parquet file that are in memory at a time."""
_CONVERSATIONS = ("messages", "conversations")
_TEXTS = ("text", "content")
_TOOLS = "tools"
_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "function": "tool",
}
"""Who speaks in ShareGPT's `from` → role."""
_SHOWN_COLUMNS = 20


@dataclass(frozen=True)
class Conversation:
    """Messages with a role and content each, and the tools that they may call."""

    messages: list[Message]
    tools: list[Any] | None = None


Row = Conversation | str
"""A conversation, or a text."""


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a file whose ending is one of ROW_ENDINGS, in order.

    Raises:
        InputError: the file cannot be read, or a row is neither a conversation nor a text; names
            the row and its columns. For Parquet also: pyarrow is not installed.
    """
    return _parquet_rows(path) if path.suffix == ".parquet" else _json_rows(path)


def parse_row(row: object, where: str, columns: Sequence[str]) -> Row:
    """What a row holds: the first of messages, conversations, text, content that has a value.

    Args:
        row: an object, column → value, or a list of messages.
        where: the file and the row, for errors.
        columns: all that the row has, for errors.

    Raises:
        InputError: it is neither a conversation nor a text.
    """
    if isinstance(row, list):
        return Conversation(_messages(row, where))
    if isinstance(row, dict):
        for column in _CONVERSATIONS:
            if row.get(column) is not None:
                return Conversation(_messages(row[column], where), _tools(row.get(_TOOLS), where))
        for column in _TEXTS:
            if isinstance(row.get(column), str):
                return _encodable(row[column])
    raise InputError(
        f"{where} is neither a conversation (messages, conversations) nor a text (text, content)"
        + (f": it has the columns {_shown(columns)}" if columns else "")
    )


def _json_rows(path: Path) -> Iterator[Row]:
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise InputError(f"{path}, line {number} is not JSON: {error}") from None
                columns = list(row) if isinstance(row, dict) else []
                yield parse_row(row, f"{path}, line {number}", columns)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the calibration rows {path}: {error}") from None


def _parquet_rows(path: Path) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InputError(
            f"{path} is Parquet, which needs pyarrow: pip install 'quantkit-gguf[parquet]'"
        ) from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            wanted = [name for name in (*_CONVERSATIONS, _TOOLS, *_TEXTS) if name in columns]
            if not set(wanted) - {_TOOLS}:
                parse_row({}, f"{path}, row 1", columns)
            number = 0
            for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=wanted):
                for row in batch.to_pylist():
                    number += 1
                    yield parse_row(row, f"{path}, row {number}", columns)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"cannot read the calibration rows {path}: {reason}") from None


def _messages(value: object, where: str) -> list[Message]:
    if not isinstance(value, list):
        raise InputError(f"{where} holds {type(value).__name__} where a list of messages should be")
    return [_message(item, where) for item in value]


def _message(item: object, where: str) -> Message:
    """A message in the words of chat templates: role and content; others stay as they are."""
    if isinstance(item, dict):
        if isinstance(item.get("role"), str):
            return {"content": "", **_valued(item)}
        speaker, said = item.get("from"), item.get("value")
        if isinstance(speaker, str) and isinstance(said, str | None):
            if speaker not in _ROLES:
                raise InputError(
                    f"{where} has a message from {speaker!r}; known are {', '.join(_ROLES)}"
                )
            return {"role": _ROLES[speaker], "content": _encodable(said or "")}
    raise InputError(
        f"{where} has a message with neither role and content nor from and value"
        + (f": it has {_shown(list(item))}" if isinstance(item, dict) else "")
    )


def _tools(value: object, where: str) -> list[Any] | None:
    """Definitions of tools; many datasets keep them as the text of their JSON."""
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: its tools are no JSON: {error}") from None
    if not value:
        return None
    if not isinstance(value, list):
        raise InputError(f"{where}: its tools are {type(value).__name__}, not a list")
    return [_valued(tool) for tool in value]


def _valued(value: Any) -> Any:  # noqa: ANN401 - any JSON
    """`value` without the keys of its objects that have no value."""
    if isinstance(value, dict):
        return {key: _valued(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_valued(item) for item in value]
    return _encodable(value) if isinstance(value, str) else value


def _encodable(text: str) -> str:
    """`text` with a question mark for each half of a character, which JSON may hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _shown(columns: Sequence[str]) -> str:
    more = len(columns) - _SHOWN_COLUMNS
    shown = ", ".join(repr(name) for name in columns[:_SHOWN_COLUMNS])
    return shown + (f" and {more} more" if more > 0 else "")
