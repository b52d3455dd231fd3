"""An artifact and what was measured of it, and the pairing of two artifacts' answers."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quantkit.core.errors import InputError
from quantkit.retrieval.results import MAIN_TASKS, Answer, Retrieval, Rung, TaskScore
from quantkit.study.kld_statistics import KLDStatistics, PositionStatistics

_SHARD = re.compile(r"(?<=.)-00001-of-\d{5}$")


@dataclass(frozen=True)
class Measured:
    """An artifact and what was measured of it.

    Attributes:
        name: of its file, as `names_of` gives it.
        positions: of the same text as every other artifact's, in `chunks` chunks of equal length.
        is_base: whether it is what the divergence is measured from.
        retrieval: answers to the same questions as every other artifact's; None: not asked.
    """

    path: Path
    name: str
    size_bytes: int
    parameters: int
    positions: PositionStatistics
    chunks: int
    divergence: KLDStatistics
    is_base: bool = False
    retrieval: Retrieval | None = None

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.size_bytes / self.parameters

    @property
    def main_answers(self) -> tuple[Answer, ...]:
        """Of the main task, multikey or single, at all lengths."""
        answers = () if self.retrieval is None else self.retrieval.answers
        return tuple(answer for answer in answers if answer.task in MAIN_TASKS)

    @property
    def main_scores(self) -> tuple[TaskScore, ...]:
        """Of the main task, the shortest context first."""
        scores = () if self.retrieval is None else self.retrieval.scores
        return tuple(score for score in scores if score.task in MAIN_TASKS)

    @property
    def hits(self) -> int | None:
        """Of the main task at all lengths."""
        answers = self.main_answers
        return sum(answer.hit for answer in answers) if answers else None

    @property
    def log_probability(self) -> float | None:
        """Mean of the main task's right answers, nats, at all lengths."""
        answers = self.main_answers
        known = [a.log_probability for a in answers if a.log_probability is not None]
        return sum(known) / len(known) if known else None

    @property
    def rungs(self) -> tuple[Rung, ...]:
        return () if self.retrieval is None else self.retrieval.rungs

    @property
    def lengths(self) -> tuple[tuple[TaskScore, Rung], ...]:
        """The main task's score and the cost of each context, the shortest first."""
        return tuple(zip(self.main_scores, self.rungs, strict=True))


def fine_nats_text(nats: float | None) -> str:
    """`−0.00053`, `−2.31`: three digits, because artifacts differ in the small ones; or `–`."""
    if nats is None:
        return "–"
    text = f"{nats:.3g}" if abs(nats) >= 1e-4 or nats == 0 else f"{nats:.1e}"
    return text.replace("-", "−")


def ratio_text(ratio: float) -> str:
    """`1.0023` of perplexities, and `∞` of a model that is broken."""
    return f"{ratio:.4f}" if math.isfinite(ratio) else "∞"


def ratio_error_text(divergence: KLDStatistics) -> str:
    """Standard error of the perplexity ratio; `–` where that is infinite."""
    ratio = divergence.perplexity_ratio
    return ratio_text(ratio * divergence.ln_ratio_error) if math.isfinite(ratio) else "–"


def names_of(paths: Sequence[Path]) -> list[str]:
    """A name for each of different files: its own, with as many folders as tell them apart.

    What all names begin with, up to a hyphen, is left out, and so is the number of a shard:
    `x-Q4_K_M` and `x-Q4_K_S` are called Q4_K_M and Q4_K_S. Either stays where two names would be
    alike without it, or one be empty.
    """
    parts = [path.with_name(_SHARD.sub("", path.stem)).parts for path in paths]
    if len(set(parts)) < len(parts):
        parts = [path.with_name(path.stem).parts for path in paths]
    if len(set(parts)) < len(parts):  # `m.gguf` and `m.bin`
        parts = [path.parts for path in paths]
    names = []
    for mine in parts:
        depth = 1
        while depth < len(mine) and sum(other[-depth:] == mine[-depth:] for other in parts) > 1:
            depth += 1
        names.append("/".join(mine[-depth:]))
    if len(names) < 2:
        return names
    both = zip(min(names), max(names), strict=False)  # what these two share, all do
    shared = "".join(a for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], both))
    cut = [name[shared.rfind("-") + 1 :] for name in names]
    return cut if all(cut) else names


def paired_answers(first: Measured, second: Measured) -> list[tuple[Answer, Answer]]:
    """The main task's answers of both to the same questions.

    Raises:
        InputError: one was asked something that the other was not.
    """
    mine = {answer.place: answer for answer in first.main_answers}
    others = {answer.place: answer for answer in second.main_answers}
    for place in mine.keys() ^ others.keys():
        asked, not_asked = (first, second) if place in mine else (second, first)
        raise InputError(
            f"{asked.name} was asked {_words(place)} and {not_asked.name} was not, so their "
            "answers cannot be paired; compare them in one run"
        )
    pairs = [(mine[place], others[place]) for place in mine]
    for one, other in pairs:
        asked_alike = (one.key, one.values, one.prompt_tokens) == (
            other.key, other.values, other.prompt_tokens,
        )  # fmt: skip
        known = (one.log_probability is None) == (other.log_probability is None)
        if not (asked_alike and known):
            raise InputError(
                f"{first.name} and {second.name} got different prompts for {_words(one.place)}, so "
                "their answers cannot be paired; compare files with one tokenizer and chat template"
            )
    return pairs


def _words(place: tuple[int, int, str, int]) -> str:
    length, seed, task, index = place
    return f"question {index} of {task}, seed {seed}, at {length:,} tokens"
