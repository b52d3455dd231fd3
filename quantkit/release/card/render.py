"""README.md of a release: the model card, from what was published, measured and planned."""

from __future__ import annotations

import html
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from urllib.parse import quote, urlsplit

from quantkit.core.units import tokens_text
from quantkit.hub.card_text import readme_text
from quantkit.plan.launch.files import (
    CLI_SCRIPT,
    COMPOSE_FILE,
    MODELFILE,
    SERVER_SCRIPT,
    SYSTEMD_UNIT,
)
from quantkit.plan.placement import PLACEMENT_FILE
from quantkit.release.card.facts import (
    CardFacts,
    best_level,
    download,
    gpus_text,
    hub_source,
    level_patterns,
    plan_lines,
    with_model,
)
from quantkit.release.card.front_matter import card_header
from quantkit.release.documents import own_texts
from quantkit.release.layout import ALLOCATION, ANSWERS, VALIDATION, evidence_folder
from quantkit.report.pages import page_environment, percent_text, plain
from quantkit.report.results import LevelResult
from quantkit.report.retrieval import check_text, forks_text, worst_fork
from quantkit.retrieval.results import MAIN_TASKS, TaskScore

_TASKS = {
    "multikey": "many keys with near misses, each hidden once with its number",
    "single": "one key in the haystack",
    "near-miss": "each key is hidden right beside another that differs in one word",
    "absent": "keys that were never hidden; a correct answer says so",
    "updated": "numbers that change later in the text; the last one counts",
    "multi-value": "keys with four numbers each; an answer must give all four",
    "two-hop": "keys whose number is given as that of another key",
    "paraphrased": "facts that the question words differently from the text",
}
_LAUNCH_FILES = {
    "llama-cli": CLI_SCRIPT, "Docker Compose": COMPOSE_FILE, "systemd": SYSTEMD_UNIT,
    "Ollama": MODELFILE,
}  # fmt: skip
_PACKAGES = {"quantkit": "quantkit-gguf"}
"""Packages whose name on the index differs from the one that they install."""
_PLAIN_CODE = re.compile(r"[\w ./:@=+,*%-]+", re.ASCII)
_LINE_CHARACTERS = 88


def card_text(facts: CardFacts) -> str:
    """The whole README.md: front matter for the Hub, then Markdown for people."""
    files = {level.name: level.names for level in facts.levels}
    environment = page_environment()
    environment.filters |= {
        "code": code,
        "tight": lambda text: text.replace(" ", "\u00a0"),
        "listed": lambda words: " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:]))),
        "score": _score,
        "gpus": gpus_text,
        "attribute": html.escape,
        "quoted": shlex.quote,
    }
    environment.globals |= {
        "link": link,
        "sh": shell,
        "best": lambda fits: best_level(fits, facts.levels),
        "download": lambda *files: download(facts.repository, facts.folder, *files),
        "patterns": lambda level: level_patterns(level, facts.imatrix_file),
        "hub_source": lambda level: hub_source(facts.repository, level.name, files),
        "with_model": with_model,
        "evidence_of": evidence_folder,
        "evidence_files": (VALIDATION, ANSWERS, ALLOCATION, PLACEMENT_FILE),
        "server_script": SERVER_SCRIPT,
        "launch_files": _LAUNCH_FILES,
    }
    ready = facts.calibration.ready is not None
    results = [level.result for level in facts.levels]
    first = results[0].retrieval
    tables = _task_tables(results)
    forked = [r.retrieval for r in results if r.retrieval.forked]
    gated_first = [result.retrieval.gated[0] for result in results]
    gated = {score.task for result in results for score in result.retrieval.gated}
    body = environment.get_template("card.md").render(
        f=facts,
        sizes=sorted(result.size_bytes for result in results),
        largest=max(result.size_bytes for result in (*results, *facts.left_out)),
        failed=[result.name for result in results if result.verdict == "FAILED"],
        headline=" or ".join(
            dict.fromkeys(f"{s.name} at {tokens_text(s.context_tokens)}" for s in gated_first)
        ),
        gpus=gpus_text(facts.target),
        gated_tasks=[table for table in tables if table.task in gated],
        other_tasks=[table for table in tables if table.task not in gated],
        retrieval=first,
        plans=plan_lines(facts),
        check=check_text(first),
        forks=forks_text(max(forked, key=worst_fork)) if forked else "",
        measured=[result.kld for result in results if result.kld is not None],
        checked=[result for result in results if result.integrity is not None],
        licences_stated=[text.licence is not None for text in facts.calibration.sources],
        ready=ready,
        is_repeatable=not own_texts(facts.recipe, ready=ready),
        packages=[f"{_PACKAGES.get(name, name)}=={text}" for name, text in facts.versions.items()],
    )
    header = card_header(facts.repository, facts.model, facts.source, results)
    # parts with nothing to say leave their empty lines
    return readme_text(header, re.sub("\n{3,}", "\n\n", body).rstrip() + "\n")


