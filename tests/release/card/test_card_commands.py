"""A card's commands, run in order in one shell, and what they bring for `quantkit verify`."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from card_programs import PROGRAMS
from huggingface_hub.utils import filter_repo_objects
from small_cards import (
    CALIBRATION,
    MODEL,
    REPOSITORY,
    SOURCE,
    UNKNOWN,
    card_facts,
    card_level,
    commands,
    scripts,
)
from small_release import SmallRelease, verified

from quantkit.core.files import file_sha256
from quantkit.release.card.facts import CardFacts, level_patterns
from quantkit.release.card.front_matter import SourceCard
from quantkit.release.card.render import card_text
from quantkit.release.contents import BuiltLevel
from quantkit.release.layout import sums_text

START = 'exec llama-server -m "$(dirname -- "$0")"/../../%s\n'


def lay_out(facts: CardFacts, folder: Path) -> None:
    """A release with the names that the card speaks of, its checksums and its server scripts."""
    names = ["recipe.yaml", "target.yaml", "checkpoint.json", "report.html", facts.imatrix_file]
    for level in facts.levels:
        names += [*level.names, f"levels/{level.result.name}/allocation.json"]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"content of {name}")
    (folder / "release.json").write_text(json.dumps({"imatrix": facts.imatrix_file}))
    for level in facts.levels:
        script = folder / "levels" / level.result.name / "run-llama-server.sh"
        script.write_text(START % shlex.quote(level.names[0]))
    files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    sums = sums_text({name: file_sha256(path) for name, path in files.items()})
    (folder / "SHA256SUMS").write_text(sums)


def run_card(facts: CardFacts, place: Path) -> list[list[str]]:
    """Run all blocks of the card in one shell, in the folder `place`/reader; the calls it made."""
    release, programs, reader = place / "release", place / "programs", place / "reader"
    lay_out(facts, release)
    programs.mkdir()
    reader.mkdir(exist_ok=True)
    stand_in = Path(__file__).with_name("card_programs.py")
    for name in PROGRAMS:
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{stand_in}" {name} "$@"\n')
        program.chmod(0o755)
    script = "\n".join(["set -e", *scripts(card_text(facts)), "pwd > here"])
    environment = os.environ | {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "CARD_RELEASE": str(release),
        "CARD_LOG": str(place / "log"),
    }
    done = subprocess.run(
        ["sh", "-c", script], cwd=reader, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (reader / "here").read_text().strip() == str(reader.resolve())
    return [line.split() for line in (place / "log").read_text().splitlines()]


SOURCES: dict[str, tuple[dict[str, Any], str | None]] = {
    "repository": ({}, None),
    "folder": ({"source": UNKNOWN, "source_files": ("config.json", "a.safetensors")}, MODEL),
    "gguf": ({"source": UNKNOWN, "source_files": ("model-BF16.gguf",)}, "model-BF16.gguf"),
    "demo": ({"source": UNKNOWN, "is_demo": True}, None),
    "ready": (
        {"calibration": CALIBRATION.model_copy(update={"ready": "their.dat", "sources": ()})},
        None,
    ),
}
"""Facts, and what the reader brings below original/."""


@pytest.mark.parametrize("kind", SOURCES)
def test_all_blocks_of_a_card_run_in_order_in_one_shell(tmp_path: Path, kind: str) -> None:
    changes, original = SOURCES[kind]
    levels = [card_level(tmp_path, "Q6"), card_level(tmp_path, "Q4", shards=2)]
    facts = card_facts(levels, **changes)
    if original is not None:
        path = tmp_path / "reader" / "original" / original
        path.parent.mkdir(parents=True)
        path.touch() if path.suffix == ".gguf" else path.mkdir()
    calls = run_card(facts, tmp_path)
    said = [call[: 2 if call[0] == "quantkit" else 1] for call in calls]
    for program in PROGRAMS:
        assert program in {words[0] for words in said}
    for command in ("plan", "build", "quantize", "verify"):
        assert ["quantkit", command] in said
    downloaded = ["quantkit", "download"] in said
    assert downloaded == (kind in ("repository", "ready"))
    # the server is started for each level by its script and by hand, and by llama.cpp's download
    assert said.count(["llama-server"]) == 6
    assert not (tmp_path / "reader" / MODEL / MODEL).exists()


def test_names_that_a_shell_would_take_apart(tmp_path: Path) -> None:
    model = "my model's; $(exit 9)"
    level = replace(card_level(tmp_path, "Q4"), files={f"{model}-Q4.gguf": tmp_path})
    facts = card_facts([level], model=model, imatrix_file=f"{model}-imatrix.gguf")
    run_card(facts, tmp_path)
    assert (tmp_path / "reader" / model / f"{model}-Q4.gguf").is_file()


@pytest.mark.parametrize("level", ["Q4", "Q8"])
def test_a_download_can_be_verified(
    whole_release: SmallRelease, tmp_path: Path, level: str
) -> None:
    """With all rows of the source, by quantkit itself; Q8 has several shards."""
    result = card_level(tmp_path / "card", level).result
    small = whole_release
    built = BuiltLevel(result, dict.fromkeys(small.files(level), tmp_path))
    patterns = list(level_patterns(built, "tiny-imatrix.gguf"))
    every = [p.relative_to(small.folder).as_posix() for p in small.folder.rglob("*") if p.is_file()]
    for name in filter_repo_objects(every, allow_patterns=patterns):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((small.folder / name).read_bytes())
    found = verified(tmp_path, small.source, full=True)
    assert found.faults == ()
    assert [check.name for check in found.checks][-1] == "source"
    assert set(small.files("Q8" if level == "Q4" else "Q4")) <= set(found.not_here)


@pytest.mark.parametrize("source", [UNKNOWN, SOURCE])
def test_a_gguf_file_as_source_keeps_its_name(tmp_path: Path, source: SourceCard) -> None:
    """Also where its header says which repository the weights are of: the file is not there."""
    facts = card_facts([card_level(tmp_path, "Q4")], source=source, source_files=("x-F16.gguf",))
    card = card_text(facts)
    words = commands(card)
    assert f"quantkit verify {MODEL} --source original/x-F16.gguf --full".split() in words
    for command in ("quantize", "build"):
        start = ["quantkit", command, "--model", "original/x-F16.gguf"]
        assert start in [some[:4] for some in words]
    assert ["quantkit", "download"] not in [some[:2] for some in words]
    assert "`original/x-F16.gguf` is the GGUF file" in card
    shards = ("x-00001-of-00002.gguf", "x-00002-of-00002.gguf")
    card = card_text(replace(facts, source_files=shards))
    assert "`original/x-00001-of-00002.gguf` is the first of the 2 GGUF files" in card
    assert "x-00002" not in card
    folder = card_text(replace(facts, source=UNKNOWN, source_files=("config.json",)))
    assert f"`original/{MODEL}` is the folder of the model" in folder


def test_commands_of_verification(tmp_path: Path) -> None:
    card = card_text(card_facts([card_level(tmp_path, "Q4")]))
    found = commands(card[card.index("## Verify") :])
    model = f"{SOURCE.repository}@{SOURCE.commit}"
    assert [" ".join(words) for words in found] == [
        f"quantkit verify {REPOSITORY}",
        f"quantkit verify {MODEL}",
        f"quantkit download {model} --out original/{MODEL}",
        f"quantkit verify {REPOSITORY} --source original/{MODEL}",
        f"quantkit verify {MODEL} --source original/{MODEL} --full",
        f"(cd {MODEL} && sha256sum --ignore-missing -c SHA256SUMS)",
    ]
