"""The one loop that asks questions: what is not answered yet, length by length."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Protocol

from quantkit.core.progress import Progress
from quantkit.retrieval.branches import Branch, Prompts
from quantkit.retrieval.journaled import Answers


class Respondent(Protocol):
    """A model that is asked: in this process (`ask_child`) or behind an address (`ask_server`)."""

    def prepare(self, prompts: Sequence[Prompts]) -> bool:
        """Check that answers prove something; whether earlier answers had to be forgotten.

        Raises:
            EnvironmentFault: they would not.
        """
        ...

    def work(self, prompts: Prompts, left: Sequence[Branch]) -> tuple[int, int]:
        """Tokens of one seed that are done, as far as `left` is open, and of all."""
        ...

    def begin(self, prompts: Prompts, left: Sequence[Branch]) -> None:
        """Get ready for the open questions of one seed; there are some."""
        ...

    def ask(self, prompts: Prompts, group: Sequence[Branch]) -> None:
        """Ask open questions of one rung, and write down answers and costs."""
        ...


def ask_all(
    respondent: Respondent, prompts: Sequence[Prompts], answers: Answers, progress: Progress
) -> None:
    """Ask every question that is open.

    Args:
        prompts: of each seed.
    """

    def start() -> None:
        work = [respondent.work(one, answers.open(one)) for one in prompts]
        done, total = (sum(parts) for parts in zip(*work, strict=True))
        progress.start(total, "tokens", done=done)

    start()
    if respondent.prepare(prompts):
        start()
    for one in prompts:
        left = answers.open(one)
        if not left:
            continue
        respondent.begin(one, left)
        for _, group in itertools.groupby(left, key=lambda branch: branch.rung):
            respondent.ask(one, list(group))
