"""Renders conversations with the model's chat template, as far as it accepts them."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, Protocol

from quantkit.core.errors import InputError
from quantkit.models.chat_template import Message
from quantkit.study.calibration.rows import Conversation


class RenderChat(Protocol):
    """Messages and tools → the text by the model's template.

    Raises:
        InputError: the template refuses them.
    """

    def __call__(self, messages: list[Message], tools: list[Any] | None = None, /) -> str: ...


class ChatTexts:
    """Renders the conversations of one file, and records what the template refuses.

    Args:
        render_chat: None for a model without a template: conversations become lines of
            "role: content".
    """

    def __init__(self, render_chat: RenderChat | None) -> None:
        self._render = render_chat
        self._read = 0
        self._missing: Counter[str] = Counter()
        self._reason: InputError | None = None

    def text(self, conversation: Conversation) -> str | None:
        """The text of a conversation; None if the template refuses all of it."""
        self._read += 1
        if self._render is None:
            return _plain_lines(conversation.messages, conversation.tools)
        text, missing, why = _accepted(conversation, self._render)
        if missing:
            self._missing[missing] += 1
            self._reason = self._reason or why
        return text

    def notes(self, name: str) -> list[str]:
        """Notes for the user about the file called `name`."""
        if self._read and self._render is None:
            return [f"the model has no chat template: conversations of {name} become plain lines"]
        if not self._missing:
            return []
        what = ", ".join(f"{count} {missing}" for missing, count in sorted(self._missing.items()))
        return [f"of the {self._read} conversations of {name}, {what}: {self._reason}"]


def _accepted(
    conversation: Conversation, render_chat: RenderChat
) -> tuple[str | None, str, InputError | None]:
    """(text of the largest part that the template accepts, what is missing, why)."""
    messages, tools = conversation.messages, conversation.tools
    why: InputError | None = None
    talk = _without_calls(messages)
    attempts = [(messages, tools, "")]
    if messages and messages[0]["role"] == "system":
        attempts.append((messages[1:], tools, "without the system message"))
    if tools:
        attempts.append((talk, None, "without tools"))
        if talk and talk[0]["role"] == "system":
            attempts.append((talk[1:], None, "without the system message and tools"))
    for some, given, missing in attempts:
        try:
            return (render_chat(some, given) if given else render_chat(some)), missing, why
        except InputError as error:
            why = why or error
    return None, "left out", why


def _without_calls(messages: list[Message]) -> list[Message]:
    """The messages without tool calls and results."""
    spoken = (message for message in messages if message["role"] != "tool")
    kept = [{k: v for k, v in message.items() if k != "tool_calls"} for message in spoken]
    return [message for message in kept if message.get("content")]


def _plain_lines(messages: list[Message], tools: list[Any] | None) -> str:
    lines = [f"tools: {json.dumps(tools, ensure_ascii=False)}"] if tools else []
    for message in messages:
        calls = [json.dumps(call, ensure_ascii=False) for call in message.get("tool_calls") or []]
        said = [str(message["content"])] if message.get("content") else []
        lines.append(f"{message['role']}: " + "\n".join([*said, *calls]))
    return "\n".join(lines) + "\n\n"
