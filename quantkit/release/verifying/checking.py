"""The state that the checks of a release share, and the checks of GGUF headers.

Headers are compared with themselves, each other and allocation.json; no weights are read.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from quantkit.core.documents import JsonDocument
from quantkit.core.errors import InputError
from quantkit.core.progress import Progress
from quantkit.core.units import printable, shown
from quantkit.formats.gguf_file import SHARD_NAME, SPLIT_KEYS
from quantkit.formats.gguf_header import GGUFHeader, StoredAt
from quantkit.formats.tensors import Metadata, MetaValue, TensorInfo
from quantkit.models.model import Model
from quantkit.plan.allocation_file import AllocationFile
from quantkit.plan.gpu_memory import padded_bytes
from quantkit.quantize.quantize import overhead_bytes
from quantkit.release.layout import ALLOCATION
from quantkit.release.verifying.description import Description
from quantkit.release.verifying.files import ReleaseFiles

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
    """What one check compared, with a sentence for each fault.

    Attributes:
        agrees: what is right if there is no fault; None: nothing could be compared, as `compared`
            says.
    """

    name: CheckName
    compared: str
    agrees: str | None
    faults: tuple[str, ...]
    seconds: float
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Artifact:
    """A level's files by their headers, in the order of the shards."""

    headers: Mapping[str, GGUFHeader]

    @property
    def metadata(self) -> Metadata:
        """The model's, which only the first file has."""
        first = next(iter(self.headers.values()))
        return {k: v for k, v in first.metadata.items() if k not in SPLIT_KEYS}

    @property
    def tensors(self) -> dict[str, tuple[str, StoredAt]]:
        """Tensor → its file and where it lies there, in file order."""
        return {
            name: (file, at)
            for file, header in self.headers.items()
            for name, at in header.stored.items()
        }

    @property
    def infos(self) -> list[TensorInfo]:
        return [at.info for _, at in self.tensors.values()]

    @property
    def size_bytes(self) -> int:
        return sum(header.size_bytes for header in self.headers.values())

    @property
    def elements(self) -> int:
        return sum(info.elements for info in self.infos)


@dataclass
class Job:
    """A release under verification.

    Attributes:
        workers: threads that encode rows.
        on_check: called with each check when it is done.
        notes: what else a person should know.
        artifacts: by level, those whose headers could be read.
    """

    files: ReleaseFiles
    described: Description
    workers: int
    progress: Progress
    on_check: Callable[[Check], None]
    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    _header_bytes: int = 0
    _held_items: int = 0
    _values: dict[str, MetaValue] = field(default_factory=dict)

    def run(self, name: CheckName, check: Callable[[Job, list[str]], Outcome]) -> None:
        """Run one check, which appends its faults to a list."""
        began, faults = time.monotonic(), list[str]()
        compared, agrees, facts = check(self, faults)
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
        try:
            return self.files.content(name) if name in self.files.sizes else None
        except InputError as error:
            faults.append(str(error))
            return None

    def document(self, kind: type[_DocumentT], name: str, faults: list[str]) -> _DocumentT | None:
        """The JSON in a small file; None where it is not here, or damaged: a fault."""
        content = self.content(name, faults)
        try:
            return None if content is None else kind.parse(content, shown(name))
        except InputError as error:
            faults.append(str(error))
            return None

    def allocation(self, level: str, faults: list[str]) -> AllocationFile | None:
        """A level's allocation.json, as `document` reads it."""
        name = f"{self.described.manifest.levels[level].evidence}/{ALLOCATION}"
        return self.document(AllocationFile, name, faults)


