"""Chat templates: the texts of honest ones, and the end of all others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from quantkit.core.errors import InputError
from quantkit.models import chat_rendering, chat_template
from quantkit.models.chat_template import ChatTemplate

TALK = [{"role": "user", "content": "Hi\n"}, {"role": "assistant", "content": "Ho"}]

HOSTILE = {
    "a loop": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a power": "{{ (9 ** (9 ** 9)) % 7 }}",
    "a wide number": "{{ '%1000000000d' % 1 }}",
    "a long text": "{{ 'x' * 200000000 }}",
    "a list that doubles": "{% set n = namespace(l=[1]) %}{% for a in range(99) %}"
    "{% set n.l = n.l + n.l %}{% endfor %}",
    "a huge range": "{{ range(10 ** 9) | length }}",
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "nesting": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "division": "{{ 1 / 0 }}",
    "overflow": "{{ 10.0 ** 400 }}",
    "a type": "{{ 1 + 'a' }}",
    "a key": "{{ {}['a'].b }}",
    "a value": "{{ 'a' | int(base=99) }}{{ '{' .format() }}",
    "an assertion": "{% include 'a' %}",
    "syntax": "{% if %}",
    "a long message": "{{ raise_exception('no' * 10000000) }}",
    "an attribute": "{{ messages.__class__.__mro__[1].__subclasses__() }}",
}


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A second of computing is enough here, in the child too."""
    (tmp_path / "sitecustomize.py").write_text(
        "from quantkit.models import chat_rendering\nchat_rendering.CPU_SECONDS = 1\n"
    )
    here = Path(chat_rendering.__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{here}")


@pytest.mark.parametrize("name", HOSTILE)
def test_whatever_a_template_does_is_an_input_error(name: str) -> None:
    with ChatTemplate(HOSTILE[name]) as chat, pytest.raises(InputError) as raised:
        chat.render(TALK)
    assert len(str(raised.value)) < 600
    assert str(raised.value).isprintable()


def test_a_template_that_ended_its_process_is_not_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with ChatTemplate(HOSTILE["a loop"]) as chat:
        with pytest.raises(InputError):
            chat.render(TALK)
        monkeypatch.setattr(chat_template, "Child", None)
        with pytest.raises(InputError):
            chat.render(TALK)


def test_one_process_renders_all_conversations(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also those after one that was refused, and without llama.cpp."""
    (tmp_path / "llama_cpp.py").write_text("raise SystemExit('not to be loaded')")
    begun = []
    kind = chat_template.Child
    monkeypatch.setattr(chat_template, "Child", lambda *a: begun.append(a) or kind(*a))
    template = (
        "{{ bos_token }}{% if messages | length > 1 %}{{ raise_exception('long') }}{% endif %}"
        "{% for m in messages %}{{ m.role }}: {{ m.content | trim }}{{ eos_token }}{% endfor %}"
    )
    with ChatTemplate(template, "<s>", "</s>") as chat:
        for number in range(200):
            said = {"role": "user", "content": f" {number}\ud800ü "}
            assert chat.render([said]) == f"<s>user: {number}?ü</s>"
            with pytest.raises(InputError, match="long"):
                chat.render(TALK)
    assert len(begun) == 1


def test_limits_hold_for_each_conversation_and_not_for_all() -> None:
    """Each computes for about a fifth of a second, all of them for longer than one may."""
    busy = "{% for a in range(99999) %}{{ a }}{% for b in range(9) %}{% endfor %}{% endfor %}"
    with ChatTemplate(busy) as chat:
        lengths = {len(chat.render(TALK)) for _ in range(12)}
    assert len(lengths) == 1
