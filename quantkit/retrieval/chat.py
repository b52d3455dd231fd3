"""The model's own chat template around instruction, haystack and question."""

from __future__ import annotations

from dataclasses import dataclass

from quantkit.chat_template import ChatTemplate
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
    if template is None:
        rendered = f"{content}\nAnswer:"
    else:
        message = {"role": "user", "content": content}
        rendered = ChatTemplate(template, bos, eos).render([message], add_generation_prompt=True)
    before, mark, rest = rendered.partition(_HAYSTACK_MARK)
    between, other, after = rest.partition(_QUESTION_MARK)
    if not mark or not other:
        raise InputError(
            "the model's chat template changes the message; retrieval needs it as it is"
        )
    return Frame(before, between, after)
