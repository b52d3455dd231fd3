"""The model's own chat template around instruction, haystack and question."""

from __future__ import annotations

from dataclasses import dataclass, replace

from quantkit.core.errors import InputError
from quantkit.models.chat_template import ChatTemplate
from quantkit.retrieval.needles import INSTRUCTION

_HAYSTACK_MARK, _QUESTION_MARK = "\ue000haystack\ue000", "\ue000question\ue000"
_CHANGED = "the model's chat template changes the message; retrieval needs it as it is"


@dataclass(frozen=True)
class Frame:
    """The fixed text of a prompt: before the haystack, between it and the question, after it.

    Attributes:
        lead: text between the prompt and an answer, which the model generates.
    """

    before: str
    between: str
    after: str
    lead: str = ""

    def instructing(self, instruction: str) -> Frame:
        """This frame with another instruction than `INSTRUCTION`.

        Raises:
            InputError: the template changes the instruction.
        """
        if self.before.count(INSTRUCTION) != 1:
            raise InputError(_CHANGED)
        return replace(self, before=self.before.replace(INSTRUCTION, instruction))


def frame_of(
    template: str | None, bos: str = "", eos: str = "", *, thinking: bool = False
) -> Frame:
    """The frame that `template` (Jinja) makes of one user message; None: plain, for base models.

    Args:
        thinking: whether the template is told to let the model think before it answers.

    Raises:
        InputError: the template fails or changes the message, or `thinking` without a template.
    """
    content = f"{INSTRUCTION}\n\n{_HAYSTACK_MARK}\n\n{_QUESTION_MARK}"
    if template is not None:
        message = {"role": "user", "content": content}
        rendered = ChatTemplate(template, bos, eos).render(
            [message], add_generation_prompt=True, thinking=thinking
        )
    elif thinking:
        raise InputError(
            "the model has no chat template, so it cannot be asked to think; leave thinking out"
        )
    else:
        rendered = f"{content}\nAnswer:"
    before, mark, rest = rendered.partition(_HAYSTACK_MARK)
    between, other, after = rest.partition(_QUESTION_MARK)
    if not mark or not other:
        raise InputError(_CHANGED)
    return Frame(before, between, after, " " if template is None else "")
