"""The report in a browser: from the disk, by pointer and keyboard, on paper, without JavaScript."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from finished_levels import KEYS, answer, answers_of, finish_level, report_facts
from playwright.sync_api import Browser, Page

from quantkit.core.units import printable
from quantkit.report.pages import nats_text, percent_text
from quantkit.report.pictures import contrast
from quantkit.report.report import write_report
from quantkit.retrieval.results import Answer
from quantkit.retrieval.statistics import hit_rate_bounds

HOSTILE = (
    "</script><script>window.broken=1</script><img src=x onerror=window.broken=1>"
    "<!--<script>'\"`{{ 7*7 }}&lt;\u202e\u2028end"
)
LEVELS = ("Q6", "Q3", "IQ2_XXS")
READABLE = 4.5


@pytest.fixture(scope="module")
def answers() -> dict[str, list[Answer]]:
    found = {"Q6": answers_of(0.0), "Q3": answers_of(0.15), "IQ2_XXS": answers_of(0.5)}
    changes = {"answer": HOSTILE, "hit": False, "found": 0, "rank": 12, "log_probability": -3.25}
    place = next(i for i, a in enumerate(found["Q3"]) if a.context_tokens == max(KEYS))
    found["Q3"][place] = answer("multikey", max(KEYS), 0, 32, key="<b>bold</b>-anchor", **changes)
    return found


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, answers: dict[str, list[Answer]]) -> Path:
    build = tmp_path_factory.mktemp("a build #1")
    results = [
        finish_level(build, "Q6", answers["Q6"], bits=6.6, kld=None),
        finish_level(build, "Q3", answers["Q3"], bits=3.2, kld=0.06),
        finish_level(build, "IQ2_XXS", answers["IQ2_XXS"], bits=2.5, kld=0.3, baseline=True),
    ]
    return write_report(report_facts(results), build)[0]


Open = Callable[..., Page]


@pytest.fixture
def open_page(browser: Browser, path: Path) -> Iterator[Open]:
    """Opens the report with settings of a browser's context, and sees that it is quiet."""
    contexts, problems = [], []

    def opened(**settings: object) -> Page:
        contexts.append(browser.new_context(**settings))
        page = contexts[-1].new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: problems.append(request.url))
        page.goto(path.as_uri())
        assert problems.pop(0) == path.as_uri()
        return page

    yield opened
    for context in contexts:
        context.close()
    assert problems == []


def cells(page: Page) -> list[dict[str, str]]:
    """Text, background and ink of the heatmaps' cells that are shown."""
    return page.evaluate(
        """() => [...document.querySelectorAll('.heat td')].filter(td => td.checkVisibility())
        .map(td => ({text: td.innerText, back: getComputedStyle(td).backgroundColor,
                     ink: getComputedStyle(td.querySelector('span') ?? td).color}))"""
    )


def hexed(color: str) -> str:
    red, green, blue = map(int, re.findall(r"\d+", color)[:3])
    assert color.startswith("rgb("), f"{color} is not opaque"
    return f"#{red:02x}{green:02x}{blue:02x}"


def shown(page: Page, selector: str) -> list[str]:
    """Texts of those elements that are visible."""
    return page.eval_on_selector_all(
        selector, "all => all.filter(e => e.checkVisibility()).map(e => e.innerText)"
    )


def rows_behind(answers: list[Answer], context: int, band: int) -> list[list[str]]:
    """What the panel must say of a cell, from the answers themselves."""
    some = [
        a for a in answers
        if a.task == "multikey" and a.context_tokens == context
        and band / 10 <= a.depth < (band + 1) / 10
    ]  # fmt: skip
    return [
        [
            a.key, percent_text(a.depth), ", ".join(a.values), a.answer,
            "found" if a.hit else "cut off" if a.truncated else "wrong",
            nats_text(a.log_probability), str(a.rank), nats_text(a.margin),
        ]
        for a in sorted(some, key=lambda a: a.depth)
    ]  # fmt: skip


def panel_rows(page: Page, table: str) -> list[list[str]]:
    return page.eval_on_selector_all(
        f"#{table}-questions tbody tr",
        "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))",
    )


def test_pointing_at_a_cell_shows_its_questions(
    open_page: Open, answers: dict[str, list[Answer]]
) -> None:
    page = open_page()
    panel = page.locator("#map-2-0-questions")
    assert "Point at a cell" in panel.inner_text()
    some = {band: rows_behind(answers["IQ2_XXS"], max(KEYS), band) for band in range(10)}
    band, rows = next((b, r) for b, r in some.items() if {"found", "wrong"} <= {x[4] for x in r})
    page.hover(f"#map-2-0 td[data-cell='{max(KEYS)}/{band}']")
    assert panel_rows(page, "map-2-0") == rows
    hits = [row[4] for row in rows].count("found")
    bounds = hit_rate_bounds([(hits, len(rows))])
    words = panel.inner_text()
    assert (
        f"504K tokens, depth {10 * band}–{10 * band + 10} %: {hits} of {len(rows)} found" in words
    )
    assert f"at least {percent_text(bounds.lower)}" in words
    assert f"at most {percent_text(bounds.upper)}" in words
    # it stays when the pointer goes, and a chosen cell comes back after others were pointed at
    page.mouse.move(0, 0)
    assert panel_rows(page, "map-2-0") == rows
    page.click("#map-2-0 td[data-cell='8192/0']")
    page.hover("#map-2-0 td[data-cell='8192/1']")
    assert panel_rows(page, "map-2-0") == rows_behind(answers["IQ2_XXS"], 8192, 1)
    page.mouse.move(0, 0)
    assert panel_rows(page, "map-2-0") == rows_behind(answers["IQ2_XXS"], 8192, 0)


