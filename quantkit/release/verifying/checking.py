"""What the checks of a release share: what is checked, and what was found so far."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from quantkit.errors import InputError
from quantkit.progress import Progress
from quantkit.release.verifying.claims import (
    AllocationClaims,
    ClaimsT,
    parse_claims,
    printable,
    shown,
)
from quantkit.release.verifying.description import ALLOCATION, Description
from quantkit.release.verifying.files import ReleaseFiles
from quantkit.release.verifying.structure import Artifact

CheckName = Literal["files", "structure", "types", "claims", "source"]


Outcome = tuple[str, str, Mapping[str, Any]]
"""What a check returns: `compared`, `agrees` and `facts` of `Check`."""


@dataclass(frozen=True)
class Check:
    """What one check compared.

    Attributes:
        compared: what was looked at, in words.
        agrees: what was found right with it, in words, where there is no fault.
        faults: a sentence for each thing that is wrong.
        facts: counts.
    """

    name: CheckName
    compared: str
    agrees: str
    faults: tuple[str, ...]
    seconds: float
    facts: Mapping[str, Any]


@dataclass
class Job:
    """A release under verification.

    Attributes:
        workers: threads that encode rows.
        on_check: told of each check when it is done.
        checks, notes: what was found so far; notes are no faults.
        artifacts: by level, those whose headers could be read.
    """

    files: ReleaseFiles
    said: Description
    workers: int
    progress: Progress
    on_check: Callable[[Check], None]
    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    artifacts: dict[str, Artifact] = field(default_factory=dict)

    def run(self, name: CheckName, check: Callable[[list[str]], Outcome]) -> None:
        """Run one check, which adds to the faults that it is given."""
        began, faults = time.monotonic(), list[str]()
        compared, agrees, facts = check(faults)
        plain = tuple(map(printable, faults))
        done = Check(name, compared, agrees, plain, time.monotonic() - began, facts)
        self.checks.append(done)
        self.on_check(done)

    def content(self, name: str, faults: list[str]) -> bytes | None:
        """A small file of the release; None where it is not here, or cannot be read: a fault."""
        if name not in self.files.sizes:
            return None
        try:
            return self.files.content(name)
        except InputError as error:
            faults.append(str(error))
            return None

    def claims(self, kind: type[ClaimsT], name: str, faults: list[str]) -> ClaimsT | None:
        """The JSON in a small file; None where it is not here, or broken: a fault."""
        content = self.content(name, faults)
        if content is None:
            return None
        try:
            return parse_claims(kind, content, shown(name))
        except InputError as error:
            faults.append(str(error))
            return None

    def allocation(self, level: str, faults: list[str]) -> AllocationClaims | None:
        """What a level's allocation.json says; None where it is not here, or broken: a fault."""
        name = f"{self.said.levels[level].evidence}/{ALLOCATION}"
        return self.claims(AllocationClaims, name, faults)


def count_text(count: int, noun: str) -> str:
    """`1 level`, `4 levels`."""
    return f"{count:,} {noun}{'s' * (count != 1)}"
