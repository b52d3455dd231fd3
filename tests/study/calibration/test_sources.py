"""Names of calibration sources: shipped texts with their licences, files and folders."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
from loopback_hub import hub
from places import ROOT

from quantkit.config.recipe import ImatrixRecipe
from quantkit.core.errors import InputError
from quantkit.hub.reading import Hub
from quantkit.study.calibration.sources import local_sources, resolve_sources, shipped_texts

FOLDER = ROOT / "calibration"
SPDX = {"public domain": "blessing"}
"""A licence in the words of calibration/README.md → in SPDX's, where they differ."""


def test_the_list_of_shipped_texts_equals_the_page_and_the_files() -> None:
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    sections = {part.split("\n", 1)[0].strip(): part for part in page.split("\n## ")[1:]}
    texts = shipped_texts()
    assert sorted(texts) == sorted(sections)
    for name, text in texts.items():
        section = sections[name]
        assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == text.sha256
        packages = re.findall(r"^\| (?:Debian|npm|PyPI sdist) `.*\| (.*) \|$", section, re.M)
        stated = packages or re.findall(r"^\| licence \| (.*) \|$", section, re.M)
        words = {re.split(r"[,;(]| for the dataset", licence)[0].strip() for licence in stated}
        terms = {SPDX.get(w, f"({w.replace(' or ', ' OR ')})" if " or " in w else w) for w in words}
        assert set(text.licence.split(" AND ")) == terms


def test_shipped_texts_go_by_their_names_with_their_licence() -> None:
    chat, code, prose = local_sources(
        ImatrixRecipe(mixture={"chat": 1, "code.txt": 1, "english-prose": 1})
    )
    assert (chat.name, chat.files, chat.origin) == ("chat", (FOLDER / "chat.jsonl",), "quantkit")
    assert (code.files, code.licence) == (
        (FOLDER / "code.txt",),
        shipped_texts()["code.txt"].licence,
    )
    assert (chat.licence, prose.licence) == ("Apache-2.0", "CC0-1.0")
    assert local_sources(ImatrixRecipe(texts=("chat", "english-prose"))) == (chat, prose)


def test_files_and_folders_are_of_the_disk(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    (folder / "deeper").mkdir(parents=True)
    for name in ("b.txt", "a.md", "deeper/c.parquet", "d.jsonl", "picture.png"):
        (folder / name).write_text(name)
    own = tmp_path / "notes.rst"
    own.write_text("text")
    several, single = local_sources(ImatrixRecipe(mixture={str(folder): 1, str(own): 2}))
    names = ("a.md", "b.txt", "d.jsonl", "deeper/c.parquet")
    assert several.files == tuple(folder / name for name in names)
    assert single.files == (own,)
    assert {(s.origin, s.licence) for s in (several, single)} == {("disk", None)}


def test_a_path_is_not_taken_for_a_shipped_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    copy = tmp_path / "chat.jsonl"
    copy.write_text("[]\n")
    (source,) = local_sources(ImatrixRecipe(texts=(str(copy),)))
    assert (source.files, source.origin) == ((copy,), "disk")
    for name in ("README.md", str(FOLDER / "chat"), "sources.yaml"):
        with pytest.raises(InputError, match="calibration text"):
            local_sources(ImatrixRecipe(texts=(name,)))


def test_what_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'nothing'.*chat"):
        local_sources(ImatrixRecipe(mixture={"nothing": 1}))
    with pytest.raises(InputError, match=r"folder.*\.parquet"):
        local_sources(ImatrixRecipe(mixture={str(tmp_path): 1}))


def test_a_misspelt_path_is_told_before_anything_is_downloaded(tmp_path: Path) -> None:
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository" / "a.txt").write_text("text")
    recipe = ImatrixRecipe(mixture={"hf://datasets/someone/talks": 1, "nothing": 1})
    with hub({"datasets/someone/talks": tmp_path / "repository"}) as loopback:
        with pytest.raises(InputError, match="'nothing'"):
            resolve_sources(recipe, hub=Hub(loopback.address, token=False), cache=tmp_path)
        assert loopback.asked == 0
    with pytest.raises(InputError, match="OWNER/NAME"):
        local_sources(ImatrixRecipe(texts=("hf://models/someone/talks",)))