def test_the_keyboard_reaches_everything(open_page: Open, answers: dict[str, list[Answer]]) -> None:
    page = open_page()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    assert page.locator(".skip").bounding_box()["x"] >= 0, "a skip link that is focused is seen"
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("(document.activeElement.closest('table') ?? {}).id"))
        if reached[-1] == "map-1-0":
            break
    assert reached.count("levels") == 9 + 3, "nine heads to sort by, three links to levels"
    assert reached.count("map-0-0") == 1, "one stop for all cells"
    focus = "document.activeElement.dataset.cell"
    assert page.evaluate(focus) == "8192/0"
    walk = {
        "ArrowRight": "8192/1", "ArrowDown": "32768/1", "ArrowLeft": "32768/0",
        "ArrowUp": "8192/0", "End": "8192/9", "Control+End": "516096/9", "Home": "516096/0",
        "Control+Home": "8192/0",
    }  # fmt: skip
    for key, cell in walk.items():
        page.keyboard.press(key)
        assert page.evaluate(focus) == cell
        context, band = map(int, cell.split("/"))
        assert panel_rows(page, "map-1-0") == rows_behind(answers["Q3"], context, band)
    page.mouse.move(0, 0)  # and a page that scrolls under a resting pointer changes nothing
    box = page.locator("#map-1-0 td[data-cell='516096/5']").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 20, box["y"] + 20)
    page.keyboard.press("ArrowRight")
    page.mouse.wheel(0, -60)
    page.evaluate("new Promise(done => setTimeout(done, 300))")
    assert panel_rows(page, "map-1-0") == rows_behind(answers["Q3"], 8192, 1)
    page.keyboard.press("ArrowLeft")
    for key in ("ArrowUp", "ArrowLeft"):  # no way out of the table, and none around it
        page.keyboard.press(key)
        assert page.evaluate(focus) == "8192/0"
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.evaluate(outline) == "solid"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "map-1-0-questions"
    grid = page.get_by_role("grid", name="Q3, multikey-64")
    label = re.compile("^8K tokens, depth 0–10 %: 3 of 3 found, mean log-probability −0.040$")
    assert grid.get_by_role("gridcell", name=label).count() == 1


def test_tables_sort(open_page: Open) -> None:
    page = open_page()

    def press(name: str) -> tuple[list[str], str | None]:
        page.locator("#levels").get_by_role("button", name=name, exact=True).click()
        head = page.locator("#levels th", has_text=name).first
        return shown(page, "#levels tbody th"), head.get_attribute("aria-sort")

    assert shown(page, "#levels tbody th") == ["Q6", "Q3", "IQ2_XXS"]
    assert press("size") == (["IQ2_XXS", "Q3", "Q6"], "ascending")
    assert press("size") == (["Q6", "Q3", "IQ2_XXS"], "descending")
    assert press("level") == (["IQ2_XXS", "Q3", "Q6"], "ascending")
    assert page.locator("#levels th[aria-sort=descending]").count() == 0
    # Q6 has no KLD: it is last both ways
    assert press("KLD") == (["Q3", "IQ2_XXS", "Q6"], "ascending")
    assert press("KLD") == (["IQ2_XXS", "Q3", "Q6"], "descending")
    assert press("KLD") == (["Q6", "Q3", "IQ2_XXS"], "none")
    speed = page.locator("#speed")
    speed.get_by_role("button", name="decode, tokens/s").click()
    rates = [float(text) for text in shown(page, "#speed tbody td:last-child")]
    assert rates == sorted(rates)
    assert rates[0] < rates[-1]


