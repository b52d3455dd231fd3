"""Conversations as text: by the model's template, by as much as it takes, or as plain lines."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from quantkit.config.recipe import ImatrixRecipe
from quantkit.core.errors import InputError
from quantkit.models.chat_template import ChatTemplate
from quantkit.study.calibration.sources import resolve_sources
from quantkit.study.calibration.texts import calibration_tokens

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
CALLS = [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"n": 1}}}]
TALK: list[dict[str, Any]] = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "U"},
    {"role": "assistant", "content": "", "tool_calls": CALLS},
    {"role": "tool", "tool_call_id": "c1", "content": "R"},
    {"role": "assistant", "content": "A"},
]


def conversation(folder: Path, template: str | None) -> tuple[str, tuple[str, ...]]:
    """What becomes of TALK, repeated, and the notes."""
    path = folder / "talk.jsonl"
    path.write_text(json.dumps({"tools": TOOLS, "messages": TALK}) + "\n\n" + "\n")
    recipe = ImatrixRecipe(mixture={str(path): 1}, chunk_tokens=32, chunks=1)
    render = None if template is None else ChatTemplate(template, "<s>", "</s>").render
    seen: list[str] = []

    def plain(text: str) -> NDArray[np.int32]:
        raise AssertionError("a conversation is no plain text")

    def special(text: str) -> NDArray[np.int32]:
        seen.append(text)
        return np.zeros(40 * len(text), np.int32)

    found = calibration_tokens(
        recipe, resolve_sources(recipe), plain, render, tokenize_special=special
    )
    return "".join(seen), found.notes


def test_conversations_take_the_models_template(tmp_path: Path) -> None:
    text, notes = conversation(tmp_path, "{{ bos_token }}{{ tools | tojson }}" + CHATML)
    assert text.startswith(f"<s>{json.dumps(TOOLS)}<|im_start|>system\nS<|im_end|>\n")
    assert text.count("<|im_start|>") == 5
    assert not notes


@pytest.mark.parametrize(
    ("refused", "left", "missing"),
    [
        ("messages[0].role == 'system'", "user assistant tool assistant", "the system message"),
        ("tools", "system user assistant", "without tools"),
        ("tools or messages[0].role == 'system'", "user assistant", "system message and tools"),
    ],
)
def test_what_a_template_refuses_is_left_out(
    tmp_path: Path, refused: str, left: str, missing: str
) -> None:
    guard = "{% if " + refused + " %}{{ raise_exception('no') }}{% endif %}"
    text, notes = conversation(tmp_path, guard + CHATML)
    assert re.findall(r"<\|im_start\|>(\w+)", text) == left.split()
    [note] = notes
    assert missing in note
    assert note.endswith("no")


def test_templates_that_want_a_list_of_tools_or_mark_answers() -> None:
    marked = "{% if tools is none %}{{ raise_exception('no') }}{% endif %}{%- generation %}"
    assert ChatTemplate(marked + "x{% endgeneration -%}\n").render([]) == "x"


def test_a_template_that_refuses_all_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no domain"):
        conversation(tmp_path, "{{ raise_exception('no') }}")
    with pytest.raises(InputError, match="chat template fails"):
        ChatTemplate("{% if %}").render([])


def test_without_a_template_conversations_are_lines(tmp_path: Path) -> None:
    text, notes = conversation(tmp_path, None)
    assert f"system: S\nuser: U\nassistant: {json.dumps(CALLS[0])}\ntool: R\nassistant: A" in text
    assert text.startswith("tools: [")
    assert "no chat template" in notes[0]
