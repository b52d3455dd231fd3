"""A model card's rows and commands: one level each."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quantkit.core.units import tokens_text
from quantkit.plan.launch.files import CLI_SCRIPT, COMPOSE_FILE, MODELFILE, SYSTEMD_UNIT
from quantkit.release.card.commands import (
    download_command,
    hub_command,
    hub_source,
    local_command,
    script_command,
)
from quantkit.release.card.facts import CardFacts, CardLevel
from quantkit.release.card.markdown import link, picture, shell, tight, wrapped
from quantkit.release.names import evidence_folder
from quantkit.report.pages import percent_text
from quantkit.report.results import LevelResult
from quantkit.retrieval.results import TaskScore


@dataclass(frozen=True)
class LevelRow:
    """What the template shows of a published level; texts are Markdown.

    Attributes:
        file: the name as a link to the artifact, to its first shard.
        headline: of the gate's first task at the longest context.
        picture: the heatmap.
        get, plan, direct: blocks of commands: download and start, what the script starts, and
            without a download of one's own.
        hub: llama.cpp's options for the file in the repository.
        ways: links to the other launch files.
        evidence: links to what was planned and found.
    """

    result: LevelResult
    file: str
    shards: int
    headline: str
    gate: str
    picture: str
    get: str
    plan: str
    direct: str
    hub: str
    ways: str
    evidence: str


def level_rows(facts: CardFacts) -> list[LevelRow]:
    """The published levels in their order."""
    files = {level.result.name: level.files for level in facts.levels}
    return [_row(facts, level, files) for level in facts.levels]


def _row(facts: CardFacts, level: CardLevel, files: Mapping[str, Sequence[str]]) -> LevelRow:
    result, folder = level.result, local_folder(facts.model)
    name, first = result.name, level.files[0]
    source = hub_source(facts.repository, name, files)
    there = evidence_folder(name)
    ways = (
        ("llama-cli", CLI_SCRIPT), ("Docker Compose", COMPOSE_FILE), ("systemd", SYSTEMD_UNIT),
        ("Ollama", MODELFILE),
    )  # fmt: skip
    evidence = ("validation.json", "niah.jsonl", "allocation.json", "placement.json")
    return LevelRow(
        result=result,
        file=f"**{link(name, first)}**",
        shards=len(level.files),
        headline=score_text(result.retrieval.gated[0]),
        gate=gate_word(result),
        picture=picture(
            f"{name}: share of needles found, and log-probability of the right answers, by context "
            "length and depth",
            f"{there}/heatmap.png",
            "100%" if len(facts.levels) == 1 else "49%",
        ),
        get=shell(
            wrapped(
                download_command(facts.repository, name, level.files, facts.imatrix_file, folder)
            ),
            wrapped(script_command(name, folder)),
        ),
        plan=shell(wrapped(local_command(result.command, first, folder))),
        hub=shlex.join(source),
        direct=shell(wrapped(hub_command(result.command, source))),
        ways=", ".join(link(words, f"{there}/{file}") for words, file in ways),
        evidence=", ".join(link(file, f"{there}/{file}") for file in evidence),
    )


def local_folder(model: str) -> str:
    """Where the commands of a card put the files."""
    return f"./{model}" if model.startswith("-") else model


def score_text(score: TaskScore) -> str:
    """`63/64, ≥ 92.8 %`, which only the comma breaks."""
    bound = tight(f"≥ {percent_text(score.lower_bound)}")
    return f"{score.hits}/{score.trials}, {bound}"


def gate_word(result: LevelResult) -> str:
    """The verdict; a failure stands out."""
    return result.verdict if result.passed else f"**{result.verdict}**"


def why_left_out(result: LevelResult) -> str:
    """Why a level of the build is not published."""
    if result.baseline:
        return "a baseline, built to be compared with"
    if result.passed:
        return "not chosen for this release"
    short = result.retrieval.gated
    asked = ", ".join(
        f"{s.name} at {tokens_text(s.context_tokens)}: {score_text(s)}" for s in short
    )
    return f"failed its gate ({asked})"
