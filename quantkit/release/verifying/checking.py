"""The state that the checks of a release share."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from quantkit.core.errors import InputError
from quantkit.core.json_documents import JsonDocument
from quantkit.core.printable import printable, shown
from quantkit.core.progress import Progress
from quantkit.formats.gguf_header import GGUFHeader
from quantkit.formats.tensors import MetaValue
from quantkit.plan.allocation_file import AllocationFile
from quantkit.release.verifying.description import ALLOCATION, Description
from quantkit.release.verifying.files import ReleaseFiles
from quantkit.release.verifying.structure import Artifact

CheckName = Literal["files", "structure", "types", "claims", "source"]

MOST_HEADER_BYTES = 256 << 20
"""Of all headers together; the flagship's take about 10 MB each."""
MOST_HELD_ITEMS = 8_000_000
"""Values kept of all headers, some 60 bytes each; a vocabulary has about a million."""
ENTRY_ITEMS = 20
"""Held items that a tensor or a key counts for; an array's item counts for one."""

Outcome = tuple[str, str | None, Mapping[str, Any]]
"""What a check returns: `compared`, `agrees` and `facts` of `Check`."""
_DocumentT = TypeVar("_DocumentT", bound=JsonDocument)


@dataclass(frozen=True)
class Check:
    """What one check compared.

    Attributes:
        compared: what was looked at, in words.
        agrees: what was found right with it, in words, where there is no fault; None where
            there was nothing to compare, which `compared` then says.
        faults: a sentence for each thing that is wrong.
        facts: counts.
    """

    name: CheckName
    compared: str
    agrees: str | None
    faults: tuple[str, ...]
    seconds: float
    facts: Mapping[str, Any]


@dataclass
class Job:
    """A release under verification.

    Attributes:
        workers: threads that encode rows.
        on_check: called with each check when it is done.
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
    _header_bytes: int = 0
    _held_items: int = 0
    _values: dict[str, MetaValue] = field(default_factory=dict)

    def run(self, name: CheckName, check: Callable[[list[str]], Outcome]) -> None:
        """Run one check, which adds to the faults that it is given."""
        began, faults = time.monotonic(), list[str]()
        compared, agrees, facts = check(faults)
        plain = tuple(map(printable, faults))
        done = Check(name, compared, agrees, plain, time.monotonic() - began, facts)
        self.checks.append(done)
        self.on_check(done)

    def header(self, name: str) -> GGUFHeader:
        """The header of a GGUF file; values that an earlier header has too are kept once.

        Raises:
            InputError: it is not a header, contradicts itself, or all headers together are too
                large.
        """
        if max(self._header_bytes - MOST_HEADER_BYTES, self._held_items - MOST_HELD_ITEMS) > 0:
            raise InputError(
                f"{shown(name)} was not read: the headers before it take {self._header_bytes} "
                f"bytes and {self._held_items} values, {MOST_HEADER_BYTES} and {MOST_HELD_ITEMS} "
                "are the limits of a release"
            )
        header = self.files.header(name)
        self._header_bytes += header.data_start
        self._held_items += ENTRY_ITEMS * (len(header.metadata) + len(header.stored))
        kept = {}
        for key, value in header.metadata.items():
            if self._values.get(key) != value:
                self._values[key] = value
                self._held_items += len(value.value) if isinstance(value.value, tuple) else 0
            kept[key] = self._values[key]
        return replace(header, metadata=kept)

    def content(self, name: str, faults: list[str]) -> bytes | None:
        """A small file of the release; None where it is not here, or cannot be read: a fault."""
        if name not in self.files.sizes:
            return None
        try:
            return self.files.content(name)
        except InputError as error:
            faults.append(str(error))
            return None

    def document(self, kind: type[_DocumentT], name: str, faults: list[str]) -> _DocumentT | None:
        """The JSON in a small file; None where it is not here, or damaged: a fault."""
        content = self.content(name, faults)
        if content is None:
            return None
        try:
            return kind.parse(content, shown(name))
        except InputError as error:
            faults.append(str(error))
            return None

    def allocation(self, level: str, faults: list[str]) -> AllocationFile | None:
        """A level's allocation.json; None where it is not here, or damaged: a fault."""
        name = f"{self.said.manifest.levels[level].evidence}/{ALLOCATION}"
        return self.document(AllocationFile, name, faults)


def count_text(count: int, noun: str) -> str:
    """`1 level`, `4 levels`."""
    return f"{count:,} {noun}{'s' * (count != 1)}"
