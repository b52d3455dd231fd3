"""Checks of what the Hub answers: anybody may have written a card or run a mirror."""

from __future__ import annotations

import re
from collections.abc import Mapping

from quantkit.core.errors import EnvironmentFault
from quantkit.hub.errors import Asked

LICENCE_CHARACTERS = 200
_COMMIT = re.compile("[0-9a-f]{40}")


def is_commit(text: str) -> bool:
    """Whether `text` is a full commit hash, which becomes the name of a folder."""
    return _COMMIT.fullmatch(text) is not None


def commit_of(sha: str | None, asked: Asked) -> str:
    """The commit that the Hub names, checked.

    Raises:
        EnvironmentFault: it is not a commit.
    """
    if sha is None or not is_commit(sha):
        raise EnvironmentFault(
            f"{asked.endpoint} names {sha!r} as a commit of {asked.name}; check HF_ENDPOINT"
        )
    return sha


def licence_of(card: object) -> str | None:
    """The licence that a card states: tags of the Hub, and for "other" the name of its own.

    Args:
        card: the metadata of README.md as attributes.
    """
    stated = getattr(card, "license", None)
    tags = [str(tag or "") for tag in (stated if isinstance(stated, list) else [stated])]
    own = getattr(card, "license_name", None)
    words = [f"other ({own})" if tag == "other" and own else tag for tag in tags]
    shown = "".join(c for c in ", ".join(filter(None, words)) if c.isprintable())
    return shown[:LICENCE_CHARACTERS] or None


def card_of(card: object) -> dict[str, object]:
    """The metadata of a README.md as plain values; empty if there is none."""
    as_plain = getattr(card, "to_dict", None)
    found = as_plain() if callable(as_plain) else None
    return found if isinstance(found, dict) else {}


def gating_of(gated: object) -> str | bool | None:
    """How access is granted: `auto`, `manual`, or False; None for anything else."""
    return gated if isinstance(gated, bool) or gated in ("auto", "manual") else None


def first_byte_offset(status: int, headers: Mapping[str, str], position: int) -> int:
    """Bytes of an answer before `position`: 0, unless the server ignored Range.

    Raises:
        OSError: the answer begins somewhere else.
    """
    if status != 206:
        return position
    begins = headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    if begins != str(position):
        raise OSError(f"the server answers from byte {begins} to a request from byte {position}")
    return 0
