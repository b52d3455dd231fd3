"""A retrieval check in a terminal: a line a task and length, and what each length took."""

from __future__ import annotations

from quantkit.core.console import Console
from quantkit.report.retrieval_words import cost_text, nats_text, rate_text
from quantkit.retrieval.results import Retrieval, Rung, TaskScore

COLUMNS = (
    "context", "task", "found", "bounds, 95 % each side", "log-probability", "cut off",
)  # fmt: skip


def print_retrieval(console: Console, found: Retrieval, *, served: bool) -> None:
    """Print both tables, and what the check cost beside the classic grid.

    Args:
        served: by a server, which has no forks but keeps prefixes.
    """
    console.table(COLUMNS, [_task_row(score) for score in _by_length(found)])
    columns = ("context", "prefill tokens/s", "decode tokens/s", "forks differ by")
    shown = len(columns) - served
    console.table(columns[:shown], [_rung_row(rung)[:shown] for rung in found.rungs])
    console.line(cost_text(found, forked=found.forked or served))


def _by_length(found: Retrieval) -> list[TaskScore]:
    return sorted(found.scores, key=lambda score: score.context_tokens)


def _task_row(score: TaskScore) -> tuple[str, ...]:
    return (
        f"{score.context_tokens:,}",
        score.name,
        f"{score.hits}/{score.trials}",
        f"{score.lower_bound:.1%} to {score.upper_bound:.1%}",
        nats_text(score.log_probability),
        str(score.truncated) if score.truncated else "–",
    )


def _rung_row(rung: Rung) -> tuple[str, ...]:
    differ = rung.fork_difference
    return (
        f"{rung.context_tokens:,}",
        rate_text(rung.prefill_rate),
        rate_text(rung.decode_rate),
        "not compared" if differ is None else "nothing" if differ == 0 else f"{differ:.1e}",
    )
