"""The result of a retrieval check: answers, scores, costs, and the gate's verdict.

docs/retrieval.md (Files) describes every field of niah.jsonl and validation.json.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from pydantic import Field, TypeAdapter, ValidationError

from quantkit.config.recipe import RetrievalRecipe
from quantkit.core.documents import JsonDocument, Record, first_problem
from quantkit.core.errors import InputError
from quantkit.core.parsing import bounded_json
from quantkit.quantize.integrity import Integrity
from quantkit.retrieval.statistics import CONFIDENCE, hit_rate_bounds
from quantkit.study.kld_statistics import KLDStatistics

MAIN_TASKS = ("multikey", "single")
"""The gated task of a recipe that names none: of the one-pass and the classic check."""


@dataclass(frozen=True)
class Answer:
    """A line of niah.jsonl: one question at one context length, and what the model answered.

    Attributes:
        values: the right ones; empty if the key is hidden nowhere.
        hit: all values were found, or an absent key was declined.
        found: number of `values` in the answer.
        truncated: the answer's limit of tokens ended it.
        log_probability: of the right answer, nats, teacher-forced; None unless there is exactly one
            and it was measured.
        rank: of the right answer's worst token in the vocabulary; 1: greedy decoding says it.
        margin: log_probability minus that of the likeliest near miss.
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
        keys: number of different keys in the haystack of the first seed.
        truncated: misses that the limit of tokens ended.
        log_probability: mean of the answers that have one.
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
        """`multikey-KEYS`, or the task's name."""
        return f"multikey-{self.keys}" if self.task == "multikey" else self.task


@dataclass(frozen=True)
class Rung:
    """The cost of one length of the ladder.

    Attributes:
        prefill_tokens, prefill_seconds: of the haystack from the rung before up to this one.
        question_tokens: of the questions' own parts, each decoded on a fork.
        decode_tokens, decode_seconds: one sequence alone, token by token, after this context.
        fork_difference: largest relative difference of the logits of one question before and
            after all others: whether forks left the prefix unchanged.
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
        """Tokens per second; None if nothing was timed."""
        return _rate(self.prefill_tokens, self.prefill_seconds)

    @property
    def decode_rate(self) -> float | None:
        """Tokens per second; None if nothing was timed."""
        return _rate(self.decode_tokens, self.decode_seconds)


def _rate(tokens: int, seconds: float) -> float | None:
    return tokens / seconds if tokens and seconds > 0 else None


@dataclass(frozen=True)
class DeviceUse:
    """Memory on one llama.cpp device, `CPU` or `CUDA0`: as planned without weights, and in use."""

    device: str
    planned_weights_bytes: int
    planned_context_bytes: int
    planned_compute_bytes: int
    weights_bytes: int
    context_bytes: int
    compute_bytes: int


class Retrieval(Record):
    """The result of a retrieval check, as validation.json holds it.

    Attributes:
        recipe: with the lengths worked out.
        kv_type: of the KV cache; `as served` for a server.
        confidence: of each bound, one-sided.
        scores: by task, in the order of the recipe, then by length.
        forked: whether questions were asked on forks, or each after a prefill of its own.
        fork_difference: of the self-test: largest relative logit difference between a fork and a
            fresh decode; for a server a difference of log-probabilities, in nats; None if nothing
            was forked.
        prefill_tokens: haystack tokens, each decoded once; for a server those that it prefilled.
        question_tokens: of the questions' own parts.
        classic_tokens: tokens to decode with one prefill for each question.
        memory: empty if another process runs the model.
        answers: of the run that made this; niah.jsonl holds them.
    """

    recipe: RetrievalRecipe
    kv_type: str
    confidence: float = CONFIDENCE
    scores: tuple[TaskScore, ...] = Field(min_length=1)
    rungs: tuple[Rung, ...]
    forked: bool
    fork_difference: float | None
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
        """The main task's name at the longest context: `multikey-128`, `single`."""
        return next(score.name for score in self.longest if score.task in MAIN_TASKS)


@dataclass(frozen=True)
class ServerFacts:
    """The llama-server that answered; without paths and addresses, because this is published.

    Attributes:
        loopback: whether it ran on the machine of the check.
        model: its alias, or its file's name.
        context_tokens: of one slot.
        log_probabilities: whether it gives those of right answers.
        one_pass_tokens: tokens to decode if nothing is prefilled twice.
    """

    loopback: bool
    model: str
    file: str
    size_bytes: int | None
    context_tokens: int
    slots: int
    build: str
    chat_template: bool
    log_probabilities: bool
    one_pass_tokens: int


class Validation(JsonDocument):
    """validation.json: retrieval, divergence and the artifact's own weights.

    Attributes:
        passed: the gate's verdict.
        kld: divergence from the base; None: not measured.
        integrity: comparison with the model that the artifact was made from, if any.
        artifact: name of each file without folder → SHA-256; None: not known.
        server: only if a running server was asked.
    """

    version: Literal[1] = 1
    passed: bool
    niah: Retrieval
    kld: KLDStatistics | None = None
    integrity: Integrity | None = None
    artifact: dict[str, str] | None = None
    server: ServerFacts | None = None


def answer_lines(answers: Iterable[Answer]) -> str:
    """The content of niah.jsonl: a line for each answer."""
    return "".join(json.dumps(asdict(answer)) + "\n" for answer in answers)


def parse_answers(content: bytes, name: str) -> tuple[Answer, ...]:
    """The answers in a niah.jsonl, in its order; errors call it `name`.

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
    answers: Iterable[Answer], keys: dict[int, int], *, clustered: bool = False
) -> tuple[TaskScore, ...]:
    """Hits and bounds by task, in their order in `answers`, and length.

    Args:
        keys: context length → keys in its haystack.
        clustered: bounds that allow for haystacks (seeds) of different difficulty.
    """
    groups: dict[str, dict[int, list[Answer]]] = {}
    for answer in answers:
        groups.setdefault(answer.task, {}).setdefault(answer.context_tokens, []).append(answer)
    return tuple(
        _score(some, keys[length], clustered)
        for by_length in groups.values()
        for length, some in sorted(by_length.items())
    )


def _score(answers: Sequence[Answer], keys: int, clustered: bool) -> TaskScore:
    hits_by_seed: dict[int, list[bool]] = {}
    for answer in answers:
        hits_by_seed.setdefault(answer.seed, []).append(answer.hit)
    counts = [(sum(hits), len(hits)) for hits in hits_by_seed.values()]
    bounds = hit_rate_bounds(counts, clustered=clustered)
    known = [a.log_probability for a in answers if a.log_probability is not None]
    return TaskScore(
        task=answers[0].task,
        context_tokens=answers[0].context_tokens,
        keys=keys,
        trials=len(answers),
        hits=sum(a.hit for a in answers),
        lower_bound=bounds.lower,
        upper_bound=bounds.upper,
        truncated=sum(a.truncated and not a.hit for a in answers),
        log_probability=sum(known) / len(known) if known else None,
    )
