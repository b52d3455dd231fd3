"""A model card's tables of retrieval: a task each, with every level and length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quantkit.core.units import tokens_text
from quantkit.release.card.levels import score_text
from quantkit.report.pages import percent_text
from quantkit.report.results import LevelResult, LevelRetrieval
from quantkit.retrieval.results import MAIN_TASKS

TASK_WORDS = {
    "multikey": "keys with near misses, each hidden once with its number",
    "single": "one key in the haystack",
    "near-miss": "keys hidden right beside others that differ in one word",
    "absent": "keys that were never hidden; found means that the model says so",
    "updated": "numbers that change later on in the text; the later one counts",
    "multi-value": "keys with four numbers each; all four must be named",
    "two-hop": "keys whose number is said to be another key's",
    "paraphrased": "facts that are asked for in other words than they are hidden in",
}


@dataclass(frozen=True)
class TaskTable:
    """One task.

    Attributes:
        lengths: heads of the columns.
        rows: level → a cell a length.
    """

    task: str
    words: str
    lengths: tuple[str, ...]
    rows: dict[str, tuple[str, ...]]


def task_tables(results: Sequence[LevelResult]) -> tuple[list[TaskTable], list[TaskTable]]:
    """The tasks that the gate looks at, and the others."""
    tasks = dict.fromkeys(score.task for r in results for score in r.retrieval.scores)
    gated = {score.task for r in results for score in r.retrieval.gated}
    tables = [_table(task, results) for task in tasks]
    return (
        [table for table in tables if table.task in gated],
        [table for table in tables if table.task not in gated],
    )


def _table(task: str, results: Sequence[LevelResult]) -> TaskTable:
    scores = {
        (r.name, s.context_tokens): s for r in results for s in r.retrieval.scores if s.task == task
    }
    lengths = sorted({length for _, length in scores})
    heads = []
    for length in lengths:
        keys = {s.keys for (_, tokens), s in scores.items() if tokens == length}
        hidden = f", {' or '.join(map(str, sorted(keys)))} keys" if task in MAIN_TASKS[:1] else ""
        heads.append(f"{tokens_text(length)}{hidden}")
    rows = {}
    for result in results:
        found = (scores.get((result.name, length)) for length in lengths)
        rows[result.name] = tuple("–" if s is None else score_text(s) for s in found)
    return TaskTable(task, TASK_WORDS.get(task, ""), tuple(heads), rows)


def gate_rule(found: LevelRetrieval) -> str:
    """What releases a level, whatever was found."""
    if found.minimum_lower_bound is None:
        return "No gate was set: every level is published with its figures."
    kind = (
        "lower bound, which allows for the spread between seeds,"
        if found.clustered
        else ("exact lower bound")
    )
    tasks = " and of ".join(score.name for score in found.gated)
    return (
        f"A level passes when the {kind} of the hit rate of {tasks} at "
        f"{tokens_text(found.context_tokens)} tokens (one-sided, {100 * found.confidence:.0f} %) "
        f"reaches {percent_text(found.minimum_lower_bound)}."
    )