def count_text(count: int, noun: str) -> str:
    """`1 level`, `4 levels`."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def layout_faults(file: str, header: GGUFHeader) -> list[str]:
    """What is wrong with where a file's tensors lie: one after another, aligned, to its end."""
    faults = []
    expected = header.data_start
    for at in sorted(header.stored.values(), key=lambda at: at.offset):
        name, distance = shown(at.info.name), at.offset - expected
        if at.offset % header.alignment:
            faults.append(f"{file}: {name} begins at byte {at.offset}, not aligned")
        if distance < 0:
            faults.append(f"{file}: {name} overlaps the tensor before it by {-distance} bytes")
        elif distance > 0:
            faults.append(f"{file}: {distance} bytes before {name} belong to no tensor")
        end = at.offset + at.size_bytes
        expected = max(expected, -(-end // header.alignment) * header.alignment)
    over = header.size_bytes - expected
    if over > 0:
        faults.append(f"{file}: {over} bytes after the last tensor belong to none")
    elif over < 0:
        faults.append(f"{file}: ends {-over} bytes before its last tensor does, with its padding")
    return faults


def shard_faults(level: str, artifact: Artifact) -> list[str]:
    """What is wrong with how a level's files go together."""
    files = list(artifact.headers)
    counts = Counter(name for header in artifact.headers.values() for name in header.stored)
    faults = [
        f"{level}: tensor {shown(name)} is in {count} files"
        for name, count in counts.items()
        if count > 1
    ]
    shard = SHARD_NAME.fullmatch(files[0])
    if len(files) == 1 and shard is None:
        here = [key for key in SPLIT_KEYS if key in artifact.headers[files[0]].metadata]
        return [*faults, *(f"{files[0]}: has {key}, but is no shard" for key in here)]
    stem = "" if shard is None else shard["stem"]
    for number, (file, header) in enumerate(artifact.headers.items()):
        expected = f"{stem}-{number + 1:05}-of-{len(files):05}.gguf"
        if file != expected:
            faults.append(f"{level}: file {number + 1} of {len(files)} is {file}, not {expected}")
        values = (number, len(files), len(counts))
        for key, value in zip(SPLIT_KEYS, values, strict=True):
            found = header.metadata.get(key)
            if found is None or found.value != value:
                words = "missing" if found is None else shown(str(found.value))
                faults.append(f"{file}: {key} is {words}, not {value}")
    return faults


def type_faults(artifact: Artifact, allocation: AllocationFile) -> list[str]:
    """How the tensors' types and bytes differ from allocation.json, and the files' from its sum."""
    there, faults = artifact.tensors, []
    for name, wanted in allocation.tensors.items():
        if name not in there:
            faults.append(f"{shown(name)} of {ALLOCATION} is in no file")
            continue
        at = there[name][1]
        if at.info.type_name != wanted.type:
            said = f"{at.info.type_name}, {ALLOCATION} says {shown(wanted.type)}"
            faults.append(f"{shown(name)} is {said}")
        elif at.size_bytes != wanted.bytes:
            said = f"{at.size_bytes} bytes, {ALLOCATION} says {wanted.bytes}"
            faults.append(f"{shown(name)} has {said}")
    extra = [name for name in there if name not in allocation.tensors]
    faults += [f"{shown(name)} is not in {ALLOCATION}" for name in extra]
    # a plan knows no types yet, so it counts headers of as many shards as in F32
    padded = sum(padded_bytes(info, info.type_name) for info in artifact.infos)
    planned = overhead_bytes(Model("model", artifact.metadata, artifact.infos)) + padded
    if not faults and allocation.total_bytes not in (artifact.size_bytes, planned):
        said = f"{artifact.size_bytes} bytes together, {ALLOCATION} says {allocation.total_bytes}"
        faults.append(f"the files have {said}")
    return faults


def check_structure(job: Job, faults: list[str]) -> Outcome:
    """The headers of every level that is here, and of the importance matrix."""
    count, tensors, any_here = 0, 0, False
    for level, claims in job.described.manifest.levels.items():
        missing = [file for file in claims.files if file not in job.files.sizes]
        is_here = len(missing) < len(claims.files)
        any_here = any_here or is_here
        if missing:
            some = f"{len(missing)} of {len(claims.files)} files are missing: "
            some += ", ".join(map(shown, missing[:3]))
            faults += [f"{level}: {some}"] if is_here else []
            continue
        try:
            artifact = Artifact({file: job.header(file) for file in claims.files})
        except InputError as error:
            faults.append(str(error))
            continue
        job.artifacts[level] = artifact
        for file, header in artifact.headers.items():
            faults += layout_faults(file, header)
        faults += shard_faults(level, artifact)
        count, tensors = count + len(claims.files), tensors + len(artifact.infos)
    if not any_here:
        faults.append("no GGUF file of any level is here")
    artifacts = count_text(len(job.artifacts), "artifact")
    compared = f"{artifacts} in {count_text(count, 'file')}, {count_text(tensors, 'tensor')}"
    facts = {"levels": len(job.artifacts), "files": count, "tensors": tensors}
    agrees = "aligned, without gap or overlap, to the last byte" if job.artifacts else None
    return compared, agrees, facts


def check_types(job: Job, faults: list[str]) -> Outcome:
    """Types and bytes against allocation.json."""
    levels, tensors = 0, 0
    for level, artifact in job.artifacts.items():
        claims = job.allocation(level, faults)
        if claims is not None:
            faults += [f"{level}: {fault}" for fault in type_faults(artifact, claims)]
            levels, tensors = levels + 1, tensors + len(claims.tensors)
    compared = f"{count_text(tensors, 'tensor')} of {count_text(levels, 'level')}"
    facts = {"levels": levels, "tensors": tensors}
    if not levels:
        return f"no {ALLOCATION} of a level that could be read is here", None, facts
    return compared, f"type and bytes as in {ALLOCATION}", facts
