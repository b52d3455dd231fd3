"""README.md of a release: the model card, from what was published, found and planned."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from quantkit.core.units import tokens_text
from quantkit.hub.card_text import readme_text
from quantkit.release.card.facts import CardFacts, CardLevel
from quantkit.release.card.fits import cards_text, fit_rows, plan_commands
from quantkit.release.card.header import card_header
from quantkit.release.card.levels import level_rows, local_folder, score_text, why_left_out
from quantkit.release.card.markdown import code, listed, plain, shell, tight
from quantkit.release.card.retrieval import gate_rule, task_tables
from quantkit.release.card.words import (
    access_words,
    again_words,
    licence_words,
    source_rows,
    source_words,
    texts_licence_words,
    types_words,
    versions_words,
)
from quantkit.release.names import SUMS
from quantkit.report.pages import page_environment
from quantkit.report.results import LevelResult
from quantkit.report.retrieval_words import check_text, forks_text

__all__ = ["CardFacts", "CardLevel", "card_text"]


def card_text(facts: CardFacts) -> str:
    """The whole README.md: front matter for the Hub, then Markdown for people."""
    environment = page_environment()
    environment.filters |= {
        "plain": plain,
        "code": code,
        "tight": tight,
        "score": score_text,
        "why_left_out": why_left_out,
    }
    results = [level.result for level in facts.levels]
    first = results[0].retrieval
    shown, further = task_tables(results)
    body = environment.get_template("card.md").render(
        f=facts,
        rows=level_rows(facts),
        sizes=sorted(result.size_bytes for result in results),
        largest=max(result.size_bytes for result in (*results, *facts.left_out)),
        failed=[result.name for result in results if result.verdict == "FAILED"],
        headline=_headline(facts),
        source=source_words(facts),
        licence=" ".join(filter(None, (licence_words(facts), access_words(facts)))),
        licence_short=licence_words(facts),
        tasks=shown,
        probes=further,
        fits=fit_rows(facts),
        contexts=listed([tokens_text(tokens) for tokens in facts.fits_contexts]),
        plans=plan_commands(facts),
        check=check_text(facts.recipe.retrieval, first.kv_type),
        gate=gate_rule(first),
        forks=_forks(results),
        measured=[result.kld for result in results if result.kld is not None],
        checked=[result for result in results if result.integrity is not None],
        texts=source_rows(facts.calibration),
        texts_licence=texts_licence_words(facts.calibration),
        types=types_words(facts),
        again=again_words(facts),
        own_gpus=cards_text(facts.target),
        versions=versions_words(facts.versions),
        sums=shell(
            f"(cd {shlex.quote(local_folder(facts.model))} && sha256sum --ignore-missing -c {SUMS})"
        ),
    )
    header = card_header(facts.repository, facts.model, facts.source, results)
    # what a card has nothing to say of leaves its empty lines
    return readme_text(header, re.sub("\n{3,}", "\n\n", body).rstrip() + "\n")


def _forks(results: Sequence[LevelResult]) -> str:
    """Whether forks answered as prompts of their own, of the level where they did so least."""
    found = [level.retrieval for level in results if level.retrieval.forked]
    worst = max(
        found,
        key=lambda one: max([one.fork_difference, *(r.fork_difference or 0.0 for r in one.rungs)]),
        default=None,
    )
    return "" if worst is None else forks_text(worst.fork_difference, worst.rungs)


def _headline(facts: CardFacts) -> str:
    """What the column of retrieval holds: `multikey-176 at 32K`."""
    scores = [level.result.retrieval.gated[0] for level in facts.levels]
    names = dict.fromkeys(f"{s.name} at {tokens_text(s.context_tokens)}" for s in scores)
    return " or ".join(names)
