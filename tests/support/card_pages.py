"""A release's model card as a page, as the Hub shows it, and what must hold of it in a browser."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from playwright.sync_api import Page

STYLE = """
body { font: 16px/1.5 sans-serif; max-width: 952px; margin: 0 auto; padding: 24px; }
table { display: block; width: max-content; max-width: 100%; overflow: auto;
        border-collapse: collapse; }
th, td { padding: 6px 13px; border: 1px solid #ddd; }
img { max-width: 100%; }
pre { overflow: auto; font-size: 85%; }
"""
"""As far as it decides about widths: that of GitHub, which the Hub's is like."""


def write_card_page(folder: Path) -> Path:
    """README.md of the release in `folder` as index.html beside it, which is returned."""
    body = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    page = folder / "index.html"
    text = body.render(ModelCard.load(folder / "README.md").text)
    page.write_text(f"<!doctype html><meta charset=utf-8><style>{STYLE}</style>{text}", "utf-8")
    return page


def check(page: Page) -> None:
    """Links lead to files or sections, pictures are whole, nothing is wider than the window."""
    folder = Path(unquote(page.url.removeprefix("file://"))).parent
    addresses = page.evaluate("[...document.links].map(a => a.getAttribute('href'))")
    assert addresses
    headings = page.evaluate("[...document.querySelectorAll('h2')].map(h => h.innerText)")
    sections = {"#" + heading.lower().replace(" ", "-") for heading in headings}
    for address in addresses:
        if address.startswith("#"):
            assert address in sections
        elif not address.startswith("https://"):
            assert (folder / unquote(address)).is_file(), address
    pictures = page.evaluate("[...document.images].map(i => [i.complete, i.naturalWidth, i.alt])")
    assert pictures
    assert all(whole and width > 0 and words for whole, width, words in pictures)
    widths = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert widths[0] <= widths[1]
