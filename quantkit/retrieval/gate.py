"""The release gate before the check: its lengths, and what passes."""

from __future__ import annotations

from quantkit.config.recipe import RetrievalRecipe
from quantkit.config.target import Target
from quantkit.core.errors import InputError
from quantkit.retrieval.statistics import CONFIDENCE, lower_bound, needed_hits, needed_trials

LADDER = (8192, 32768, 131072, 262144)


def retrieval_for(
    recipe: RetrievalRecipe, target: Target, trained_context_tokens: int
) -> tuple[RetrievalRecipe, str | None]:
    """The retrieval check with its lengths worked out, and why some were left out.

    A recipe without lengths gets a ladder that ends at the target's context; no length exceeds
    what the model was trained for.
    """
    if not recipe.context_tokens:
        full = min(target.context_tokens, trained_context_tokens)
        ladder = (*(rung for rung in LADDER if rung < full), full)
        return recipe.model_copy(update={"context_tokens": ladder}), None
    lengths = tuple(n for n in sorted(recipe.context_tokens) if n <= trained_context_tokens)
    if len(lengths) == len(recipe.context_tokens):
        return recipe, None
    lengths = lengths or (trained_context_tokens,)
    return recipe.model_copy(update={"context_tokens": lengths}), (
        f"the model was trained for {trained_context_tokens} tokens: retrieval is checked up to "
        f"{lengths[-1]}"
    )


def check_gate_is_possible(recipe: RetrievalRecipe) -> None:
    """Refuse a gate that even perfect answers could not pass.

    Raises:
        InputError: says how many questions the bound needs.
    """
    bound = recipe.minimum_lower_bound or 0.0
    for task in recipe.gated:
        trials = recipe.trials(task)
        best = lower_bound(trials, trials)
        if best < bound:
            needed = needed_trials(bound)
            more = f"ask {needed} or more (those of one haystack x seeds)"
            raise InputError(
                f"{trials} questions of {task} cannot prove a hit rate of {bound:.1%} with "
                f"{CONFIDENCE:.0%} confidence: even {trials}/{trials} proves only {best:.1%}; "
                + (more if needed else "ask for less than 100 %")
            )


def gate_words(recipe: RetrievalRecipe) -> str:
    """The hits that pass: `61 of 64 multikey at 32,768 tokens`."""
    bound = recipe.minimum_lower_bound
    longest = max(recipe.context_tokens)
    if not bound:
        return f"nothing is asked of the hit rate at {longest:,} tokens: it is shown"
    asked = [(recipe.trials(task), task) for task in recipe.gated]
    parts = [f"{needed_hits(trials, bound)} of {trials} {task}" for trials, task in asked]
    spread = ", more where haystacks differ" if recipe.clustered else ""
    return (
        f"passes with {' and '.join(parts)} at {longest:,} tokens{spread}: "
        f"{bound:.0%} or more with {CONFIDENCE:.0%} confidence"
    )
