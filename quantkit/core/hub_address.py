"""OWNER/NAME@REVISION: a repository on the Hub as a person names it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class HubAddress:
    """A repository, and a branch, tag or commit of it; None: its main branch."""

    repository: str
    revision: str | None = None

    @staticmethod
    def parse(text: str) -> HubAddress:
        """`OWNER/NAME` or `OWNER/NAME@REVISION`; whether there is one of that name is not known."""
        repository, _, revision = text.partition("@")
        return HubAddress(repository, revision or None)
