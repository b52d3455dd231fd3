"""What a retrieval check found: answers, scores by task and length, and what the gate looks at."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from quantkit.retrieval.statistics import Bounds, hit_rate_bounds

MAIN_TASKS = ("multikey", "single")
"""What the gate looks at where a recipe names no tasks: of the one-pass and the classic check."""


@dataclass(frozen=True)
class Answer:
    """One question that was asked at one context length: what was expected, what came.

    Attributes:
        context_tokens: the rung of the ladder, prompt and longest answer together.
        prompt_tokens: of the whole prompt that the model saw.
        task: `multikey`, `single`, or a probe's name.
        index: of the question, within its seed, length and task.
        depth: of the needle in the haystack of this length, 0 (begin) to 1 (end).
        values: the right values; none where the key was never hidden.
        hit: all of them were found, or an absent key was declined.
        found: how many of them.
        truncated: the limit of answer tokens cut the answer off.
        log_probability: of the right answer, nats, teacher-forced; None where there is not just
            one, or where it was not measured.
        rank: of the right answer's worst token among the vocabulary; 1: greedy decoding says it.
        margin: log_probability less that of the likeliest near miss.
    """

    context_tokens: int
    prompt_tokens: int
    seed: int
    task: str
    index: int
    depth: float
    key: str
    values: tuple[str, ...]
    answer: str
    hit: bool
    found: int
    truncated: bool
    log_probability: float | None = None
    rank: int | None = None
    margin: float | None = None

    @classmethod
    def read(cls, line: str) -> Self:
        """The answer in a line of niah.jsonl."""
        fields = json.loads(line)
        return cls(**{**fields, "values": tuple(fields["values"])})

    @property
    def place(self) -> tuple[int, int, str, int]:
        """(length, seed, task, index): the same question for every artifact of one tokenizer."""
        return self.context_tokens, self.seed, self.task, self.index


@dataclass(frozen=True)
class TaskScore:
    """One task at one context length, all seeds together.

    Attributes:
        keys: different keys that were hidden before the questions; `multikey-KEYS`.
        truncated: answers that missed because they were cut off.
        log_probability: mean of those that have one.
    """

    task: str
    context_tokens: int
    keys: int
    trials: int
    hits: int
    lower_bound: float
    upper_bound: float
    truncated: int
    log_probability: float | None

    @property
    def name(self) -> str:
        """`multikey-128`; every other task is called by its name."""
        return f"multikey-{self.keys}" if self.task == "multikey" else self.task


@dataclass(frozen=True)
class Rung:
    """One length of the ladder: what it cost.

    Attributes:
        keys: as in `TaskScore`, of the first seed.
        prefill_tokens, prefill_seconds: of the haystack from the rung before up to this one, as
            far as this run decoded it, all seeds together.
        question_tokens: of the questions' own parts, each decoded on a fork.
        decode_tokens, decode_seconds: one sequence alone, a token at a time, behind this context.
        fork_difference: largest relative difference of the logits of one question asked before
            and after all others: whether forks left the prefix as it was.
    """

    context_tokens: int
    keys: int
    prefill_tokens: int
    prefill_seconds: float
    question_tokens: int
    decode_tokens: int
    decode_seconds: float
    fork_difference: float | None

    @property
    def prefill_rate(self) -> float | None:
        """Tokens a second; None where nothing was timed."""
        return _rate(self.prefill_tokens, self.prefill_seconds)

    @property
    def decode_rate(self) -> float | None:
        """Tokens a second; None where nothing was timed."""
        return _rate(self.decode_tokens, self.decode_seconds)


def _rate(tokens: int, seconds: float) -> float | None:
    return tokens / seconds if tokens and seconds > 0 else None


@dataclass(frozen=True)
class DeviceUse:
    """Memory that the check takes of one device: as planned without weights, and then in use.

    Attributes:
        device: llama.cpp's name of it, `CPU` or `CUDA0`.
    """

    device: str
    planned_weights_bytes: int
    planned_context_bytes: int
    planned_compute_bytes: int
    weights_bytes: int
    context_bytes: int
    compute_bytes: int


@dataclass(frozen=True)
class Retrieval:
    """What a retrieval check found.

    Attributes:
        mode: `one-pass` or `classic`.
        scores: by task, in the order of asking, then by length.
        forked: whether questions were asked on forks, or each after a prefill of its own.
        fork_difference: of the self-test: largest relative logit difference between a fork and a
            fresh decode; of a server: of log-probabilities, in nats.
        prefill_tokens: haystack tokens that answering all takes, decoded once each.
        question_tokens: of the questions' own parts.
        classic_tokens: what one prefill a question would take.
        memory: by device; empty where another process runs the model.
    """

    mode: str
    answers: tuple[Answer, ...]
    scores: tuple[TaskScore, ...]
    rungs: tuple[Rung, ...]
    forked: bool
    fork_difference: float
    prefill_tokens: int
    question_tokens: int
    classic_tokens: int
    memory: tuple[DeviceUse, ...] = ()

    @property
    def name(self) -> str:
        """The main task's at the longest context: `multikey-128`, `single`."""
        main = [score for score in self.scores if score.task in MAIN_TASKS]
        return main[-1].name

    def gated(self, tasks: Sequence[str]) -> tuple[TaskScore, ...]:
        """Scores that the gate looks at: of `tasks`, or the main one, at the longest context."""
        longest = max(score.context_tokens for score in self.scores)
        last = {score.task: score for score in self.scores if score.context_tokens == longest}
        return tuple(last[task] for task in tasks or MAIN_TASKS if task in last)

    def passes(self, tasks: Sequence[str], minimum_lower_bound: float | None) -> bool:
        """Whether each gated task's bound reaches the recipe's; without a minimum all pass."""
        if minimum_lower_bound is None:
            return True
        gated = self.gated(tasks)
        return bool(gated) and all(s.lower_bound >= minimum_lower_bound for s in gated)


def score_tasks(
    answers: Sequence[Answer], keys: dict[int, int], *, clustered: bool = False
) -> tuple[TaskScore, ...]:
    """Hits and bounds by task and length.

    Args:
        keys: context length → keys hidden before its questions.
        clustered: bounds that allow for haystacks (seeds) of different difficulty.
    """
    scores = []
    tasks = dict.fromkeys(answer.task for answer in answers)
    lengths = sorted({answer.context_tokens for answer in answers})
    for task in tasks:
        for length in lengths:
            some = [a for a in answers if a.task == task and a.context_tokens == length]
            if some:
                scores.append(_score(task, length, keys[length], some, clustered))
    return tuple(scores)


def _score(
    task: str, length: int, keys: int, answers: Sequence[Answer], clustered: bool
) -> TaskScore:
    by_seed = {a.seed: [0, 0] for a in answers}
    for answer in answers:
        by_seed[answer.seed][0] += answer.hit
        by_seed[answer.seed][1] += 1
    counts = [(hits, trials) for hits, trials in by_seed.values()]
    bounds: Bounds = hit_rate_bounds(counts, clustered=clustered)
    known = [a.log_probability for a in answers if a.log_probability is not None]
    return TaskScore(
        task=task,
        context_tokens=length,
        keys=keys,
        trials=len(answers),
        hits=sum(a.hit for a in answers),
        lower_bound=bounds.lower,
        upper_bound=bounds.upper,
        truncated=sum(a.truncated and not a.hit for a in answers),
        log_probability=sum(known) / len(known) if known else None,
    )
