"""Imports an existing importance matrix, GGUF or legacy .dat, and checks it against the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quantkit.core.errors import InputError
from quantkit.core.files import atomic
from quantkit.formats.imatrix_file import (
    LARGEST_IMPORTANCE,
    Imatrix,
    read_imatrix,
    write_imatrix,
)
from quantkit.formats.tensors import TensorInfo
from quantkit.study.candidates import is_quantizable


@dataclass(frozen=True)
class ImportedImatrix:
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
    return dataclasses.replace(found, imatrix=named)
