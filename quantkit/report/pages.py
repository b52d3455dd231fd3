"""The HTML pages: the Jinja environment of all templates, and answers as page data.

A page is one file with its style, script and data. Its Content-Security-Policy allows that script
and no network. Answers are untrusted text: they are embedded as JSON without `<`, and the script
inserts them as text nodes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.core.paths import TEMPLATES
from quantkit.core.units import CONTROLS, gb_text, gib_text, printable, tokens_text
from quantkit.report.pictures import SHARE_COLORS, share_color, text_color
from quantkit.report.retrieval import (
    Cell,
    Grid,
    cost_text,
    forks_text,
    gate_text,
    nats_text,
    rate_text,
)
from quantkit.retrieval.results import Answer
from quantkit.study.kld_statistics import kld_text, kld_with_error

if TYPE_CHECKING:
    from jinja2 import Environment

ANSWER_CHARACTERS = 400
"""A longer answer is shown by its beginning and its end, so many characters in all."""

_MARKUP = re.compile(r"[\\`*\[\]|~!$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_HTML = {"&": "&amp;", "<": "&lt;"}


def page_environment() -> Environment:
    """Templates with `quantkit`'s filters; `page_css`, `page_js` and `page_policy` for pages."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        autoescape=select_autoescape(["html"]),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_without_controls,
    )
    filters: dict[str, Callable[..., str]] = {
        "plain": plain,
        "gib": gib_text,
        "gb": gb_text,
        "percent": percent_text,
        "length_text": tokens_text,
        "kld": kld_text,
        "kld_with_error": kld_with_error,
        "nats": nats_text,
        "rate": rate_text,
        "gate": gate_text,
        "cost": cost_text,
        "forks": forks_text,
        "parameters": parameters_text,
        "count": lambda number: f"{number:,}",
        "share_color": share_color,
        "text_color": text_color,
        "embedded": lambda value: Markup(embedded(value)),
    }
    environment.filters |= filters
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    environment.globals |= {
        "page_css": Markup((TEMPLATES / "page.css").read_text(encoding="utf-8")),
        "page_js": Markup(script),
        "page_policy": _policy(script),
        "share_colors": SHARE_COLORS,
    }
    return environment


def _without_controls(value: object) -> object:
    """A value as it enters a page: names may come from anybody's files."""
    if not isinstance(value, str) or not CONTROLS.search(value):
        return value
    return type(value)(CONTROLS.sub(lambda found: printable(found[0]), value))


def _policy(script: str) -> str:
    """A Content-Security-Policy: this script and no other, pictures in the page, no network."""
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    return (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )


def plain(text: str) -> str:
    """`text` as it is, on one line."""
    line = " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
    marked = _MARKUP.sub(lambda found: "\\" + found[0], line)
    safe = "".join(_HTML.get(sign, sign) for sign in marked)
    return f"&gt;{safe[1:]}" if safe.startswith(">") else safe  # there it begins a quotation


def percent_text(share: float) -> str:
    """`95.4 %`."""
    return f"{100 * share:.1f} %"


def parameters_text(count: int) -> str:
    """`6.7 M`, `120.67 B`."""
    return f"{count / 1e9:,.2f} B" if count >= 1e9 else f"{count / 1e6:,.1f} M"


def embedded(value: object) -> str:
    """`value` as JSON for a `<script type="application/json">`: no markup can be in it."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def picture_url(path: Path) -> str:
    """A PNG as a `data:` address."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def cells_data(grids: Mapping[str, Grid]) -> dict[str, Any]:
    """What the script shows of each cell of the heatmaps: id of the table → cell → its words.

    All values are strings, so that the script formats no numbers.
    """
    return {
        name: {
            f"{length}/{column}": _cell_words(grid, length, column, cell)
            for (length, column), cell in grid.cells.items()
        }
        for name, grid in grids.items()
    }


def _cell_words(grid: Grid, length: int, column: int, cell: Cell) -> dict[str, Any]:
    depth = f", depth {grid.bands[column]} %" if len(grid.bands) > 1 else ""
    cut = f", {cell.truncated} cut off" if cell.truncated else ""
    low, high = percent_text(cell.bounds.lower), percent_text(cell.bounds.upper)
    mean = nats_text(cell.log_probability)
    known = "" if cell.log_probability is None else f" Mean log-probability {mean}."
    return {
        "title": f"{tokens_text(length)} tokens{depth}: {cell.hits} of {cell.trials} found{cut}.",
        "summary": f"The hit rate is at least {low} and at most {high} (95 % each).{known}",
        "rows": [_answer_words(answer) for answer in cell.answers],
    }


def _answer_words(answer: Answer) -> list[str]:
    """Key, depth, expected, answer, outcome, log-probability, rank, margin."""
    return [
        answer.key,
        percent_text(answer.depth),
        ", ".join(answer.values) or "nothing: never hidden",
        shortened(answer.answer),
        outcome(answer),
        nats_text(answer.log_probability),
        "–" if answer.rank is None else f"{answer.rank:,}",
        nats_text(answer.margin),
    ]


def outcome(answer: Answer) -> str:
    """`found`, `cut off` or `wrong`, and how many of several values were found."""
    if answer.hit:
        return "found"
    word = "cut off" if answer.truncated else "wrong"
    of = len(answer.values)
    return f"{word}: {answer.found} of {of}" if of > 1 else word


def shortened(text: str) -> str:
    """An answer, or the beginning and the end of a long one."""
    missing = len(text) - ANSWER_CHARACTERS
    if missing <= 0:
        return text
    half = ANSWER_CHARACTERS // 2
    return f"{text[:half]} … {missing:,} characters … {text[-half:]}"
