"""What `quantkit compare` prints: two tables of at most 100 columns, the order, the verdicts."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import NamedTuple

from quantkit.core.console import Console, escape
from quantkit.core.units import gb_text, gib_text, tokens_text
from quantkit.report.comparison.comparison import Comparison
from quantkit.report.comparison.measured import (
    Measured,
    fine_nats_text,
    ratio_error_text,
    ratio_text,
)
from quantkit.report.retrieval_words import rate_text
from quantkit.study.kld_statistics import kld_text

NAME_COLUMNS = 20
"""Of a file's name in the table, which then fits a terminal of 100 columns."""
TEXT_COLUMNS = 96


class Column(NamedTuple):
    """One column of the first table."""

    title: str
    cell: Callable[[Measured], str]


def _two_lines(first: str, second: str) -> str:
    return f"{first}\n[dim]{second}[/]"


def _name(a: Measured) -> str:
    return escape(textwrap.fill(a.name, NAME_COLUMNS))


def _size(a: Measured, largest: int) -> str:
    return _two_lines(gib_text(a.size_bytes, largest), gb_text(a.size_bytes, largest))


def _kld(a: Measured) -> str:
    mean = a.divergence.mean
    return _two_lines(kld_text(mean), f"± {kld_text(a.divergence.mean_error, of=mean)}")


def _perplexity(a: Measured) -> str:
    ratio = ratio_text(a.divergence.perplexity_ratio)
    return _two_lines(ratio, f"± {ratio_error_text(a.divergence)}")


COLUMNS = (
    Column("file", _name),
    Column("bits/w", lambda a: f"{a.bits_per_weight:.2f}"),
    Column("KLD", _kld),
    Column(
        "median\n[dim]99 %[/]",
        lambda a: _two_lines(kld_text(a.divergence.median), kld_text(a.divergence.p99)),
    ),
    Column(
        "99.9 %\n[dim]largest[/]",
        lambda a: _two_lines(kld_text(a.divergence.p999), kld_text(a.divergence.maximum)),
    ),
    Column(
        "same top",
        lambda a: _two_lines(
            f"{a.divergence.same_top:.2%}", f"± {a.divergence.same_top_error:.2%}"
        ),
    ),
    Column("PPL ratio", _perplexity),
)


def print_comparison(console: Console, found: Comparison) -> None:
    """Tables, order, verdicts."""
    largest = max(artifact.size_bytes for artifact in found.artifacts)
    size = Column("size", lambda a: _size(a, largest))
    columns = (COLUMNS[0], size, *COLUMNS[1:])
    console.table(
        [column.title for column in columns],
        [[column.cell(artifact) for column in columns] for artifact in found.artifacts],
    )
    conditions = found.conditions
    _text(
        console,
        f"Against {conditions.base}, perplexity {conditions.base_perplexity:.4f}: "
        f"{conditions.tokens:,} tokens of {conditions.text}, from {conditions.chunks} chunks of "
        f"{conditions.chunk_tokens}",
    )
    if conditions.context_tokens:
        console.table(
            [
                "file",
                "context",
                "found",
                "bounds, 95 %\neach side",
                "log-prob.",
                "prefill/s",
                "decode/s",
            ],
            _retrieval_rows(found),
        )
        _text(
            console,
            f"Retrieval: {conditions.needles} needles at each length, {len(conditions.seeds)} "
            f"haystack{'s' if len(conditions.seeds) != 1 else ''}, KV cache {conditions.kv_type}; "
            "log-probability of the right answers, mean, nats; speeds were measured once",
        )
    console.line("")
    _text(console, f"Order: {found.ordering.text}", "       ")
    for relation in found.ordering.beside:
        _text(console, f"   but {relation.text}", "       ")
    for verdict in found.verdicts:
        _text(console, f"{verdict.name}: {verdict.sentence}", "  ")
    if found.smallest is not None and found.smallest != found.reference:
        _text(console, f"Smallest without a measurable loss: {found.smallest}")
    _text(
        console,
        "This holds for these "
        + ("haystacks and this text: questions and " if conditions.context_tokens else "texts: ")
        + "chunks are taken as independent",
    )
    console.line("")


def _retrieval_rows(found: Comparison) -> list[list[str]]:
    rows = []
    for artifact in found.artifacts:
        rungs = {rung.context_tokens: rung for rung in artifact.rungs}
        for place, score in enumerate(artifact.main_scores):
            rung = rungs.get(score.context_tokens)
            rows.append(
                [
                    "" if place else _name(artifact),
                    tokens_text(score.context_tokens),
                    f"{score.hits}/{score.trials}",
                    f"{score.lower_bound:.1%} – {score.upper_bound:.1%}",
                    fine_nats_text(score.log_probability),
                    rate_text(None if rung is None else rung.prefill_rate),
                    rate_text(None if rung is None else rung.decode_rate),
                ]
            )
    return rows


def _text(console: Console, text: str, indent: str = "") -> None:
    filled = textwrap.fill(text, TEXT_COLUMNS, subsequent_indent=indent, break_on_hyphens=False)
    console.line(filled)
