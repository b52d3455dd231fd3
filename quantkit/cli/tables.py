"""The tables that `compare`, `niah`, `verify` and `imatrix --show` print; imports heavy modules."""

from __future__ import annotations

import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.core.console import Console, marked
from quantkit.core.units import gb_text, gib_text, tokens_text
from quantkit.formats.imatrix_file import Imatrix, read_imatrix
from quantkit.models.gguf_source import GGUFSource
from quantkit.report.comparison.comparison import Comparison
from quantkit.report.comparison.measured import (
    Measured,
    fine_nats_text,
    ratio_error_text,
    ratio_text,
)
from quantkit.report.retrieval import cost_text, nats_text, rate_text
from quantkit.retrieval.results import Retrieval, Rung, TaskScore
from quantkit.study.imatrix_coverage import ENOUGH_TOKENS as ENOUGH
from quantkit.study.imatrix_coverage import (
    Coverage,
    LayerCoverage,
    coverage_of,
    layer_of,
    percent_text,
    top_weights,
    unseen_text,
    weight_statistics,
)
from quantkit.study.kld_statistics import kld_text

if TYPE_CHECKING:
    from quantkit.core.console import Cell

NAME_COLUMNS = 20
"""Of a file's name in the table, which then fits a terminal of 100 columns."""
TEXT_COLUMNS = 96
COMPARED_COLUMNS = (
    "file", "size", "bits/w", "KLD", "median\n[dim]99 %[/]", "99.9 %\n[dim]largest[/]", "same top",
    "PPL ratio",
)  # fmt: skip


def _name(a: Measured) -> Cell:
    lines = textwrap.wrap(a.name, NAME_COLUMNS)
    return marked("\n".join(["{}"] * len(lines)), *lines)


def _compared_row(a: Measured, largest: int) -> list[Cell]:
    """The cells of `COMPARED_COLUMNS`; all but two have a second, dim line."""
    of = a.divergence
    size, *figures = (
        marked("{}\n[dim]{}[/]", first, second)
        for first, second in (
            (gib_text(a.size_bytes, largest), gb_text(a.size_bytes, largest)),
            (kld_text(of.mean), f"± {kld_text(of.mean_error, of=of.mean)}"),
            (kld_text(of.median), kld_text(of.p99)),
            (kld_text(of.p999), kld_text(of.maximum)),
            (f"{of.same_top:.2%}", f"± {of.same_top_error:.2%}"),
            (ratio_text(of.perplexity_ratio), f"± {ratio_error_text(of)}"),
        )
    )
    return [_name(a), size, f"{a.bits_per_weight:.2f}", *figures]


def print_comparison(console: Console, found: Comparison) -> None:
    """Tables, order, verdicts."""
    largest = max(artifact.size_bytes for artifact in found.artifacts)
    console.table(COMPARED_COLUMNS, [_compared_row(one, largest) for one in found.artifacts])
    conditions = found.conditions
    _text(
        console,
        f"Against {conditions.base}, perplexity {conditions.base_perplexity:.4f}: "
        f"{conditions.tokens:,} tokens of {conditions.text}, from {conditions.chunks} chunks of "
        f"{conditions.chunk_tokens}",
    )
    if conditions.context_tokens:
        columns = (
            "file", "context", "found", "bounds, 95 %\neach side", "log-prob.", "prefill/s",
            "decode/s",
        )  # fmt: skip
        console.table(columns, _retrieval_rows(found))
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


def _retrieval_rows(found: Comparison) -> list[list[Cell]]:
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
    console.line(*filled.splitlines())


def print_retrieval(console: Console, found: Retrieval, *, served: bool) -> None:
    """Print both tables, and what the check cost beside the classic grid.

    Args:
        served: by a server, which has no forks but keeps prefixes.
    """
    scores = sorted(found.scores, key=lambda score: score.context_tokens)
    of_tasks = ("context", "task", "found", "bounds, 95 % each side", "log-probability", "cut off")
    console.table(of_tasks, [_task_row(score) for score in scores])
    columns = ("context", "prefill tokens/s", "decode tokens/s", "forks differ by")
    shown = len(columns) - served
    console.table(columns[:shown], [_rung_row(rung)[:shown] for rung in found.rungs])
    console.line(cost_text(found, forked=found.forked or served))


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


