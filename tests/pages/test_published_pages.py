"""The pages of a release that a build was really made into: its card, and its report."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from card_pages import check, write_card_page
from finished_builds import copied, divide
from forked import quantkit
from loopback_hub import hub
from playwright.sync_api import Browser


@pytest.fixture
def release(finished_build: Path, tmp_path: Path) -> Path:
    """What would be published of a build one of whose levels has shards, without links."""
    own = copied(finished_build, tmp_path / "own")
    divide(own, "Q4")
    with hub({}, storage=tmp_path / "hub") as served:
        env = dict(os.environ) | {"HF_ENDPOINT": served.address, "HF_TOKEN": "hf_good"}
        done = quantkit("publish", own, "--to", "someone", "--dry-run", env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return Path(shutil.copytree(own / "release", tmp_path / "release"))


def test_the_card_and_the_report_of_a_release(browser: Browser, release: Path) -> None:
    page = browser.new_page(viewport={"width": 1000, "height": 900})
    page.goto(write_card_page(release).as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
    check(page)
    words = page.inner_text("body")
    assert "Q4/quantkit-demo-Q4-00001-of-00002.gguf" in words
    assert "Q4_0" in words  # built, and not published
    page.goto((release / "report.html").as_uri())
    links = page.evaluate("[...document.links].map(a => a.getAttribute('href'))")
    files = [link for link in links if not link.startswith("#")]
    assert files
    for link in files:
        assert (release / link).is_file(), link
    assert "Q8" in page.inner_text("h2, h3, table")
    assert "alias quantkit-demo-Q4_0" not in page.inner_text("body")
    page.close()
