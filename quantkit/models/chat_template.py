"""A model's own chat template (Jinja), rendered as transformers renders it."""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import Any, NoReturn

from quantkit.core.errors import InputError

Message = dict[str, Any]


class ChatTemplate:
    """The template of one model, with the texts of its BOS and EOS tokens."""

    def __init__(self, template: str, bos: str = "", eos: str = "") -> None:
        # `generation` only marks the text that training counts
        template = re.sub(r"\{%(-?)\s*generation\s*(-?)%\}", r"{%\1 if true \2%}", template)
        template = re.sub(r"\{%(-?)\s*endgeneration\s*(-?)%\}", r"{%\1 endif \2%}", template)
        self._template, self._bos, self._eos = template, bos, eos

    def render(
        self,
        messages: list[Message],
        tools: list[Any] | None = None,
        *,
        add_generation_prompt: bool = False,
        thinking: bool = False,
    ) -> str:
        """The text of `messages`; a template that fails or refuses them raises InputError."""
        from jinja2 import TemplateError
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def raise_exception(message: str) -> NoReturn:
            raise TemplateError(message)

        def strftime_now(pattern: str) -> str:
            return datetime(2026, 1, 1).strftime(pattern)  # a fixed day keeps tokens repeatable

        def tojson(value: object, indent: int | None = None, **_: object) -> str:
            return json.dumps(value, ensure_ascii=False, indent=indent)

        # the environment that transformers uses for chat templates
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        environment.filters["tojson"] = tojson
        environment.globals.update(raise_exception=raise_exception, strftime_now=strftime_now)
        try:
            return environment.from_string(self._template).render(
                messages=messages,
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                enable_thinking=thinking,
                bos_token=self._bos,
                eos_token=self._eos,
            )
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            if tools is None:  # some templates want a list, be it empty
                return self.render(
                    messages, [], add_generation_prompt=add_generation_prompt, thinking=thinking
                )
            raise InputError(f"the model's chat template fails: {error}") from None
