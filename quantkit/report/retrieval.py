"""A retrieval check as cells of a heatmap, and in sentences: the gate, the cost, the forks."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

from quantkit.core.units import tokens_text
from quantkit.retrieval.results import Answer, Retrieval
from quantkit.retrieval.statistics import Bounds, hit_rate_bounds


def check_text(found: Retrieval) -> str:
    """What was hidden, asked and counted."""
    recipe = found.recipe
    if recipe.mode == "classic":
        asked = "single: one key in a haystack of ordinary prose, at each length and depth"
    else:
        asked = (
            "multikey-N: N keys with near misses, each hidden once with its number in one haystack "
            f"of ordinary prose; {recipe.needles} are asked at each length, each on its own fork "
            "of one prefill"
        )
    if len(recipe.seeds) > 1:
        asked += f", in each of {len(recipe.seeds)} haystacks"
    thinking = " after thinking" if recipe.thinking else ""
    return (
        f"Retrieval is {asked}. Answers are greedy{thinking}, with the KV cache in "
        f"{found.kv_type}. What is proven is the lower bound of the hit rate, one-sided. "
        "Log-probabilities are of the right answer, in nats, a mean; 0 is certainty."
    )


def gate_text(found: Retrieval) -> str:
    """What releases a level, and what was found: `Gate: the exact lower bound … must reach …`."""
    gated, minimum = found.gated, found.recipe.minimum_lower_bound
    scores = "; ".join(
        f"{score.name}: {score.hits} of {score.trials} found, "
        f"at least {100 * score.lower_bound:.1f} %"
        for score in gated
    )
    kind = (
        "lower bound, which allows for the spread between seeds,"
        if found.recipe.clustered
        else "exact lower bound"
    )
    bound = f"{kind} of the hit rate at {tokens_text(found.context_tokens)} tokens"
    sure = f"(one-sided, {100 * found.confidence:.0f} %)"
    if minimum is None:
        return f"No gate; what is shown is the {bound} {sure}. {scores}."
    short = [score.name for score in gated if score.lower_bound < minimum]
    verdict = f"{', '.join(short)} fell short" if short else "passed"
    return (
        f"Gate: the {bound} {sure} must reach {100 * minimum:.1f} %. {scores}. Result: {verdict}."
    )


def cost_text(found: Retrieval, *, forked: bool) -> str:
    """What answering took, beside one prefill for each question.

    Args:
        forked: the questions shared prefills; also a server's, which keeps prefixes.
    """
    done = found.prefill_tokens + found.question_tokens
    if not forked:
        return (
            f"Each question had a prefill of its own, {found.classic_tokens:,} tokens in all; on "
            f"forks of one prefill they would have been {done:,}."
        )
    return (
        f"Haystacks of {found.prefill_tokens:,} tokens and questions of "
        f"{found.question_tokens:,}; one prefill a question takes {found.classic_tokens:,}, "
        f"{found.classic_tokens / done:,.1f} times as many."
    )


def forks_text(found: Retrieval) -> str:
    """Whether a fork was shown to answer as a prompt of its own does."""
    again = [r.fork_difference for r in found.rungs if r.fork_difference is not None]
    compared = "a fork beside a fresh decode"
    if again:
        lengths = f"length{'s' * (len(again) > 1)}"
        compared += f", and a question asked again after all others at {len(again)} {lengths}"
    worst = worst_fork(found)
    if worst == 0:
        return f"Forks are exact: {compared} gave the same logits, bit for bit."
    return f"Forks differ by at most {worst:.1e} of the largest logit: {compared}."


def worst_fork(found: Retrieval) -> float:
    """The largest difference that a fork has shown."""
    shown = [found.fork_difference, *(rung.fork_difference for rung in found.rungs)]
    return max(difference or 0.0 for difference in shown)


def rate_text(per_second: float | None) -> str:
    """`885` or `23.4` tokens a second; `–` where nothing was timed."""
    if per_second is None:
        return "–"
    return f"{per_second:,.0f}" if per_second >= 99.95 else f"{per_second:.1f}"


def nats_text(nats: float | None) -> str:
    """`−0.0004`, `−0.021`, `−1.24`, `−31.9`, and `–` where there is none."""
    if nats is None:
        return "–"
    if not math.isfinite(nats):
        return str(nats).replace("-", "−").replace("inf", "∞")
    limits = (0.00995, 0.9995, 9.995)  # below them four, three, two digits after the point
    text = f"{nats:.{4 - bisect.bisect_right(limits, abs(nats))}f}"
    return text.replace("-", "−") if float(text) else "0"


DEPTH_BANDS = 10
DEPTHLESS_TASKS = ("absent",)
"""Tasks without a needle in the haystack: their answers share one band."""


@dataclass(frozen=True)
class Cell:
    """The answers at one context length in one band of the depth, shallowest first; at least one.

    Attributes:
        bounds: exact, of all trials together, whatever their seeds.
        log_probability: mean of those that have one, nats; None where none has.
    """

    answers: tuple[Answer, ...]
    bounds: Bounds
    log_probability: float | None

    @property
    def trials(self) -> int:
        return len(self.answers)

    @property
    def hits(self) -> int:
        return sum(answer.hit for answer in self.answers)

    @property
    def truncated(self) -> int:
        """Answers that missed because they were cut off."""
        return sum(answer.truncated and not answer.hit for answer in self.answers)

    @property
    def share(self) -> float:
        """Of the trials, those that hit."""
        return self.hits / self.trials

    @property
    def probability(self) -> float | None:
        """Geometric mean of the right answers' probabilities."""
        return None if self.log_probability is None else math.exp(self.log_probability)


@dataclass(frozen=True)
class Grid:
    """One task's answers by length and depth.

    Attributes:
        lengths: context tokens, shortest first.
        bands: labels of the columns, per cent of the depth; one for a task that has none.
        cells: (context tokens, column) → its answers; missing where nothing was asked.
    """

    task: str
    lengths: tuple[int, ...]
    bands: tuple[str, ...]
    cells: dict[tuple[int, int], Cell]

    @property
    def has_log_probabilities(self) -> bool:
        return any(cell.log_probability is not None for cell in self.cells.values())


def grid_of(answers: Sequence[Answer], task: str) -> Grid:
    """The answers to `task` by length and by tenths of the depth."""
    wide = task not in DEPTHLESS_TASKS
    groups: dict[tuple[int, int], list[Answer]] = {}
    for answer in answers:
        if answer.task == task:
            band = min(int(answer.depth * DEPTH_BANDS), DEPTH_BANDS - 1) if wide else 0
            groups.setdefault((answer.context_tokens, band), []).append(answer)
    width = 100 // DEPTH_BANDS
    names = tuple(f"{width * band}–{width * (band + 1)}" for band in range(DEPTH_BANDS))
    return Grid(
        task=task,
        lengths=tuple(sorted({length for length, _ in groups})),
        bands=names if wide else ("any",),
        cells={place: _cell(groups[place]) for place in sorted(groups)},
    )


def _cell(answers: Sequence[Answer]) -> Cell:
    known = [a.log_probability for a in answers if a.log_probability is not None]
    return Cell(
        answers=tuple(sorted(answers, key=lambda a: (a.depth, a.seed, a.index))),
        bounds=hit_rate_bounds([(sum(a.hit for a in answers), len(answers))]),
        log_probability=sum(known) / len(known) if known else None,
    )
