"""Words of others inside Markdown: no markup comes out of them, in a paragraph or in a table."""

from __future__ import annotations

import html
import re
import shlex
from collections.abc import Sequence
from urllib.parse import quote, urlsplit

_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_MARKUP = re.compile(r"[\\`*\[\]|~!$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_PLAIN_CODE = re.compile(r"[\w ./:@=+,*%-]+", re.ASCII)
_LINE_CHARACTERS = 88


def plain(text: str) -> str:
    """`text` as it is, on one line."""
    line = " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
    marked = _MARKUP.sub(lambda found: "\\" + found[0], line)
    return "".join(_HTML.get(sign, sign) for sign in marked)


def code(text: str) -> str:
    """`text` in the font of commands."""
    return f"`{text}`" if _PLAIN_CODE.fullmatch(text) else f"<code>{plain(text)}</code>"


def link(label: str, target: str) -> str:
    """A link to a web address, or to a file by its path in the repository."""
    if urlsplit(target).scheme in ("http", "https"):
        address = quote(target, safe=":/?#[]@!$&'*+,;=%~")
    else:
        address = quote(target, safe="/")
    return f"[{plain(label)}]({address})"


def picture(words: str, path: str, width: str) -> str:
    """A picture of the repository, which leads to itself in full size; `width` as in `49%`."""
    address = quote(path, safe="/")
    alt = html.escape(words)
    return f'<a href="{address}"><img src="{address}" alt="{alt}" width="{width}"></a>'


def tight(text: str) -> str:
    """A figure that no line breaks."""
    return text.replace(" ", "\u00a0")


def listed(words: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def shell(*lines: str) -> str:
    """Commands in a block; no line of them closes it."""
    whole = "\n".join(" ".join(line.split("\r")) for line in lines)
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", whole)), default=0))
    return f"{fence}sh\n{whole}\n{fence}"


def wrapped(words: Sequence[str]) -> str:
    """A command on several lines, an option with its value on one."""
    pieces: list[str] = []
    for word in map(shlex.quote, words):
        if pieces and pieces[-1].startswith("-") and " " not in pieces[-1] and word[0] != "-":
            pieces[-1] += f" {word}"
        else:
            pieces.append(word)
    lines = [pieces[0]]
    for piece in pieces[1:]:
        if len(lines[-1]) + 1 + len(piece) <= _LINE_CHARACTERS:
            lines[-1] += f" {piece}"
        else:
            lines.append(f"  {piece}")
    return " \\\n".join(lines)
