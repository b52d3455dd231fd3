"""Reads files of rows, JSON Lines and Parquet, and renders conversations with chat templates.

A row is a conversation or a text; the same rows give the same in both formats. Parquet gives every
message the keys of all messages, so keys without a value are treated as missing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any, Protocol

from quantkit.core.errors import InputError
from quantkit.core.files import open_file
from quantkit.core.parsing import MOST_JSON_BYTES, bounded_json
from quantkit.models.chat_template import Message

ROW_ENDINGS = (".jsonl", ".parquet")
BATCH_ROWS = 512
"""Rows of a Parquet file in memory at a time."""
_CONVERSATIONS = ("messages", "conversations")
_TEXTS = ("text", "content")
_TOOLS = "tools"
_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
    "system": "system", "tool": "tool", "function": "tool",
}  # fmt: skip
"""ShareGPT's `from` → role."""
_SHOWN_COLUMNS = 20


@dataclass(frozen=True)
class Conversation:
    """Messages with role and content, and the tools that they may call."""

    messages: list[Message]
    tools: list[Any] | None = None


Row = Conversation | str  # str: a text


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a file with an extension of ROW_ENDINGS, in order.

    Raises:
        InputError: the file cannot be read, a row is neither a conversation nor a text, or pyarrow
            is needed and not installed.
    """
    return _parquet_rows(path) if path.suffix == ".parquet" else _json_rows(path)


def parse_row(row: object, where: str, columns: Sequence[str]) -> Row:
    """Parse a list of messages, or the first of a row's known columns that has a value.

    `where` and `columns`, all that the row has, are for the InputError about other rows.
    """
    try:
        return _parsed(row, where, columns)
    except RecursionError:
        raise InputError(f"{where} is nested too deeply; leave it out") from None


def _parsed(row: object, where: str, columns: Sequence[str]) -> Row:
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
        with TextIOWrapper(open_file(path), encoding="utf-8", newline="\n") as file:
            # a line may be as long as the file
            lines = iter(lambda: file.readline(MOST_JSON_BYTES + 1), "")
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                row = bounded_json(line, f"{path}, line {number}", foreign=True)
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
        raise InputError(f"{where} has {type(value).__name__} instead of a list of messages")
    return [_message(item, where) for item in value]


def _message(item: object, where: str) -> Message:
    """A message with role and content, as chat templates expect it; other keys are kept."""
    if isinstance(item, dict):
        if isinstance(item.get("role"), str):
            return {"content": "", **_valued(item)}
        speaker, said = item.get("from"), item.get("value")
        if isinstance(speaker, str) and isinstance(said, str | None):
            if speaker not in _ROLES:
                raise InputError(
                    f"{where} has a message from {speaker!r}; expected one of {', '.join(_ROLES)}"
                )
            return {"role": _ROLES[speaker], "content": _encodable(said or "")}
    raise InputError(
        f"{where} has a message with neither role and content nor from and value"
        + (f": it has {_shown(list(item))}" if isinstance(item, dict) else "")
    )


def _tools(value: object, where: str) -> list[Any] | None:
    """Definitions of tools; many datasets store them as JSON text."""
    if isinstance(value, str) and value.strip():
        value = bounded_json(value, f"{where}: its tools", foreign=True)
    if not value:
        return None
    if not isinstance(value, list):
        raise InputError(f"{where}: its tools are {type(value).__name__}, not a list")
    return [_valued(tool) for tool in value]


def _valued(value: Any) -> Any:  # noqa: ANN401 - any JSON
    """`value` without keys whose value is null."""
    if isinstance(value, dict):
        return {key: _valued(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_valued(item) for item in value]
    return _encodable(value) if isinstance(value, str) else value


def _encodable(text: str) -> str:
    """`text` with lone surrogates, which JSON may contain, replaced by question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _shown(columns: Sequence[str]) -> str:
    more = len(columns) - _SHOWN_COLUMNS
    shown = ", ".join(repr(name) for name in columns[:_SHOWN_COLUMNS])
    return shown + (f" and {more} more" if more > 0 else "")


class RenderChat(Protocol):
    """Messages and tools → the text by the model's template.

    Raises:
        InputError: the template refuses them.
    """

    def __call__(self, messages: list[Message], tools: list[Any] | None = None, /) -> str: ...


class ChatTexts:
    """Renders the conversations of one file, and records what the template refuses.

    Without a template, `render_chat` is None: conversations become lines of "role: content".
    """

    def __init__(self, render_chat: RenderChat | None) -> None:
        self._render = render_chat
        self._read = 0
        self._missing: Counter[str] = Counter()
        self._reason: InputError | None = None

    def text(self, conversation: Conversation) -> str | None:
        """The largest part of a conversation that the template accepts; None if it refuses all."""
        self._read += 1
        if self._render is None:
            return _plain_lines(conversation.messages, conversation.tools)
        for messages, tools, missing in _parts(conversation):
            try:
                text = self._render(messages, tools) if tools else self._render(messages)
            except InputError as error:
                self._reason = self._reason or error
                continue
            self._missing[missing] += 1
            return text
        self._missing["left out"] += 1
        return None

    def notes(self, name: str) -> list[str]:
        """Notes for the user about the file called `name`."""
        if self._read and self._render is None:
            return [f"the model has no chat template: conversations of {name} become plain lines"]
        if self._reason is None:
            return []
        what = ", ".join(
            f"{n} {missing}" for missing, n in sorted(self._missing.items()) if missing
        )
        return [f"of the {self._read} conversations of {name}, {what}: {self._reason}"]


def _parts(talk: Conversation) -> Iterator[tuple[list[Message], list[Any] | None, str]]:
    """(messages, tools, what is missing): all of a conversation, then smaller parts."""
    yield talk.messages, talk.tools, ""
    if talk.messages and talk.messages[0]["role"] == "system":
        yield talk.messages[1:], talk.tools, "without the system message"
    if talk.tools:
        spoken = _without_calls(talk.messages)
        yield spoken, None, "without tools"
        if spoken and spoken[0]["role"] == "system":
            yield spoken[1:], None, "without the system message and tools"


def _without_calls(messages: list[Message]) -> list[Message]:
    """The messages without tool calls and results."""
    spoken = (message for message in messages if message["role"] != "tool")
    kept = [{k: v for k, v in message.items() if k != "tool_calls"} for message in spoken]
    return [message for message in kept if message.get("content")]


def _plain_lines(messages: list[Message], tools: list[Any] | None) -> str:
    lines = [f"tools: {json.dumps(tools, ensure_ascii=False)}"] if tools else []
    for message in messages:
        called = message.get("tool_calls") or []
        calls = [
            json.dumps(call, ensure_ascii=False)
            for call in (called if isinstance(called, list) else [called])
        ]
        said = [str(message["content"])] if message.get("content") else []
        lines.append(f"{message['role']}: " + "\n".join([*said, *calls]))
    return "\n".join(lines) + "\n\n"
