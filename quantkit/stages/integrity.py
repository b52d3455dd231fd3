"""Whether an artifact is what it should be: names, types, metadata, samples of its weights.

Retrieval may survive two experts in each other's place, or one tensor that decodes to noise. So
every matrix of the artifact is looked at before the model is asked anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quantkit.errors import GateError
from quantkit.formats.gguf_file import GGUFSource
from quantkit.formats.source import TensorSource
from quantkit.progress import SILENT, Progress
from quantkit.values import Metadata, TensorInfo

ROWS_OF_A_MATRIX = 4
ROWS_OF_AN_EXPERT = 1
ERROR_LIMIT = 0.9
"""Relative squared error, of a matrix. Zeros would have 1, another expert about 2."""


@dataclass(frozen=True)
class Integrity:
    """What was compared.

    Attributes:
        worst_error: relative squared error of the sampled rows of a matrix, the largest of all.
        worst_tensor: that has it.
    """

    tensors: int
    matrices: int
    worst_error: float
    worst_tensor: str


def check_artifact(
    artifact: Path,
    source: TensorSource,
    metadata: Metadata,
    types: Mapping[str, str] | None = None,
    seed: int = 1,
    progress: Progress = SILENT,
) -> Integrity:
    """Compare `artifact` with its allocation and with the model that it was made from.

    Args:
        metadata: that it should have; it may have more.
        types: tensor → type that it should have; None: any.

    Raises:
        GateError: names what differs.
        InputError: it is no whole GGUF file.
    """
    made = GGUFSource(artifact)
    kinds = {info.name: info.type_name for info in made.tensors}
    wanted = types or {info.name: kinds.get(info.name, "") for info in source.tensors}
    faults = [*_metadata_faults(made.metadata, metadata), *_type_faults(kinds, wanted)]
    faults += _shape_faults(made.tensors, source.tensors)
    if faults:
        raise _refused(artifact, faults)
    rng = np.random.default_rng(seed)
    progress.start(sum(info.matrices for info in source.tensors), "matrices", "of the artifact")
    matrices, worst = 0, (0.0, "")
    for info in source.tensors:
        errors = _errors(info, source, made, rng)
        matrices += len(errors)
        at = int(errors.argmax())
        wrong = np.flatnonzero(~(errors <= ERROR_LIMIT))  # nan too
        if wrong.size:
            faults.append(
                f"{_which(info, wrong.tolist())}, {kinds[info.name]}: a relative squared error of "
                f"{errors[at]:.2g} (limit {ERROR_LIMIT}), so not the model's weights"
            )
        worst = max(worst, (float(errors[at]), info.name))
        progress.advance(len(errors))
    if faults:
        raise _refused(artifact, faults)
    return Integrity(len(source.tensors), matrices, *worst)


def _which(info: TensorInfo, wrong: Sequence[int]) -> str:
    """`experts 0, 1 of blk.3.ffn_up_exps.weight`, or the tensor's name alone."""
    if info.matrices == 1:
        return info.name
    shown = ", ".join(map(str, wrong[:4])) + (", …" if len(wrong) > 4 else "")
    return f"expert{'s' * (len(wrong) > 1)} {shown} of {info.name}"


def _refused(artifact: Path, faults: Sequence[str]) -> GateError:
    more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
    return GateError(
        f"{artifact.name} is broken: {'; '.join(faults[:3])}{more}; delete it and build it again"
    )


def _metadata_faults(made: Metadata, wanted: Metadata) -> list[str]:
    faults = []
    for key, value in wanted.items():
        there = made.get(key)
        if there is None:
            faults.append(f"its metadata has no {key}")
        elif there != value:
            words = f"is {there.value}, not {value.value}" if _is_short(value.value) else "differs"
            faults.append(f"its {key} {words}")
    return faults


def _is_short(value: object) -> bool:
    return len(str(value)) <= 40


def _type_faults(found: Mapping[str, str], wanted: Mapping[str, str]) -> list[str]:
    missing = [f"{name} is missing" for name in wanted if name not in found]
    extra = [f"{name} is not the model's" for name in found if name not in wanted]
    wrong = [
        f"{name} is {found[name]}, not {kind}"
        for name, kind in wanted.items()
        if found.get(name, kind) != kind
    ]
    return missing + extra + wrong


def _shape_faults(made: Sequence[TensorInfo], source: Sequence[TensorInfo]) -> list[str]:
    shapes = {info.name: info.shape for info in source}
    return [
        f"{info.name} has the shape {info.shape}, not {shapes[info.name]}"
        for info in made
        if shapes.get(info.name, info.shape) != info.shape
    ]


def _errors(
    info: TensorInfo, source: TensorSource, made: TensorSource, rng: np.random.Generator
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Relative squared error of the sampled rows of each matrix, shape (matrices,)."""
    rows = info.rows // info.matrices
    each = min(rows, ROWS_OF_A_MATRIX if info.matrices == 1 else ROWS_OF_AN_EXPERT)
    errors = np.zeros(info.matrices)
    for matrix in range(info.matrices):
        lost = whole = 0.0
        for row in rng.choice(rows, each, replace=False):
            at = matrix * rows + int(row)
            expected = source.read_rows(info.name, at, at + 1).astype(np.float64)
            found = made.read_rows(info.name, at, at + 1).astype(np.float64)
            lost += float(np.square(found - expected).sum())
            whole += float(np.square(expected).sum())
        errors[matrix] = lost / whole if whole else float(lost > 0) * np.inf
    return errors