# ---- Markdown: words of others stay words, in a paragraph and in a table


def code(text: str) -> str:
    """`text` in the font of commands."""
    return f"`{text}`" if _PLAIN_CODE.fullmatch(text) else f"<code>{plain(text)}</code>"


def link(label: str, target: str) -> str:
    """A link to a web address, or to a file by its path in the repository."""
    if urlsplit(target).scheme in ("http", "https"):
        address = quote(target, safe=":/?#[]@!$&'*+,;=%~")
    else:
        address = quote(target, safe="/")
    return f"[{plain(label)}]({address})"


def shell(*commands: str | Sequence[str]) -> str:
    """Commands in a block; no line of them closes it. A text is a line as it is."""
    lines = [text if isinstance(text, str) else _wrapped(text) for text in commands]
    whole = "\n".join(" ".join(line.split("\r")) for line in lines)
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", whole)), default=0))
    return f"{fence}sh\n{whole}\n{fence}"


def _wrapped(words: Sequence[str]) -> str:
    """A command on several lines, an option and its value on the same one."""
    pieces: list[str] = []
    for word in map(shlex.quote, words):
        if pieces and pieces[-1].startswith("-") and " " not in pieces[-1] and word[0] != "-":
            pieces[-1] += f" {word}"
        else:
            pieces.append(word)
    lines = [pieces[0]]
    for piece in pieces[1:]:
        if len(lines[-1]) + 1 + len(piece) <= _LINE_CHARACTERS:
            lines[-1] += f" {piece}"
        else:
            lines.append(f"  {piece}")
    return " \\\n".join(lines)


# ---- the parts of the card


def _score(score: TaskScore) -> str:
    """`63/64, ≥ 92.8 %`, which only the comma breaks."""
    bound = percent_text(score.lower_bound).replace(" ", "\u00a0")
    return f"{score.hits}/{score.trials}, ≥\u00a0{bound}"


class _TaskTable(NamedTuple):
    """The scores of one task: heads of the columns, and level → the score at each length."""

    task: str
    words: str
    lengths: tuple[str, ...]
    rows: Mapping[str, Sequence[TaskScore | None]]


def _task_tables(results: Sequence[LevelResult]) -> list[_TaskTable]:
    tables = []
    for task in dict.fromkeys(score.task for r in results for score in r.retrieval.scores):
        scores = {
            (result.name, score.context_tokens): score
            for result in results
            for score in result.retrieval.scores
            if score.task == task
        }
        lengths = sorted({length for _, length in scores})
        heads = []
        for length in lengths:
            keys = sorted({score.keys for (_, n), score in scores.items() if n == length})
            hidden = f", {' or '.join(map(str, keys))} keys" if task in MAIN_TASKS[:1] else ""
            heads.append(f"{tokens_text(length)}{hidden}")
        rows = {r.name: [scores.get((r.name, length)) for length in lengths] for r in results}
        tables.append(_TaskTable(task, _TASKS.get(task, ""), tuple(heads), rows))
    return tables
