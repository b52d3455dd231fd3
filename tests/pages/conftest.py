"""Debian's Chromium, driven by Playwright; without it the tests here are skipped."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright

REQUIRED = "QUANTKIT_REQUIRE_CHROMIUM"
"""Set where Chromium must be there: then its absence is a failure."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium")
    if path is None:
        words = "no chromium on PATH; on Debian: apt-get install chromium"
        if os.environ.get(REQUIRED):
            pytest.fail(f"{words} ({REQUIRED} is set)")
        pytest.skip(words)
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path)
        yield opened
        opened.close()
