"""A ready importance matrix, GGUF or legacy .dat → imatrix.gguf, checked against the model."""

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
class ReadyImatrix:
    """What a ready file holds for a model; `notes` is what the person should know about it."""

    imatrix: Imatrix
    notes: tuple[str, ...]


def check_ready(path: Path, tensors: Sequence[TensorInfo]) -> ReadyImatrix:
    """Read `path` and compare it with the model's tensors.

    Raises:
        InputError: not an imatrix, or one that was collected on another model.
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
                f"{path}: {name} has {have} matrices, the model's has {want}; it was collected on "
                "another model"
            )
        if not found.entries[name].is_tame:
            raise InputError(
                f"{path}: {name} has importance beyond {LARGEST_IMPORTANCE:g}, which no "
                "activations give and ggml cannot take; collect it again"
            )
    notes = [f"{path.name}: {sentence}" for sentence in found.unknown]
    wanted = [i.name for i in tensors if i.name.startswith("blk.") and is_quantizable(i)]
    missing = [name for name in wanted if name not in found.entries]
    if missing:
        notes.append(
            f"{path.name} has no statistics of {len(missing)} of the {len(wanted)} weights of the "
            f"model's layers, {missing[0]} for one: they are quantized without, and get no type "
            "that needs them"
        )
    return ReadyImatrix(found, tuple(notes))


def take_ready(path: Path, tensors: Sequence[TensorInfo], out: Path) -> ReadyImatrix:
    """Check `path` and write what it holds to `out`, as a GGUF: sums and counts bit for bit.

    It is not copied: llama-imatrix stores the path of its text as it was given, and another
    program may have put anything into a GGUF's metadata. `out` is published, so it gets what is
    known of an imatrix, and of the texts their names only.

    Raises:
        InputError: as `check_ready`.
    """
    ready = check_ready(path, tensors)
    named = dataclasses.replace(ready.imatrix, datasets=ready.imatrix.dataset_names)
    with atomic(out) as partial:
        write_imatrix(partial, named)
    return dataclasses.replace(ready, imatrix=named)
