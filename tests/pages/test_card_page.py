"""The model card in a browser, as a site shows it: Markdown made HTML, and the release's files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from card_pages import check, write_card_page
from finished_levels import KEYS, PROBES, answers_of
from playwright.sync_api import Browser, Page
from small_cards import MODEL, SOURCE, card_facts, card_level

from quantkit.plan.launch.files import (
    CLI_SCRIPT,
    COMPOSE_FILE,
    MODELFILE,
    SERVER_SCRIPT,
    SYSTEMD_UNIT,
)
from quantkit.release.card.facts import CardFacts
from quantkit.release.card.render import card_text
from quantkit.release.fits import Fits
from quantkit.report.pictures import draw_heatmap
from quantkit.study.imatrix import SourceRead

FILES = (
    "validation.json", "niah.jsonl", "allocation.json", "placement.json", SERVER_SCRIPT,
    CLI_SCRIPT, COMPOSE_FILE, MODELFILE, SYSTEMD_UNIT,
)  # fmt: skip


def lay_out(facts: CardFacts, folder: Path, picture: bytes) -> Path:
    """A folder with the files of a release, all but the card empty; the card's page in it."""
    paths = [file for level in facts.levels for file in level.names]
    paths += [f"levels/{level.result.name}/{file}" for level in facts.levels for file in FILES]
    paths += [facts.imatrix_file, "report.html", "SHA256SUMS", "release.json", "recipe.yaml"]
    paths += ["target.yaml", "checkpoint.json", "calibration.json", "sensitivity.json"]
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).touch()
    for level in facts.levels:
        (folder / f"levels/{level.result.name}/heatmap.png").write_bytes(picture)
    (folder / "coverage.png").write_bytes(picture)
    (folder / "README.md").write_text(card_text(facts), encoding="utf-8")
    return write_card_page(folder)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A real heatmap."""
    path = tmp_path_factory.mktemp("picture") / "heatmap.png"
    draw_heatmap(answers_of(0.1), f"{MODEL}-Q4", path)
    return path.read_bytes()


Open = Callable[[CardFacts], Page]


@pytest.fixture
def open_card(browser: Browser, tmp_path: Path, picture: bytes) -> Iterator[Open]:
    """Opens a card with all that it folds away, 1,000 pixels wide."""
    pages = []

    def opened(facts: CardFacts) -> Page:
        page = browser.new_page(viewport={"width": 1000, "height": 900})
        pages.append(page)
        folder = tmp_path / "release"
        folder.mkdir()
        page.goto(lay_out(facts, folder, picture).as_uri())
        page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
        return page

    yield opened
    for page in pages:
        page.close()


def three_levels(build: Path) -> CardFacts:
    """One in two shards, one without KLD, one that failed, and one that was left out."""
    levels = [
        card_level(build, "Q6", bits=6.6, shards=2),
        card_level(build, "Q4_K_M", kld=None),
        card_level(build, "Q2", 0.5, bits=2.6, kld=0.31),
    ]
    return card_facts(levels, [card_level(build, "IQ1_S", 0.9, baseline=True).result])


def rows(page: Page, head: str) -> list[list[str]]:
    """The rows of the table whose first head is `head`, as they are seen."""
    found: list[list[list[str]]] = page.evaluate(
        """() => [...document.querySelectorAll('table')].map(
            t => [...t.rows].map(r => [...r.cells].map(c => c.innerText.trim())))"""
    )
    (table,) = [table for table in found if table[0][0] == head]
    return table


def assert_whole_tables(page: Page) -> None:
    hidden = page.evaluate(
        "[...document.querySelectorAll('table')].map(t => t.scrollWidth - t.clientWidth)"
    )
    assert max(hidden) <= 0


def test_a_card_of_three_levels(tmp_path: Path, open_card: Open) -> None:
    facts = three_levels(tmp_path)
    page = open_card(facts)
    check(page)
    assert_whole_tables(page)
    main = page.locator("table").first
    assert main.locator("tbody tr").count() == 3
    assert main.locator("tbody tr").nth(2).inner_text().split("\t")[-1] == "FAILED"
    assert [row[0] for row in rows(page, "multikey")] == ["multikey", "Q6", "Q4_K_M", "Q2"]
    for task in PROBES:
        assert len(rows(page, task)) == 4
        assert len(rows(page, task)[0]) == 1 + len(KEYS)
    targets = rows(page, "target")
    assert [row[0] for row in targets[1:]] == [fits.target.name for fits in facts.fits.targets]
    assert len({len(row) for row in targets}) == 1
    assert page.locator("img").count() == 3
    assert page.locator("summary").all_inner_texts()[0].startswith("Harder questions")
    page.set_viewport_size({"width": 400, "height": 900})
    check(page)


@pytest.mark.parametrize("count", [1, 8])
def test_one_level_or_eight(tmp_path: Path, open_card: Open, count: int) -> None:
    levels = [card_level(tmp_path, f"Q{n}", bits=n) for n in range(2, 2 + count)]
    page = open_card(card_facts(levels))
    check(page)
    assert page.locator("table").first.locator("tbody tr").count() == count
    assert page.locator("img").count() == count
    assert_whole_tables(page)


def test_a_card_of_which_little_is_known(tmp_path: Path, open_card: Open) -> None:
    facts = card_facts([card_level(tmp_path, "Q4", kld=None)], fits=Fits((), ()), coverage=None)
    source = replace(
        SOURCE, repository=None, commit=None, licence=None, licence_name=None, licence_link=None,
        gated=None,
    )  # fmt: skip
    page = open_card(replace(facts, source=source))
    check(page)
    assert page.locator("h2").all_inner_texts() == [
        "Which file?", "Retrieval by length and depth", "Run it", "How it was checked",
        "How it was made", "Make it again, byte for byte", "Verify", "Licence and attribution",
    ]  # fmt: skip


def test_words_of_others_stay_words(tmp_path: Path, open_card: Open) -> None:
    evil = "a|b <img src=x onerror=window.broken=1> [x](javascript:1) **z** <script>1</script>"
    facts = three_levels(tmp_path)
    source = replace(SOURCE, licence_name=evil)
    sources = (SourceRead(evil, "disk", evil, 7),)
    calibration = facts.calibration.model_copy(update={"sources": sources})
    page = open_card(replace(facts, source=source, calibration=calibration))
    check(page)
    assert rows(page, "text")[1] == [f"{evil} (a file of the publisher)", "7", evil]
    assert page.locator("img[src=x], script").count() == 0
    assert page.evaluate("window.broken") is None
