"""Rows of JSON Lines and Parquet, and conversations as text by a chat template."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from numpy.typing import NDArray

from quantkit.config.recipe import ImatrixRecipe
from quantkit.core.errors import InputError
from quantkit.models.chat_template import ChatTemplate
from quantkit.study.calibration.rows import BATCH_ROWS, Conversation, read_rows
from quantkit.study.calibration.sources import resolve_sources
from quantkit.study.calibration.texts import Tokenizer, calibration_tokens

ENDINGS = ("jsonl", "parquet")
CALLS = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": {"n": 1}}}]
TOOLS = [
    {"type": "function", "function": {"name": "f", "parameters": {"n": {"type": "integer"}}}},
    {"type": "function", "function": {"name": "g", "parameters": {"s": {"maxLength": 9}}}},
]
TALK = [
    {"role": "user", "content": "U"},
    {"role": "assistant", "content": "", "tool_calls": CALLS},
    {"role": "tool", "content": "R", "tool_call_id": "1"},
    {"role": "assistant", "content": "A"},
]
SHAREGPT = [
    {"from": "system", "value": "S"},
    {"from": "human", "value": "U"},
    {"from": "gpt", "value": "A"},
    {"from": "function", "value": "R"},
    {"from": "user", "value": "u"},
    {"from": "assistant", "value": "a"},
    {"from": "tool", "value": None},
]


def file_of(folder: Path, ending: str, rows: list[Any]) -> Path:
    path = folder / f"rows.{ending}"
    if ending == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        names = list(dict.fromkeys(name for row in rows for name in row))
        columns = {name: [row.get(name) for row in rows] for name in names}
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"text": "T", "id": 1}, "T"),
        ({"content": "C"}, "C"),
        ({"content": "C", "text": "T"}, "T"),
        ({"content": "C", "text": None}, "C"),
        ({"messages": TALK, "text": "the same again"}, Conversation(TALK)),
        ({"messages": TALK, "tools": TOOLS}, Conversation(TALK, TOOLS)),
        ({"messages": TALK, "tools": json.dumps(TOOLS)}, Conversation(TALK, TOOLS)),
        ({"messages": TALK, "tools": ""}, Conversation(TALK)),
        ({"messages": TALK, "tools": []}, Conversation(TALK)),
        (
            {"messages": [{"role": "assistant", "content": None}, {"role": "user", "name": "x"}]},
            Conversation(
                [{"role": "assistant", "content": ""}, {"role": "user", "name": "x", "content": ""}]
            ),
        ),
        (
            {"conversations": SHAREGPT, "source": "x"},
            Conversation(
                [
                    {"role": "system", "content": "S"},
                    {"role": "user", "content": "U"},
                    {"role": "assistant", "content": "A"},
                    {"role": "tool", "content": "R"},
                    {"role": "user", "content": "u"},
                    {"role": "assistant", "content": "a"},
                    {"role": "tool", "content": ""},
                ]
            ),
        ),
        ({"conversations": TALK}, Conversation(TALK)),
    ],
)
def test_what_a_row_holds(
    ending: str, row: dict[str, Any], expected: object, tmp_path: Path
) -> None:
    assert list(read_rows(file_of(tmp_path, ending, [row]))) == [expected]


def test_a_line_may_be_a_list_of_messages(tmp_path: Path) -> None:
    path = file_of(tmp_path, "jsonl", [TALK, {"text": "T\u2028T"}])
    assert list(read_rows(path)) == [Conversation(TALK), "T\u2028T"]


def test_half_a_character_can_be_encoded(tmp_path: Path) -> None:
    rows = [{"text": "a\ud83d"}, {"messages": [{"role": "user", "content": "b\udc00"}]}]
    path = file_of(tmp_path, "jsonl", rows)
    assert list(read_rows(path)) == ["a?", Conversation([{"role": "user", "content": "b?"}])]


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"a": 1, "b": 2}, "'a', 'b'$"),
        ({"text": 3}, "'text'$"),
        ({"messages": "x"}, "str instead of a list"),
        ({"messages": [3]}, "message with neither"),
        ({"messages": [{"content": "x"}]}, "'content'$"),
        ({"conversations": [{"from": "bot", "value": "x"}]}, "'bot'.*human, user"),
        ({"messages": TALK, "tools": "{"}, "tools.* not valid JSON"),
        ({"messages": TALK, "tools": "3"}, "tools are int"),
        ({str(n): n for n in range(30)}, r"'18', '19' and 10 more$"),
    ],
)
def test_a_row_of_neither_kind_is_named(
    ending: str, row: dict[str, Any], words: str, tmp_path: Path
) -> None:
    path = file_of(tmp_path, ending, [row])
    number = {"jsonl": "line 1", "parquet": "row 1"}[ending]
    with pytest.raises(InputError, match=rf"rows.{ending}, {number}.*{words}"):
        list(read_rows(path))


def test_the_row_is_counted(tmp_path: Path) -> None:
    rows = [{"text": "x"}] * (BATCH_ROWS + 2) + [{"text": None}]
    for ending, unit in (("parquet", "row"), ("jsonl", "line")):
        with pytest.raises(InputError, match=f"{unit} {BATCH_ROWS + 3} "):
            list(read_rows(file_of(tmp_path, ending, rows)))


@pytest.mark.parametrize("line", ["{", "3", '[{"content": "x"}]', "[3]", "[" * 100_000, "\x00"])
def test_a_broken_line_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('[{"role": "user", "content": "x"}]\n' + line + "\n")
    with pytest.raises(InputError, match="line 2"):
        list(read_rows(path))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.parquet", b"no Parquet"),
        ("b.parquet", b"PAR1" + bytes(100) + b"PAR1"),
        ("c.parquet", None),
        ("a.jsonl", b'{"text": "\xff"}'),
        ("b.jsonl", None),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    name: str, content: bytes | None, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name}: "):
        list(read_rows(tmp_path / name))


def test_without_pyarrow_the_message_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = file_of(tmp_path, "parquet", [{"text": "x"}])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"quantkit-gguf\[parquet\]"):
        list(read_rows(path))


def test_the_same_rows_give_the_same_tokens_in_both_formats(tmp_path: Path) -> None:
    rows = [
        *({"messages": TALK, "tools": TOOLS[:n]} for n in range(3)),
        {"conversations": SHAREGPT},
        *({"text": f"text {n}"} for n in range(3)),
    ]
    template = (
        "{{ tools | tojson }}{% for m in messages %}<{{ m.role }}>{{ m.content }}"
        "{% for c in m.tool_calls or [] %}{{ c | tojson }}{% endfor %}{% endfor %}"
    )

    def letters(text: str) -> NDArray[np.int32]:
        return np.frombuffer(text.encode("utf-32-le"), np.int32)

    found = {}
    for ending in ENDINGS:
        path = str(file_of(tmp_path, ending, rows))
        recipe = ImatrixRecipe(texts=(path,))
        render = ChatTemplate(template, "", "").render
        tokenizer = Tokenizer(letters, letters, render)
        taken = calibration_tokens(recipe, resolve_sources(recipe), tokenizer)
        found[ending] = taken.tokens.astype("<i4").tobytes().decode("utf-32-le")
    assert found["parquet"] == found["jsonl"]
    assert found["jsonl"].count("<user>U") == 4
    assert found["jsonl"].count('"arguments": {"n": 1}') == 3
    assert "null<system>S<user>U<assistant>A<tool>R" in found["jsonl"]
    assert found["jsonl"].endswith("text 0\n\ntext 1\n\ntext 2\n\n")


def test_rows_that_are_nested_too_deeply_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for depth in (90, 700, 5000, 200_000):
        nested = "[" * depth + "]" * depth
        path.write_text(f'{{"messages": [{{"role": "user", "content": {nested}}}]}}\n')
        if depth == 90:
            assert len(list(read_rows(path))) == 1
            continue
        with pytest.raises(InputError):
            list(read_rows(path))


CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def conversation(folder: Path, template: str | None) -> tuple[str, tuple[str, ...]]:
    """What becomes of TALK after a system message, and the notes."""
    path = folder / "talk.jsonl"
    messages = [{"role": "system", "content": "S"}, *TALK]
    path.write_text(json.dumps({"tools": TOOLS, "messages": messages}) + "\n\n\n")
    recipe = ImatrixRecipe(mixture={str(path): 1}, chunk_tokens=32, chunks=1)
    render = None if template is None else ChatTemplate(template, "<s>", "</s>").render
    seen: list[str] = []

    def plain(text: str) -> NDArray[np.int32]:
        raise AssertionError("a conversation is no plain text")

    def special(text: str) -> NDArray[np.int32]:
        seen.append(text)
        return np.zeros(40 * len(text), np.int32)

    found = calibration_tokens(recipe, resolve_sources(recipe), Tokenizer(plain, special, render))
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
    with pytest.raises(InputError, match=r"no domain.*for this model only"):
        conversation(tmp_path, "{{ raise_exception('for this model only') }}")
    with pytest.raises(InputError, match="chat template fails"):
        ChatTemplate("{% if %}").render([])


def test_without_a_template_conversations_are_lines(tmp_path: Path) -> None:
    text, notes = conversation(tmp_path, None)
    assert f"system: S\nuser: U\nassistant: {json.dumps(CALLS[0])}\ntool: R\nassistant: A" in text
    assert text.startswith("tools: [")
    assert "no chat template" in notes[0]
