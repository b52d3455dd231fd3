"""A comparison in a browser: long names on a phone and on paper, and by keyboard."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from compared_artifacts import CONDITIONS, ladder
from playwright.sync_api import Browser, Page

from quantkit.report.comparison.comparison import compared
from quantkit.report.comparison.writers import write_comparison

LONG = "a-model-of-120B-parameters_with_a_name_that_nobody_would_type_twice-"
PAPER = 688
"""Pixels that an A4 page has between its margins of 14 mm."""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    named = [replace(artifact, name=LONG + artifact.name) for artifact in ladder()]
    return write_comparison(compared(named, CONDITIONS), tmp_path_factory.mktemp("page"))[0]


def widths(page: Page, selector: str) -> list[float]:
    return page.eval_on_selector_all(selector, "all => all.map(e => e.scrollWidth)")


def test_long_names_on_a_phone(browser: Browser, path: Path) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(path.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    # names that stay in sight leave room for the figures
    for width in widths(page, ".scroll tbody th"):
        assert width < 300
    scrollers = page.locator(".compare > .scroll, details .scroll")
    assert scrollers.count() == 4
    for scroller in scrollers.all():
        assert scroller.get_attribute("tabindex") == "0"
        assert scroller.get_attribute("role") == "region"
        assert scroller.get_attribute("aria-label")
    heads = page.eval_on_selector_all("thead th", "all => all.map(e => e.textContent.trim())")
    assert heads
    assert all(heads)
    # what waits for a cell is small, and holds its questions after
    panel = page.locator("#map-0-questions")
    box = panel.bounding_box()
    assert box is not None
    assert box["height"] < 80
    page.hover("#map-0 td >> nth=0")
    opened = panel.bounding_box()
    assert opened is not None
    assert opened["height"] > 100
    page.close()


def test_long_names_on_paper(browser: Browser, path: Path) -> None:
    page = browser.new_page(viewport={"width": PAPER, "height": 1000})
    page.goto(path.as_uri())
    page.emulate_media(media="print")
    assert all(width <= PAPER for width in widths(page, ".compare table"))
    assert page.evaluate("document.documentElement.scrollWidth") <= PAPER
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.close()
