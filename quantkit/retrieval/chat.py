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
        lead: what stands between the prompt and an answer, and is the model's to say.
    """

    before: str
    between: str
    after: str
    lead: str = ""

    def text(self, haystack: str, question: str) -> str:
        return f"{self.before}{haystack}{self.between}{question}{self.after}"

    def instructing(self, instruction: str) -> Frame:
        """This frame with another instruction than `INSTRUCTION`.

        Raises:
            InputError: the template does not put the instruction out as it is.
        """
        if self.before.count(INSTRUCTION) != 1:
            raise InputError(_CHANGED)
        return replace(self, before=self.before.replace(INSTRUCTION, instruction))


def frame(
    template: str | None,
    bos: str = "",
    eos: str = "",
    *,
    thinking: bool = False,
) -> Frame:
    """The frame that `template` (Jinja) makes of one user message.

    Without a template, a plain prompt for base models.

    Args:
        thinking: whether the template is asked to let the model think before it answers.

    Raises:
        InputError: the template fails, or does not put the message out as it is; thinking is
            wanted of a model without a template.
    """
    content = f"{INSTRUCTION}\n\n{_HAYSTACK_MARK}\n\n{_QUESTION_MARK}"
    if template is None:
        if thinking:
            raise InputError(
                "the model has no chat template, so it cannot be asked to think; leave thinking out"
            )
        rendered, lead = f"{content}\nAnswer:", " "
    else:
        message = {"role": "user", "content": content}
        rendered, lead = (
            ChatTemplate(template, bos, eos).render(
                [message], add_generation_prompt=True, thinking=thinking
            ),
            "",
        )
    before, mark, rest = rendered.partition(_HAYSTACK_MARK)
    between, other, after = rest.partition(_QUESTION_MARK)
    if not mark or not other:
        raise InputError(_CHANGED)
    return Frame(before, between, after, lead)
