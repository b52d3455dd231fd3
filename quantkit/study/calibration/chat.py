"""Conversations as text, by the model's own chat template as far as it takes them."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, Protocol

from quantkit.core.errors import InputError
from quantkit.models.chat_template import Message
from quantkit.study.calibration.rows import Conversation


class RenderChat(Protocol):
    """Messages, and tools where there are some → the text that the model's template makes.

    Raises:
        InputError: the template refuses them.
    """

    def __call__(self, messages: list[Message], tools: list[Any] | None = None, /) -> str: ...


class ChatTexts:
    """The conversations of one file as text, and what had to be left out of them.

    Args:
        render_chat: None for a model without a template, whose conversations become lines of
            "role: content".
    """

    def __init__(self, render_chat: RenderChat | None) -> None:
        self._render = render_chat
        self._read = 0
        self._missing: Counter[str] = Counter()
        self._reason: InputError | None = None

    def text(self, conversation: Conversation) -> str | None:
        """The text of a conversation; None where the template refuses all of it."""
        self._read += 1
        if self._render is None:
            return _plain_lines(conversation.messages, conversation.tools)
        text, missing, why = _accepted(conversation, self._render)
        if missing:
            self._missing[missing] += 1
            self._reason = self._reason or why
        return text

    def notes(self, name: str) -> list[str]:
        """What the user should know of the file called `name`."""
        if self._read and self._render is None:
            return [f"no chat template: the conversations of {name} are plain lines"]
        if not self._missing:
            return []
        what = ", ".join(f"{count} {missing}" for missing, count in sorted(self._missing.items()))
        return [f"of {self._read} conversations of {name} {what}; {self._reason}"]


def _accepted(
    conversation: Conversation, render_chat: RenderChat
) -> tuple[str | None, str, InputError | None]:
    """What the template makes of as much of a conversation as it takes, what is missing, why."""
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
    """The messages that people read: no calls, no results."""
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
