"""artifact → niah.jsonl: the retrieval check at each context length.

One prefill answers every question: the haystack is decoded once on sequence 0, each question on a
fork of it, and the fork is dropped. The gate is a lower bound of the hit rate at the longest
context, not the rate itself.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import EnvironmentFault, InputError
from quantkit.journal import Journal
from quantkit.native.child import Emit, run_isolated
from quantkit.native.settings import ContextSettings, DeviceSettings
from quantkit.progress import SILENT, Progress, told_to
from quantkit.receipts import write_text
from quantkit.recipe import RetrievalRecipe
from quantkit.retrieval.results import Answer, Retrieval, score_lengths
from quantkit.retrieval.scoring import is_hit

if TYPE_CHECKING:
    from quantkit.native.llama import Context, Vocabulary

FORK_TEST_TOKENS = 96
FORK_TEST_TAIL = 8
FORK_TOLERANCE = 1e-3


@dataclass(frozen=True)
class CheckSettings:
    """What the check runs with: devices, KV cache type, tokens of a physical batch."""

    devices: DeviceSettings
    kv_type: str
    ubatch_tokens: int = 512


def check_retrieval(
    model: Path,
    recipe: RetrievalRecipe,
    settings: CheckSettings,
    out: Path,
    work: Path,
    haystack: Path | None = None,
    progress: Progress = SILENT,
) -> Retrieval:
    """Ask `model` for every needle at every context length, and write the answers to `out`.

    Answers are kept in `work` as they come; a run that was killed asks only the rest.

    Raises:
        InputError: llama.cpp cannot load the file, or the haystack is too short.
        EnvironmentFault: no memory for the context, a crash, or forks are not exact here.
    """
    total = len(recipe.seeds) * sum(n + recipe.needles for n in recipe.context_tokens)
    progress.start(total, "tokens")

    path, purpose = work / "answers.jsonl", json.dumps(recipe.model_dump(mode="json"))
    fork_difference: float = run_isolated(
        "quantkit.stages.niah:ask_in_child",
        {
            "model_path": model,
            "recipe": recipe,
            "settings": settings,
            "journal_path": path,
            "purpose": purpose,
            "haystack": haystack,
        },
        told_to(progress),
    )
    lines = Journal(path, purpose).lines
    answers = sorted(
        (Answer(**json.loads(line)) for line in lines),
        key=lambda a: (a.context_tokens, a.seed, a.index),
    )
    write_text(out, "".join(json.dumps(asdict(answer)) + "\n" for answer in answers))
    return Retrieval(tuple(answers), score_lengths(answers), fork_difference)


def ask_in_child(
    model_path: Path,
    recipe: RetrievalRecipe,
    settings: CheckSettings,
    journal_path: Path,
    purpose: str,
    haystack: Path | None,
    emit: Emit,
) -> float:
    """Body of the child process of `check_retrieval`: the fork difference."""
    from quantkit.native.llama import Context, Model
    from quantkit.retrieval.chat import frame
    from quantkit.retrieval.haystack import sentences
    from quantkit.retrieval.prompt import build_prompt

    model = Model(model_path, settings.devices)
    vocab = model.vocab
    longest = max(recipe.context_tokens)
    if longest > model.trained_context_tokens:
        raise InputError(
            f"the check asks at {longest} tokens, {model_path.name} was trained for "
            f"{model.trained_context_tokens}; check a shorter context"
        )
    shape = frame(model.chat_template(), vocab.token_text(vocab.bos), vocab.token_text(vocab.eos))
    sizes = ContextSettings(
        context_tokens=-(-longest // 256) * 256,
        batch_tokens=settings.ubatch_tokens,
        ubatch_tokens=settings.ubatch_tokens,
        sequences=2,
        kv_type=settings.kv_type,
    )
    context = Context(model, sizes)
    difference = _fork_difference(context, vocab.size)
    if not difference <= FORK_TOLERANCE:
        raise EnvironmentFault(
            f"a forked sequence differs from a fresh decode by {difference:.2e} on this device "
            f"(limit {FORK_TOLERANCE:.0e}): its answers would prove nothing; update "
            "llama-cpp-python"
        )
    journal = Journal(journal_path, purpose)
    known = (json.loads(line) for line in journal.lines)
    done = {(a["context_tokens"], a["seed"], a["index"]) for a in known}
    begins_with_bos = vocab.adds_bos and not shape.before.startswith(vocab.token_text(vocab.bos))
    for length in sorted(recipe.context_tokens):
        for seed in recipe.seeds:
            open_questions = [i for i in range(recipe.needles) if (length, seed, i) not in done]
            emit(("advance", recipe.needles - len(open_questions)))
            if not open_questions:
                emit(("advance", length))
                continue
            prompt = build_prompt(
                vocab.tokenize,
                shape,
                sentences(haystack),
                context_tokens=length - begins_with_bos,
                needles=recipe.needles,
                digits=recipe.digits,
                answer_tokens=recipe.answer_tokens,
                seed=seed,
            )
            prefix = prompt.prefix
            if begins_with_bos:
                prefix = np.concatenate([np.array([vocab.bos], np.int32), prefix])
            context.clear()
            step = sizes.batch_tokens
            for at in range(0, len(prefix), step):
                context.decode(prefix[at : at + step], at)
                emit(("advance", min(step, len(prefix) - at)))
            emit(("advance", length - len(prefix)))
            for index in open_questions:
                tail, needle = prompt.tails[index], prompt.needles[index]
                context.fork(0, 1)
                text, truncated = _greedy(context, vocab, tail, len(prefix), recipe.answer_tokens)
                context.drop(1)
                answer = Answer(
                    context_tokens=length,
                    prefix_tokens=len(prefix),
                    seed=seed,
                    index=index,
                    depth=round(prompt.depths[index], 6),
                    key=needle.key,
                    value=needle.value,
                    answer=text,
                    hit=is_hit(text, needle.value),
                    truncated=truncated,
                )
                journal.append(json.dumps(asdict(answer)))
                emit(("advance", 1))
    return difference


def _greedy(
    context: Context,
    vocab: Vocabulary,
    tail: NDArray[np.int32],
    position: int,
    limit: int,
) -> tuple[str, bool]:
    """Decode `tail` on sequence 1 and answer greedily: (text, whether the limit cut it off)."""
    logits = context.decode(tail, position, sequence=1)
    position += len(tail)
    tokens: list[int] = []
    while len(tokens) < limit:
        token = int(np.argmax(logits))
        if vocab.is_end(token):
            return vocab.text(tokens), False
        tokens.append(token)
        logits = context.decode(np.array([token], np.int32), position, sequence=1)
        position += 1
    return vocab.text(tokens), True


def _fork_difference(context: Context, vocabulary: int) -> float:
    """Largest logit difference of a tail on a fork and on a fresh sequence, relative."""
    tokens = np.random.default_rng(1).integers(0, vocabulary, FORK_TEST_TOKENS, dtype=np.int32)
    head, tail = tokens[:-FORK_TEST_TAIL], tokens[-FORK_TEST_TAIL:]
    context.decode(head, 0)
    context.fork(0, 1)
    forked = context.decode(tail, len(head), sequence=1)
    context.drop(1)
    context.clear()
    context.decode(head, 0)
    fresh = context.decode(tail, len(head))
    context.clear()
    return float(np.abs(forked - fresh).max() / max(float(np.abs(fresh).max()), 1e-6))
