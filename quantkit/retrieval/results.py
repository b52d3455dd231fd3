"""What a retrieval check found: answers, scores by task and length, and what the gate looks at."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from pydantic import Field, TypeAdapter, ValidationError

from quantkit.config.recipe import RetrievalRecipe
from quantkit.core.errors import InputError
from quantkit.core.json_documents import Record, bounded_json, first_problem
from quantkit.retrieval.statistics import CONFIDENCE, Bounds, hit_rate_bounds

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

    @property
    def place(self) -> tuple[int, int, str, int]:
        """(length, seed, task, index): the same question for every artifact of one tokenizer."""
        return self.context_tokens, self.seed, self.task, self.index


_ANSWER: TypeAdapter[Answer] = TypeAdapter(Answer)


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


class Retrieval(Record):
    """What a retrieval check found, as validation.json holds it.

    Attributes:
        recipe: what was asked, with the lengths worked out.
        kv_type: of the KV cache; `as served` where a server has its own.
        confidence: of each bound, one-sided.
        scores: by task, in the order of asking, then by length.
        forked: whether questions were asked on forks, or each after a prefill of its own.
        fork_difference: of the self-test: largest relative logit difference between a fork and a
            fresh decode; of a server: of log-probabilities, in nats.
        prefill_tokens: haystack tokens that answering all takes, decoded once each; of a server
            what it prefilled in truth.
        question_tokens: of the questions' own parts.
        classic_tokens: what one prefill a question would take.
        memory: by device; empty where another process runs the model.
        answers: of the run that made this; a file of them is niah.jsonl.
    """

    recipe: RetrievalRecipe
    kv_type: str
    confidence: float = CONFIDENCE
    scores: tuple[TaskScore, ...] = Field(min_length=1)
    rungs: tuple[Rung, ...]
    forked: bool
    fork_difference: float
    prefill_tokens: int
    question_tokens: int
    classic_tokens: int
    memory: tuple[DeviceUse, ...] = ()
    answers: tuple[Answer, ...] = Field(default=(), exclude=True)

    @property
    def context_tokens(self) -> int:
        """The longest context that was checked."""
        return max(score.context_tokens for score in self.scores)

    @property
    def longest(self) -> tuple[TaskScore, ...]:
        """A score for each task, at the longest context."""
        return tuple(s for s in self.scores if s.context_tokens == self.context_tokens)

    @property
    def gated(self) -> tuple[TaskScore, ...]:
        """The scores that the gate looks at, in the recipe's order; the first is the headline."""
        longest = {score.task: score for score in self.longest}
        return tuple(longest[task] for task in self.recipe.gated if task in longest)

    @property
    def passed(self) -> bool:
        """Whether each gated task was asked and its bound reaches the recipe's minimum, if any."""
        least = self.recipe.minimum_lower_bound
        return least is None or (
            len(self.gated) == len(self.recipe.gated)
            and all(score.lower_bound >= least for score in self.gated)
        )

    @property
    def name(self) -> str:
        """The main task's at the longest context: `multikey-128`, `single`."""
        return next(score.name for score in self.longest if score.task in MAIN_TASKS)


def answer_lines(answers: Iterable[Answer]) -> str:
    """The content of niah.jsonl: a line for each answer."""
    return "".join(json.dumps(asdict(answer)) + "\n" for answer in answers)


def parse_answers(content: bytes, name: str) -> tuple[Answer, ...]:
    """The answers in a niah.jsonl, in its order.

    Args:
        name: of the file, for messages.

    Raises:
        InputError: a line is not an answer.
    """
    answers = []
    for number, line in enumerate(content.split(b"\n"), 1):
        if line:
            where = f"{name}, line {number}"
            bounded_json(line, where)
            try:
                answers.append(_ANSWER.validate_json(line, strict=True))
            except ValidationError as error:
                raise InputError(f"{where} is damaged: {first_problem(error)}") from None
    return tuple(answers)


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
