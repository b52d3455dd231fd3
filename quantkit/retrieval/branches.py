"""Prompts as text and as tokens: the frame, the stream decoded once, and its branches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from quantkit.core.errors import InputError
from quantkit.models.chat_template import ChatTemplate
from quantkit.retrieval.needles import INSTRUCTION

Tokens = NDArray[np.int32]
Tokenize = Callable[[str], Tokens]
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
        with ChatTemplate(template, bos, eos) as chat:
            rendered = chat.render([message], add_generation_prompt=True, thinking=thinking)
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


@dataclass(frozen=True)
class Question:
    """A question at one context length, and its right and wrong answers.

    Attributes:
        context_tokens: the length that prompt and longest answer fill.
        index: within its seed, length and task, from 0.
        depth: where the answering sentence begins, 0 (begin) to 1 (end) of the haystack of this
            length, by tokens counted sentence by sentence; the mean if there are several; 0.5 if
            no sentence answers.
        values: right answers; none for a key that is hidden nowhere.
        lures: hidden values that would be wrong, at most the recipe's `near_misses`: of the closest
            keys, or the value that was replaced.
        answer_tokens: limit of the answer.
    """

    context_tokens: int
    seed: int
    task: str
    index: int
    depth: float
    key: str
    values: tuple[str, ...]
    lures: tuple[str, ...]
    answer_tokens: int

    @property
    def place(self) -> tuple[int, int, str, int]:
        """(length, seed, task, index), as `Answer.place`."""
        return self.context_tokens, self.seed, self.task, self.index


@dataclass(frozen=True)
class Branch:
    """The prompt of one question: `stream[:leaves_at]`, then `tokens` (at least one).

    Attributes:
        candidates: values[0] and each lure as tokens that follow this prompt; none unless there is
            exactly one right value, if the model thinks first, or if the tokenizer would merge
            prompt and value.
        haystack_tokens: how many of `tokens`, from the first on, are still haystack: none in a
            one-pass prompt, whose few at its cut count as the question's.
    """

    leaves_at: int
    tokens: Tokens
    question: Question
    candidates: tuple[Tokens, ...] = ()
    haystack_tokens: int = 0

    @property
    def prompt_tokens(self) -> int:
        """Length of the whole prompt."""
        return self.leaves_at + len(self.tokens)

    @property
    def own_tokens(self) -> int:
        """Tokens of the question: those of `tokens` that are not haystack."""
        return len(self.tokens) - self.haystack_tokens

    @property
    def rung(self) -> tuple[int, int]:
        """(leaves_at, length): questions of one rung are asked together."""
        return self.leaves_at, self.question.context_tokens


@dataclass(frozen=True)
class Prompts:
    """The prompts of one seed.

    Attributes:
        stream: as far as any branch follows it; begins with BOS if the model wants one.
        branches: in the order of `leaves_at`.
        keys: length → number of different keys hidden in its haystack.
    """

    stream: Tokens
    branches: tuple[Branch, ...]
    keys: dict[int, int]

    @property
    def seed(self) -> int:
        return self.branches[0].question.seed

    @property
    def prefill_tokens(self) -> int:
        """Haystack tokens to decode: the stream, and what branches have of their own (classic)."""
        return len(self.stream) + sum(branch.haystack_tokens for branch in self.branches)

    @property
    def question_tokens(self) -> int:
        """Tokens of all questions, each decoded once after its haystack."""
        return sum(branch.own_tokens for branch in self.branches)

    @property
    def classic_tokens(self) -> int:
        """Tokens to decode with one prefill for each question."""
        return sum(branch.prompt_tokens for branch in self.branches)

    @property
    def digest(self) -> str:
        """SHA-256, hex, of all tokens and questions: whether a saved state is of these prompts."""
        sha = hashlib.sha256()
        for tokens in (self.stream, *(branch.tokens for branch in self.branches)):
            sha.update(len(tokens).to_bytes(8, "little") + tokens.astype("<i4").tobytes())
        for branch in self.branches:
            facts = [branch.leaves_at, asdict(branch.question)]
            sha.update(json.dumps(facts, sort_keys=True).encode())
        return sha.hexdigest()