def show_imatrix(path: Path, model: Path | None, as_json: bool) -> None:
    """Describe the importance matrix in a file.

    Args:
        model: GGUF that it was collected on, which tells the experts of a legacy file apart.

    Raises:
        InputError: one of them cannot be read.
    """
    tensors = () if model is None else GGUFSource(model).tensors
    found = read_imatrix(path, {info.name: info.row_elements for info in tensors})
    coverage = coverage_of(found.entries)
    console = Console(quiet=as_json)
    if as_json:
        console.json(_facts(found, coverage))
        return
    console.line(
        f"{path}: {len(found.entries)} weights, {found.chunks} chunks of {found.chunk_tokens} "
        f"tokens from {', '.join(found.datasets) or 'an unnamed text'}"
    )
    _show_layers(console, found, coverage)
    for sentence in found.unknown:
        console.note(sentence)
    if coverage.experts:
        _show_experts(console, coverage, found.counts_are_exact)
    elif not found.unknown:
        console.line(f"No experts: every weight saw the whole text, {coverage.tokens:,} tokens")


def _facts(found: Imatrix, coverage: Coverage) -> dict[str, Any]:
    exact = found.counts_are_exact
    return {
        "weights": len(found.entries),
        "chunks": found.chunks,
        "chunk_tokens": found.chunk_tokens,
        "datasets": list(found.datasets),
        "counts_are_exact": exact,
        "unknown": list(found.unknown),
        "unseen_experts": {n: entry.unseen for n, entry in found.entries.items() if entry.unseen},
        "coverage": {
            "experts": coverage.experts,
            "reached": coverage.reached(),
            "reached_share": coverage.share(),
            "enough_tokens": ENOUGH,
            "enough_share": coverage.share(ENOUGH) if exact else None,
        },
        "layers": [
            {**asdict(layer), "unseen": layer.unseen, "reached_share": layer.share()}
            for layer in coverage.layers
        ],
        "statistics": [
            {"layer": layer_of(entry.name), **asdict(entry)} for entry in weight_statistics(found)
        ],
    }


def _show_layers(console: Console, found: Imatrix, coverage: Coverage) -> None:
    exact, top = found.counts_are_exact, top_weights(found)
    rows = []
    for layer in coverage.layers:
        weight, share = top[layer.name]
        tokens = f"{layer.tokens:,}" if exact and layer.tokens is not None else "–"
        cells = [layer.name, str(layer.weights), tokens, *_expert_cells(layer, exact)]
        rows.append((*cells, f"{100 * share:3.0f} % {weight}"))
    columns = (
        "layer", "weights", "tokens", "experts", f"≥ {ENOUGH}", "least", "median", "most",
        "top 1 %",
    )  # fmt: skip
    shown = len(columns) - 1 if exact and coverage.experts else 4 if coverage.experts else 3
    console.table((*columns[:shown], columns[-1]), [(*row[:shown], row[-1]) for row in rows])
    if exact and coverage.experts:
        console.note(f"experts: those that a token reached; ≥ {ENOUGH}: the share with that many")
        console.note("least, median, most: tokens of one expert")
    console.note("top 1 %: their share of the importance, in the layer's most uneven weight")


def _show_experts(console: Console, coverage: Coverage, exact: bool) -> None:
    if coverage.unseen:
        words = unseen_text(coverage.unseen)
        listed = textwrap.wrap(words, 95, initial_indent="Unseen:  ", subsequent_indent=" " * 9)
        console.line(*listed)
    rarest = coverage.rarest()
    if exact and rarest is not None and rarest[2] < ENOUGH:
        where, expert, count = rarest
        console.line(
            f"Rarest:  expert {expert} of layer {where} with {count} token{'s' * (count > 1)}; it "
            f"would have {ENOUGH} with about {-(-ENOUGH // count)} times the text"
        )
    reached = f"{coverage.reached():,} of {coverage.experts:,} reached"
    words = f"{reached} ({percent_text(coverage.share())})"
    if exact:
        enough = percent_text(coverage.share(ENOUGH))
        words += f", {coverage.reached(ENOUGH):,} by {ENOUGH} tokens or more ({enough})"
    console.line(f"Experts: {words}")


def _expert_cells(layer: LayerCoverage, exact: bool) -> list[Cell]:
    """Seen, share with enough tokens, least, median and most tokens of a layer's experts."""
    experts = sorted(layer.experts)
    if not experts:
        return [""] * 5
    seen = f"{len(experts) - len(layer.unseen)}/{len(experts)}"
    cells: list[Cell] = [marked("[bold red]{}[/]", seen) if layer.unseen else seen]
    if not exact:
        return [*cells, *[""] * 4]
    enough = layer.share(ENOUGH)
    cells.append(marked("[yellow]{}[/]", percent_text(enough)) if enough < 1 else "100 %")
    middle = (experts[(len(experts) - 1) // 2] + experts[len(experts) // 2]) / 2
    return [*cells, f"{experts[0]:,}", f"{middle:,.0f}", f"{experts[-1]:,}"]
