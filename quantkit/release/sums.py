"""SHA256SUMS: a release's files and their hashes, as `sha256sum` of coreutils writes and checks it.

Anybody may have written the file that is read, and its names become paths: see `unsafe_name`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from quantkit.core.errors import InputError
from quantkit.release.names import SUMS

_LINE = re.compile(r"(?P<sha256>[0-9A-Fa-f]{64}) [ *](?P<name>.+)", re.DOTALL)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_DRIVE = re.compile(r"[A-Za-z]:")


def unsafe_name(name: str) -> str | None:
    """Why `name` is no file below a release's folder; None where it is one.

    A name is a relative path with `/` between its parts, the same on every system.
    """
    if not name:
        return "is empty"
    if "\\" in name:
        return "holds a backslash"
    if not name.isprintable():  # line breaks, controls, surrogates, and what turns text around
        return "holds a character that cannot be printed"
    if name.startswith("/") or _DRIVE.match(name):
        return "is not relative"
    if any(part in ("", ".", "..") for part in name.split("/")):
        return "has a part that is no name"
    return None


def sums_text(hashes: Mapping[str, str]) -> str:
    """The content of SHA256SUMS: a line a file, sorted by name.

    Args:
        hashes: name in the release → SHA-256 in small hexadecimal.

    Raises:
        InputError: a name that no release may hold; see `unsafe_name`.
        ValueError: a hash is none.
    """
    for name, sha256 in hashes.items():
        reason = unsafe_name(name)
        if reason is not None:
            raise InputError(f"{name!r} {reason}, so it cannot be published; rename the file")
        if not _SHA256.fullmatch(sha256):
            raise ValueError(f"{sha256!r} is no SHA-256 of {name}")
    return "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes))


def parse_sums(text: str) -> dict[str, str]:
    """Name → SHA-256 in small hexadecimal, in the order of the lines.

    Takes `sha256sum --binary`'s ` *` too. Its escaped form, a line that begins with a backslash,
    stands for names that no release may hold.

    Raises:
        InputError: a line is none of sha256sum's, a name leads elsewhere, or comes twice.
    """
    found: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line:
            continue
        where = f"{SUMS}, line {number}"
        if line.startswith("\\"):
            raise InputError(f"{where}: an escaped name, which no release may hold: {line[:100]!r}")
        match = _LINE.fullmatch(line)
        if match is None:
            raise InputError(
                f"{where} is not 64 hexadecimal digits, two spaces and a name: {line[:100]!r}"
            )
        name = match["name"]
        reason = unsafe_name(name)
        if reason is not None:
            raise InputError(f"{where}: the name {name[:100]!r} {reason}")
        if name in found:
            raise InputError(f"{where}: {name} is listed twice")
        found[name] = match["sha256"].lower()
    return found
