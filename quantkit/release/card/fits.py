"""A model card's table of what fits where, and how to start it there."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from quantkit.config.target import Target
from quantkit.core.units import tokens_text
from quantkit.release.card.facts import CardFacts, CardLevel
from quantkit.release.card.levels import local_folder
from quantkit.release.card.markdown import plain, shell
from quantkit.release.fits import TargetFits


@dataclass(frozen=True)
class FitRow:
    """One target; texts are Markdown.

    Attributes:
        cells: a level each: the longest context, `–` where none fits.
        best: the largest level that passed and holds the target's own context.
    """

    name: str
    words: str
    kv_type: str
    cells: tuple[str, ...]
    best: str
    refused: str | None


def fit_rows(facts: CardFacts) -> list[FitRow]:
    """The targets in their order; the one that was built for stands out."""
    rows = []
    for fits in facts.fits:
        target = fits.target
        best = best_level(fits, facts.levels)
        own = tokens_text(target.context_tokens)
        found = [fits.levels.get(level.result.name) for level in facts.levels]
        name = plain(target.name)
        rows.append(
            FitRow(
                name=f"**{name}**" if target.name == facts.target.name else name,
                words=plain(cards_text(target)),
                kv_type=target.kv_type,
                cells=tuple("–" if n is None else tokens_text(n) for n in found),
                best=f"none at {own}" if best is None else f"{best.result.name} at {own}",
                refused=None if fits.refused is None else plain(fits.refused),
            )
        )
    return rows


def best_level(fits: TargetFits, levels: Sequence[CardLevel]) -> CardLevel | None:
    """The largest level that passed, and fits with the target's own context."""
    fitting = [
        level
        for level in levels
        if level.result.passed
        and (fits.levels.get(level.result.name) or 0) >= fits.target.context_tokens
    ]
    return max(fitting, key=lambda level: level.result.size_bytes, default=None)


def plan_commands(facts: CardFacts) -> str:
    """For each target the command that writes launch files for its best level; empty: none."""
    lines = []
    for fits in facts.fits:
        best = best_level(fits, facts.levels)
        if best is None or fits.target.name == facts.target.name:
            continue
        path = f"{local_folder(facts.model)}/{best.files[0]}"
        beside = path.rpartition("/")[0]
        own = tokens_text(fits.target.context_tokens)
        lines += [
            f"# {cards_text(fits.target)}: {best.result.name} at {own}",
            shlex.join(
                [
                    "quantkit",
                    "plan",
                    "--model",
                    path,
                    "--target",
                    fits.target.name,
                    "--launch",
                    beside,
                ]
            ),
        ]
    return shell(*lines) if lines else ""


def cards_text(target: Target) -> str:
    """The target's description, or its cards."""
    cards = ", ".join(f"{card.count} × {card.name}" for card in target.gpus)
    return " ".join((target.description or cards).split())
