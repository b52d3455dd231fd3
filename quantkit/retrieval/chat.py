"""The model's own chat template around instruction, haystack and question."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn

from quantkit.errors import InputError
from quantkit.retrieval.needles import INSTRUCTION

_HAYSTACK_MARK, _QUESTION_MARK = "\ue000haystack\ue000", "\ue000question\ue000"


@dataclass(frozen=True)
class Frame:
    """The fixed text of a prompt: before the haystack, between it and the question, after it."""

    before: str
    between: str
    after: str

    def text(self, haystack: str, question: str) -> str:
        return f"{self.before}{haystack}{self.between}{question}{self.after}"


def frame(template: str | None, bos: str = "", eos: str = "") -> Frame:
    """The frame that `template` (Jinja, thinking off) makes of one user message.

    Without a template, a plain prompt for base models.

    Raises:
        InputError: the template fails, or does not put the message out as it is.
    """
    content = f"{INSTRUCTION}\n\n{_HAYSTACK_MARK}\n\n{_QUESTION_MARK}"
    rendered = f"{content}\nAnswer:" if template is None else _render(template, content, bos, eos)
    before, mark, rest = rendered.partition(_HAYSTACK_MARK)
    between, other, after = rest.partition(_QUESTION_MARK)
    if not mark or not other:
        raise InputError(
            "the model's chat template changes the message; retrieval needs it as it is"
        )
    return Frame(before, between, after)


def _render(template: str, content: str, bos: str, eos: str) -> str:
    from jinja2 import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    def strftime_now(pattern: str) -> str:
        return datetime(2026, 1, 1).strftime(pattern)  # a fixed day keeps prompts repeatable

    # the environment that transformers uses for chat templates
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.globals.update(raise_exception=raise_exception, strftime_now=strftime_now)
    arguments: dict[str, Any] = {
        "messages": [{"role": "user", "content": content}],
        "add_generation_prompt": True,
        "enable_thinking": False,
        "bos_token": bos,
        "eos_token": eos,
        "tools": None,
    }
    try:
        return environment.from_string(template).render(arguments)
    except (TemplateError, TypeError, ValueError) as error:
        raise InputError(f"the model's chat template fails: {error}") from None
