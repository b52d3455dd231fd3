"""Hand-made measurements: artifacts whose answers and texts are worse by as much as asked."""

from __future__ import annotations

import functools
import random
from pathlib import Path

import numpy as np

from quantkit.config.recipe import RetrievalRecipe
from quantkit.report.comparison.comparison import Comparison, Conditions, compared
from quantkit.report.comparison.measured import Measured
from quantkit.retrieval.results import Answer, Retrieval, Rung, score_tasks
from quantkit.study.kld_statistics import PositionStatistics

LENGTHS = (2048, 8192)
CHUNKS, ROWS = 16, 31
CONDITIONS = Conditions(
    base="demo.gguf",
    text="the haystack",
    chunks=CHUNKS,
    chunk_tokens=64,
    tokens=CHUNKS * ROWS,
    base_perplexity=7.5,
    context_tokens=LENGTHS,
    needles=32,
    seeds=(1, 2, 3),
    kv_type="q8_0",
    haystack="State of the Union addresses",
)


def answers(
    loss: float = 0.0,
    *,
    noise: float = 0.02,
    needles: int = 32,
    seeds: tuple[int, ...] = (1, 2, 3),
    lengths: tuple[int, ...] = LENGTHS,
    stream: int = 0,
) -> tuple[Answer, ...]:
    """Of every question the log-probability is lower by about `loss`; below −2 it misses.

    Args:
        stream: of the artifact's own noise; the questions are the same for all.
    """
    found = []
    mine = random.Random(stream)
    for length in lengths:
        for seed in seeds:
            questions = random.Random(f"{length}/{seed}")
            for index in range(needles):
                hard = questions.expovariate(4.0)
                log_probability = -hard - loss * (0.5 + hard) + mine.gauss(0, noise)
                hit = log_probability > -2
                found.append(
                    Answer(
                        context_tokens=length,
                        prompt_tokens=length - 30,
                        seed=seed,
                        task="multikey",
                        index=index,
                        depth=(index + 0.5) / needles,
                        key=f"key-{seed}-{index}",
                        values=(str(10_000 + index),),
                        answer=str(10_000 + index) if hit else "no",
                        hit=hit,
                        found=int(hit),
                        truncated=False,
                        log_probability=log_probability,
                        rank=1 if hit else 3,
                        margin=1.0,
                    )
                )
    return tuple(found)


def retrieval(found: tuple[Answer, ...], speed: float = 1.0) -> Retrieval:
    """A check that gave these answers."""
    lengths = sorted({answer.context_tokens for answer in found})
    rungs = tuple(
        Rung(n, 64, n, n / (3000 * speed), 90 * 64, 32, 32 / (70 * speed), 1e-6) for n in lengths
    )
    scores = score_tasks(found, dict.fromkeys(lengths, 64))
    return Retrieval(
        recipe=RetrievalRecipe(needles=32, context_tokens=tuple(lengths), seeds=(1, 2, 3)),
        kv_type="q8_0", answers=found, scores=scores, rungs=rungs, forked=True,
        fork_difference=1e-6, prefill_tokens=3 * sum(lengths), question_tokens=9000,
        classic_tokens=10**6,
    )  # fmt: skip


def positions(kld: float = 0.0, loss: float = 0.0, stream: int = 0) -> PositionStatistics:
    """KLDStatistics of about `kld` and tokens less likely by about `loss`, nats."""
    base = np.random.default_rng(99).exponential(2.0, CHUNKS * ROWS)
    mine = np.random.default_rng(stream)
    diverged = mine.exponential(kld, base.size) if kld else np.zeros(base.size)
    nll = base + loss + mine.normal(0, 0.2 * kld + 0.1 * loss, base.size)
    return PositionStatistics(diverged, nll, base, mine.random(base.size) > kld)


def measured(
    name: str,
    size_bytes: int,
    *,
    kld: float = 0.0,
    text_loss: float = 0.0,
    asked: tuple[Answer, ...] | None = None,
    stream: int = 0,
) -> Measured:
    found = positions(kld, text_loss, stream)
    return Measured(
        path=Path(f"{name}.gguf"),
        name=name,
        size_bytes=size_bytes,
        parameters=6_300_000,
        positions=found,
        chunks=CHUNKS,
        divergence=found.summary(),
        is_base=kld == 0,
        retrieval=None if asked is None else retrieval(asked, 12_000_000 / size_bytes),
    )


def ladder() -> list[Measured]:
    """Q8 and Q6 that nothing tells apart, Q4 a little worse, and a broken IQ1."""
    return [
        measured("Q8", 6_700_000, kld=0.0002, asked=answers(stream=1), stream=1),
        measured("Q6", 5_500_000, kld=0.0002, asked=answers(stream=2), stream=2),
        measured(
            "Q4", 4_000_000, kld=0.02, text_loss=0.002, asked=answers(0.1, stream=3), stream=3
        ),
        measured("IQ1", 2_600_000, kld=1.4, text_loss=1.2, asked=answers(6.0, stream=4), stream=4),
    ]


@functools.cache
def compared_ladder() -> Comparison:
    """The ladder compared; tests share it."""
    return compared(ladder(), CONDITIONS)
