"""SHA256SUMS: the hashes of a release's files, in the format of coreutils' `sha256sum`.

A file that is read may come from anybody, and its names become paths: see `unsafe_name`.
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
    """Why `name` cannot be a file below a release's folder; None if it can.

    A name is a relative path with `/` between its parts, valid on every system.
    """
    if not name:
        return "is empty"
    if "\\" in name:
        return "holds a backslash"
    if not name.isprintable():  # line breaks, controls, surrogates, bidirectional marks
        return "holds a character that is not printable"
    if name.startswith("/") or _DRIVE.match(name):
        return "is not relative"
    if any(part in ("", ".", "..") for part in name.split("/")):
        return "has an empty part, '.' or '..'"
    return None


def sums_text(hashes: Mapping[str, str]) -> str:
    """The content of SHA256SUMS: one line for each file, sorted by name.

    Args:
        hashes: name in the release → SHA-256 in lower-case hexadecimal.

    Raises:
        InputError: an unsafe name; see `unsafe_name`.
        ValueError: an invalid hash.
    """
    for name, sha256 in hashes.items():
        reason = unsafe_name(name)
        if reason is not None:
            raise InputError(f"{name!r} {reason}, so it cannot be published; rename the file")
        if not _SHA256.fullmatch(sha256):
            raise ValueError(f"Invalid SHA-256 of {name}: {sha256!r}")
    return "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes))


def parse_sums(text: str) -> dict[str, str]:
    """Name → SHA-256 in lower-case hexadecimal, in the order of the lines.

    Accepts the ` *` of `sha256sum --binary` too. A line that begins with a backslash is an escaped
    name, which no release has.

    Raises:
        InputError: a line is not in sha256sum's format, or a name is unsafe or listed twice.
    """
    found: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line:
            continue
        where = f"{SUMS}, line {number}"
        if line.startswith("\\"):
            raise InputError(f"{where}: an escaped name, which no release has: {line[:100]!r}")
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
