"""What goes into a page: data without markup, and a policy that names its script."""

from __future__ import annotations

import base64
import hashlib
import json
import re

import pytest
from finished_levels import answer
from jinja2 import DictLoader
from markupsafe import Markup

from quantkit.core.paths import TEMPLATES
from quantkit.report.pages import (
    ANSWER_CHARACTERS,
    cells_data,
    embedded,
    outcome,
    page_environment,
    shortened,
)
from quantkit.report.retrieval import grid_of


@pytest.mark.parametrize("text", ["</script><script>", "<!--", "]]>", "&lt;", "\u2028", "\ud800"])
def test_embedded_text_has_no_markup(text: str) -> None:
    found = embedded({"answer": text})
    assert not set("<>&") & set(found)
    assert found.isascii()
    assert json.loads(found) == {"answer": text}


def test_numbers_that_json_lacks_are_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        embedded([float("nan")])


def test_the_policy_names_the_script_that_is_in_the_page() -> None:
    template = page_environment().from_string(
        '{% import "parts.html" as parts %}{{ parts.head("<T>") }}{{ parts.tail({}) }}'
    )
    page = template.render().replace("&#39;", "'")
    (script,) = re.findall(r"<script>(.*?)</script>", page.replace("&lt;", "<"), re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page
    assert "default-src 'none'" in page
    assert page.startswith("<!doctype html>")


def test_the_shared_parts_load_nothing() -> None:
    for name in ("page.css", "page.js", "parts.html"):
        text = (TEMPLATES / name).read_text(encoding="utf-8")
        assert not re.search(r"https?:|//\w|url\(|@import|\son\w+=|innerHTML|eval\(", text), name
    assert (TEMPLATES / "page.js").read_text(encoding="utf-8").startswith('"use strict";')


def test_a_long_answer_keeps_its_ends() -> None:
    long = "a" * 1000 + "z" * 1000
    half = ANSWER_CHARACTERS // 2
    assert shortened(long) == f"{'a' * half} … 1,600 characters … {'z' * half}"
    assert shortened("a" * ANSWER_CHARACTERS) == "a" * ANSWER_CHARACTERS


def test_a_cells_words() -> None:
    several = answer("multi-value", 8192, 0, 2, hit=False, found=1, values=("1", "2", "3"))
    assert outcome(several) == "wrong: 1 of 3"
    answers = [
        answer("multi-value", 8192, 0, 2, depth=0.11, values=("1", "2"), log_probability=None,
               rank=None, margin=None),
        answer("multi-value", 8192, 1, 2, depth=0.12, hit=False, truncated=True, answer="so",
               log_probability=-float("inf"), rank=1234),
    ]  # fmt: skip
    words = cells_data({"m": grid_of(answers, "multi-value")})["m"]["8192/1"]
    assert words["title"] == "8K tokens, depth 10–20 %: 1 of 2 found, 1 cut off."
    assert words["rows"][0] == ["amber-anchor", "11.0 %", "1, 2", "10001", "found", "–", "–", "–"]
    assert words["rows"][1][3:] == ["so", "cut off", "−∞", "1,234", "6.50"]
    absent = grid_of([answer("absent", 8192, 0, 1)], "absent")
    (only,) = cells_data({"m": absent})["m"].values()
    assert only["title"].startswith("8K tokens: 1 of 1")
    assert only["rows"][0][2] == "nothing: never hidden"


@pytest.mark.parametrize("suffix", ["html", "md"])
def test_names_bring_no_control_characters_into_a_page(suffix: str) -> None:
    environment = page_environment()
    hostile = "a\x1b[2J\x9b2J\rb\u202e\udc9b\ufeff\x00|<b>`x`\u00a0é🙂"
    form = "{{ n }} {{ n | plain }} {{ m }}{{ none }}"
    environment.loader = DictLoader({f"page.{suffix}": form})
    written = environment.get_template(f"page.{suffix}").render(n=hostile, m=Markup("x\n\ty"))
    assert written.endswith("x\n\tyNone")
    shown = written.removesuffix("x\n\tyNone").encode()  # as it is written: no half surrogate
    assert all(c.isprintable() or c == "\u00a0" for c in shown.decode())
    assert written.count("é🙂") == 2
    assert ("<b>" in written) == (suffix == "md")  # an expression is Markdown, a name is `plain`
    assert "\\|" in written
