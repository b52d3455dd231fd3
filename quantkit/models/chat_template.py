"""A model's own chat template (Jinja), rendered as transformers renders it, in a child process."""

from __future__ import annotations

import weakref
from typing import Any, Self

from quantkit.core.errors import InputError
from quantkit.llamacpp.child import Child, NativeCrash
from quantkit.models.chat_rendering import CPU_SECONDS, PRELOAD

Message = dict[str, Any]


class ChatTemplate:
    """The template of one model, with the texts of its BOS and EOS tokens.

    One process renders all conversations. It begins with the first and ends with this object, or
    with `close`.
    """

    def __init__(self, template: str, bos: str = "", eos: str = "") -> None:
        self._template, self._bos, self._eos = template, bos, eos
        self._child: Child | None = None
        self._stopped = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def render(
        self,
        messages: list[Message],
        tools: list[Any] | None = None,
        *,
        add_generation_prompt: bool = False,
        thinking: bool = False,
    ) -> str:
        """The text of `messages`.

        Raises:
            InputError: the template fails, refuses them, or exceeds a limit of `chat_rendering`.
                One that ended its process is not tried again.
        """
        if self._stopped:
            raise InputError(self._stopped)
        names = {
            "messages": messages,
            "tools": tools,
            "add_generation_prompt": add_generation_prompt,
            "enable_thinking": thinking,
            "bos_token": self._bos,
            "eos_token": self._eos,
        }
        if self._child is None:
            self._child = Child(PRELOAD)
            self._end = weakref.finalize(self, _end, self._child)
        task = "quantkit.models.chat_rendering:render"
        try:
            text: str = self._child.call(task, {"template": self._template, "names": names})
        except NativeCrash:
            self._stopped = (
                f"the model's chat template fails: it computes for more than {CPU_SECONDS} s, or "
                "breaks the process that renders it; use a model with another template"
            )
            self.close()
            raise InputError(self._stopped) from None
        return text

    def close(self) -> None:
        """End the process; another `render` begins one."""
        if self._child is not None:
            self._child = None
            self._end()


def _end(child: Child) -> None:
    child.end()
    child.close()
