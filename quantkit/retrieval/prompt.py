"""The prompts of a retrieval check.

One-pass: hidden sentences for every length of the ladder stand in one haystack of the longest. Its
prompt is decoded once; at each length the questions branch off, and the haystack goes on. Classic:
one needle at one depth; prompts share what comes before it.

What a model sees is in both modes exactly what it would see if each question were asked on its
own: a branch is cut out of the tokens of its whole prompt (ADR 4).
"""

from __future__ import annotations

from collections.abc import Sequence

from quantkit.config.recipe import RetrievalRecipe
from quantkit.retrieval.branches import Branch, Prompts, Question, Tokenize
from quantkit.retrieval.chat import Frame
from quantkit.retrieval.classic import classic_prompts
from quantkit.retrieval.needles import SINGLE_INSTRUCTION
from quantkit.retrieval.one_pass import one_pass_prompts

__all__ = ["Branch", "Prompts", "Question", "classic_prompts", "one_pass_prompts", "prompts_of"]


def prompts_of(
    tokenize: Tokenize,
    frame: Frame,
    haystack: Sequence[str],
    recipe: RetrievalRecipe,
    seed: int,
    bos: int | None = None,
) -> Prompts:
    """The prompts of one seed in the recipe's mode; `frame` has `INSTRUCTION`.

    Raises:
        InputError: as in `one_pass_prompts` and `classic_prompts`.
    """
    if recipe.mode == "classic":
        frame = frame.instructing(SINGLE_INSTRUCTION)
        return classic_prompts(tokenize, frame, haystack, recipe, seed, bos)
    return one_pass_prompts(tokenize, frame, haystack, recipe, seed, bos)
