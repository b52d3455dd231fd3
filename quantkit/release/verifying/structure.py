"""Compares GGUF headers with themselves, each other and allocation.json; reads no weights."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quantkit.core.printable import shown
from quantkit.formats.gguf_header import GGUFHeader, StoredAt
from quantkit.formats.tensors import Metadata, TensorInfo
from quantkit.models.model import Model
from quantkit.plan.allocation_file import AllocationFile
from quantkit.plan.gpu_memory import padded_bytes
from quantkit.quantize.quantize import overhead_bytes

SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf")


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
    matches = [_SHARD.fullmatch(file) for file in files]
    if len(files) == 1 and matches[0] is None:
        first = artifact.headers[files[0]]
        here = [key for key in SPLIT_KEYS if key in first.metadata]
        return [*faults, *(f"{files[0]}: has {key}, but is no shard" for key in here)]
    stem = "" if matches[0] is None else matches[0]["stem"]
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


def type_faults(level: str, artifact: Artifact, allocation: AllocationFile) -> list[str]:
    """How the tensors' types and bytes differ from allocation.json, and the files' from its sum."""
    there, faults = artifact.tensors, []
    for name, wanted in allocation.tensors.items():
        if name not in there:
            faults.append(f"{level}: {shown(name)} of allocation.json is in no file")
            continue
        at = there[name][1]
        if at.info.type_name != wanted.type:
            faults.append(
                f"{level}: {shown(name)} is {at.info.type_name}, allocation.json says "
                f"{shown(wanted.type)}"
            )
        elif at.size_bytes != wanted.bytes:
            faults.append(
                f"{level}: {shown(name)} has {at.size_bytes} bytes, allocation.json says "
                f"{wanted.bytes}"
            )
    extra = [name for name in there if name not in allocation.tensors]
    faults += [f"{level}: {shown(name)} is not in allocation.json" for name in extra]
    if not faults and allocation.total_bytes not in (artifact.size_bytes, _planned_bytes(artifact)):
        faults.append(
            f"{level}: the files have {artifact.size_bytes} bytes together, allocation.json says "
            f"{allocation.total_bytes}"
        )
    return faults


def _planned_bytes(artifact: Artifact) -> int:
    """What allocation.json counts: tensors with padding, and headers of as many shards as in F32.

    The types are not known yet where it is worked out, so neither is the number of shards.
    """
    infos = artifact.infos
    padded = sum(padded_bytes(info, info.type_name) for info in infos)
    return overhead_bytes(Model("model", artifact.metadata, infos)) + padded


def missing_shards(files: Sequence[str], here: Mapping[str, int]) -> list[str]:
    """The files of a level that are not here, where others are."""
    missing = [file for file in files if file not in here]
    return missing if len(missing) < len(files) else []