def test_levels_and_tasks_are_chosen(open_page: Open) -> None:
    page = open_page()
    headings = "section[data-level] h2"
    assert len(shown(page, headings)) == 3
    page.uncheck("input[value=Q3]")
    assert shown(page, headings) == ["Q6 passed", "IQ2_XXS failed, a baseline"]
    assert shown(page, "#levels tbody th") == ["Q6", "IQ2_XXS"]
    assert set(shown(page, "#speed tbody th")) == {"Q6", "IQ2_XXS"}
    assert shown(page, ".heat caption") == [
        f"{level}, multikey-64: found by context length and depth" for level in ("Q6", "IQ2_XXS")
    ]
    page.get_by_role("combobox", name="Task").select_option("two-hop")
    page.check("input[value=Q3]")
    assert shown(page, ".heat caption") == [
        f"{level}, two-hop: found by context length and depth" for level in LEVELS
    ]
    page.get_by_role("combobox", name="Task").select_option("absent")  # whose answer lies nowhere
    assert len(cells(page)) == len(LEVELS) * len(KEYS)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(open_page: Open, scheme: str) -> None:
    page = open_page(color_scheme=scheme)
    looks = {}
    for view in ("hits", "nats"):
        page.check(f"input[value={view}]")
        looks[view] = cells(page)
        assert len(looks[view]) == 3 * 10 * len(KEYS)
        for cell in looks[view]:
            assert contrast(hexed(cell["back"]), hexed(cell["ink"])) >= READABLE, cell
    assert [c["back"] for c in looks["hits"]] != [c["back"] for c in looks["nats"]]
    for back in ("--back", "--raised"):
        for ink in ("--ink", "--soft", "--good", "--bad", "--warn", "--accent"):
            pair = page.evaluate(
                """names => { const style = document.body.appendChild(document.createElement('i'))
                .style; return names.map(name => { style.color = `var(${name})`;
                return getComputedStyle(document.body.lastChild).color }) }""",
                [back, ink],
            )
            assert contrast(*map(hexed, pair)) >= READABLE, (back, ink)


def test_dark_and_light(open_page: Open) -> None:
    back = "getComputedStyle(document.body).backgroundColor"
    light, dark = open_page(color_scheme="light"), open_page(color_scheme="dark")
    colors = light.evaluate(back), dark.evaluate(back)
    assert contrast(hexed(colors[0]), "#000000") > 10 > contrast(hexed(colors[1]), "#000000")
    for page, other in ((light, colors[1]), (dark, colors[0])):
        button = page.get_by_role("button", name="Dark theme")
        pressed = button.get_attribute("aria-pressed")
        button.click()
        assert page.evaluate(back) == other
        assert button.get_attribute("aria-pressed") != pressed


def test_on_paper(open_page: Open) -> None:
    page = open_page(color_scheme="dark", viewport={"width": 760, "height": 1000})
    paper = page.pdf(format="A4")
    assert paper.startswith(b"%PDF")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", paper)) <= 20
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not shown(page, ".controls, .panel, .theme")
    assert len(cells(page)) == 3 * 10 * len(KEYS)
    assert page.evaluate("document.documentElement.scrollWidth") <= 760


def test_a_hostile_answer_is_only_shown(open_page: Open, path: Path) -> None:
    page = open_page()
    page.hover(f"#map-1-0 td[data-cell='{max(KEYS)}/0']")
    ours = [row for row in panel_rows(page, "map-1-0") if row[0] == "<b>bold</b>-anchor"]
    assert [row[3] for row in ours] == [HOSTILE]
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
    assert printable(HOSTILE) in page.eval_on_selector_all(
        ".misses td.answer", "cells => cells.map(cell => cell.textContent)"
    )
    assert page.evaluate("window.broken") is None
    assert page.locator("b, script").count() == 2, "its data and its script"
    assert page.locator("img").count() == 0
    assert "<script>window.broken" not in path.read_text(encoding="utf-8")


def test_no_other_script_runs(browser: Browser, path: Path) -> None:
    page = browser.new_page()
    refused = []
    page.on("console", lambda message: refused.append(message.text))
    page.goto(path.as_uri())
    page.evaluate(
        """() => { const script = document.createElement('script');
        script.textContent = 'window.broken = 1'; document.body.append(script);
        document.body.insertAdjacentHTML('beforeend', '<img src=x onerror="window.broken=1">') }"""
    )
    assert page.evaluate("window.broken") is None
    assert any("Content Security Policy" in text for text in refused)
    page.close()


def test_without_javascript(open_page: Open) -> None:
    page = open_page(java_script_enabled=False)
    assert [th.inner_text() for th in page.locator("#levels tbody th").all()] == list(LEVELS)
    for name in (".controls", ".theme", ".panel"):
        assert not any(item.is_visible() for item in page.locator(name).all())
    heats = page.locator(".heat")
    assert heats.count() == 3 * 4, "every level with every task"
    assert all(table.is_visible() for table in heats.all())
    first = page.locator("#map-0-0 td").first
    assert first.inner_text().split() == ["3/3", "−0.040"]
    assert page.locator("button:visible").count() == 0


def test_a_phone_scrolls_tables_and_not_the_page(open_page: Open) -> None:
    page = open_page(viewport={"width": 390, "height": 844}, has_touch=True)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.tap("#map-1-0 td[data-cell='8192/0']")
    assert "8K tokens, depth 0–10 %" in page.locator("#map-1-0-questions").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_a_level_may_have_any_name(browser: Browser, tmp_path: Path) -> None:
    name = '4.5 bits & "more"'
    one = finish_level(tmp_path, name, answers_of(0.02))
    page = browser.new_page()
    page.goto(write_report(report_facts([one]), tmp_path)[0].as_uri())
    assert shown(page, "#levels tbody th") == [name]
    page.get_by_role("checkbox", name=name).uncheck()
    assert shown(page, "#levels tbody th") == []
    page.close()
