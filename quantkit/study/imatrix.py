"""What an importance matrix was collected on, and matrices that others collected."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from quantkit.config.recipe import ImatrixRecipe
from quantkit.core.documents import JsonDocument
from quantkit.core.errors import InputError
from quantkit.core.files import atomic, file_sha256
from quantkit.formats.imatrix_file import (
    LARGEST_IMPORTANCE,
    Imatrix,
    read_imatrix,
    write_imatrix,
)
from quantkit.formats.tensors import TensorInfo
from quantkit.quantize.candidates import is_quantizable
from quantkit.study.calibration.texts import CalibrationSource, CalibrationTokens


@dataclass(frozen=True)
class FileRead:
    """A file of a calibration source; `name` has no folders."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class SourceRead:
    """A calibration source as evidence names it, without paths of this machine.

    Attributes:
        origin, licence: see `CalibrationSource`; None if only the name is known.
        tokens: number of tokens used; None if several texts were joined.
    """

    name: str
    origin: str | None = None
    licence: str | None = None
    tokens: int | None = None
    files: tuple[FileRead, ...] = ()


class Calibration(JsonDocument):
    """calibration.json: what the importance matrix was collected on.

    Uncovered experts have fewer tokens than `until_covered`; `ready` names an imported file.
    """

    version: Literal[1] = 1
    chunks: int
    tokens: int
    weights: int
    unseen_experts: int
    uncovered_experts: int = 0
    sources: tuple[SourceRead, ...]
    ready: str | None = None


def read_of(
    sources: Sequence[CalibrationSource], calibration: CalibrationTokens, chunks: int
) -> tuple[SourceRead, ...]:
    """The sources as evidence names them, with the tokens that the first `chunks` took."""
    taken = calibration.taken_after(chunks)
    return tuple(
        SourceRead(
            Path(source.name).resolve().name if source.origin == "disk" else source.name,
            source.origin,
            source.licence,
            taken.get(source.name),
            tuple(FileRead(p.name, p.stat().st_size, file_sha256(p)) for p in source.files),
        )
        for source in sources
    )


def chunks_of_text(
    imatrix: Imatrix, sources: Sequence[CalibrationSource], recipe: ImatrixRecipe
) -> int:
    """Chunks of the recipe's text that `imatrix` was collected on, judged by its dataset names."""
    names = {name for source in sources for name in source.dataset_names}
    if names.isdisjoint(imatrix.dataset_names):
        return 0
    return -(-imatrix.chunks * imatrix.chunk_tokens // recipe.chunk_tokens)


class ImportedImatrix(NamedTuple):
    """An existing imatrix that fits the model, and notes about it for the user."""

    imatrix: Imatrix
    notes: tuple[str, ...]


def check_imatrix(path: Path, tensors: Sequence[TensorInfo]) -> ImportedImatrix:
    """Read `path` and compare it with the model's tensors.

    Raises:
        InputError: not an imatrix, or collected on another model.
    """
    by_name = {info.name: info for info in tensors}
    found = read_imatrix(path, {info.name: info.row_elements for info in tensors})
    known = [name for name in found.entries if name in by_name]
    if not known:
        first = min(found.entries, default=None)
        raise InputError(
            f"{path} has no statistics of this model's weights"
            + (f", only of others such as {first}" if first else "")
            + "; it was collected on another model"
        )
    for name in known:
        have, want = len(found.entries[name].sums), by_name[name].matrices
        if have != want:
            raise InputError(
                f"{path}: {name} has {have} matrices, the model's has {want}; the imatrix was "
                "collected on another model"
            )
        if not found.entries[name].is_usable:
            raise InputError(
                f"{path}: {name} has importance above {LARGEST_IMPORTANCE:g}, which ggml cannot "
                "use; collect the imatrix again"
            )
    notes = [f"{path.name}: {sentence}" for sentence in found.unknown]
    wanted = [i.name for i in tensors if i.name.startswith("blk.") and is_quantizable(i)]
    missing = [name for name in wanted if name not in found.entries]
    if missing:
        notes.append(
            f"{path.name} has no statistics of {len(missing)} of the {len(wanted)} weights of the "
            f"model's layers (for example {missing[0]}): these are quantized without an imatrix, "
            "and not to types that need one"
        )
    return ImportedImatrix(found, tuple(notes))


def import_imatrix(path: Path, tensors: Sequence[TensorInfo], out: Path) -> ImportedImatrix:
    """Check `path` and write its statistics to `out` as GGUF, sums and counts bit for bit.

    `out` is published, so it gets no other metadata, and of the texts only their names:
    llama-imatrix stores the path of its text as it was given.

    Raises:
        InputError: as `check_imatrix`.
    """
    found = check_imatrix(path, tensors)
    named = dataclasses.replace(found.imatrix, datasets=found.imatrix.dataset_names)
    with atomic(out) as partial:
        write_imatrix(partial, named)
    return found._replace(imatrix=named)
