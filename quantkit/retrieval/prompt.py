"""The prompts of a retrieval check.

One-pass: hidden sentences for every length of the ladder stand in one haystack of the longest. Its
prompt is decoded once; at each length the questions branch off, and the haystack goes on. Classic:
one needle at one depth; prompts share what comes before it.

What a model sees is in both modes exactly what it would see if each question were asked on its
own: a branch is cut out of the tokens of its whole prompt (ADR 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from quantkit.config.recipe import RetrievalRecipe
from quantkit.core.haystack import sentences
from quantkit.retrieval.branches import Branch, Prompts, Question, Tokenize
from quantkit.retrieval.chat import Frame, frame
from quantkit.retrieval.classic import classic_prompts
from quantkit.retrieval.needles import SINGLE_INSTRUCTION
from quantkit.retrieval.one_pass import one_pass_prompts

__all__ = [
    "Branch",
    "Prompts",
    "Question",
    "all_prompts",
    "classic_prompts",
    "one_pass_prompts",
    "prompts_of",
]


def all_prompts(
    tokenize: Tokenize,
    template: str | None,
    special: tuple[str, str],
    recipe: RetrievalRecipe,
    haystack: Path | None,
    bos: int | None,
) -> list[Prompts]:
    """The prompts of each seed.

    Args:
        template: the model's chat template, Jinja.
        special: texts of BOS and EOS for it.
        haystack: a text; the shipped one by default.
        bos: token to begin with.

    Raises:
        InputError: the haystack cannot be read, or as in `prompts_of`.
    """
    text = frame(template, *special, thinking=recipe.thinking)
    some = sentences(haystack)
    return [prompts_of(tokenize, text, some, recipe, seed, bos) for seed in recipe.seeds]


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
