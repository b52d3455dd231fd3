"""Checks an artifact before it is run: names, types, metadata, and samples of its weights.

Retrieval may survive two swapped experts or one tensor of noise, so a sample of every matrix is
compared with the source.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantkit.core.errors import GateError
from quantkit.core.progress import SILENT, Progress
from quantkit.formats.tensors import Metadata, TensorInfo, TensorSource
from quantkit.models.gguf_source import GGUFSource

ROWS_OF_A_MATRIX = 4
ROWS_OF_AN_EXPERT = 1
MAX_ERROR = 0.9
"""Relative squared error of a matrix. Zeros would give 1, another expert about 2."""
MAX_EXPERT_ERROR = 1.2
"""The same for an expert if the importance is unknown: one that few calibration tokens reached is
precise in few columns, and may lose most of the others."""
UNWEIGHTED_ERROR = {"F32": 1e-9, "F16": 1e-4, "BF16": 1e-4, "Q8_0": 1e-3}
"""The same for types that use no importance: only rounding."""


@dataclass(frozen=True)
class Integrity:
    """Result of the comparison.

    Attributes:
        worst_error: largest relative squared error of a matrix' sampled rows.
        worst_tensor: tensor with that error.
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
    importance: Mapping[str, NDArray[np.float32]] | None = None,
    seed: int = 1,
    progress: Progress = SILENT,
) -> Integrity:
    """Compare `artifact` with its allocation and with the source model.

    Args:
        metadata: expected keys; the artifact may have more.
        types: tensor → expected type; None: any.
        importance: tensor → column weights that it was quantized with, shape (columns,) or
            (experts, columns), by which errors are weighted. None: unknown.

    Raises:
        GateError: the artifact differs; the message names up to three differences.
        InputError: it is not a complete GGUF file.
    """
    made = GGUFSource(artifact)
    kinds = {info.name: info.type_name for info in made.tensors}
    wanted = types or {info.name: kinds.get(info.name, "") for info in source.tensors}
    faults = [*_metadata_faults(made.metadata, metadata), *_type_faults(kinds, wanted)]
    shapes = {info.name: info.shape for info in source.tensors}
    faults += [
        f"{info.name} has the shape {info.shape}, not {shapes[info.name]}"
        for info in made.tensors
        if shapes.get(info.name, info.shape) != info.shape
    ]
    if faults:
        raise _refused(artifact, faults)
    rng = np.random.default_rng(seed)
    progress.start(sum(info.matrices for info in source.tensors), "matrices", "checked")
    matrices, worst = 0, (0.0, "")
    for info in source.tensors:
        weights = None if importance is None else importance.get(info.name)
        errors = _errors(info, source, made, rng, weights)
        matrices += len(errors)
        at = int(errors.argmax())
        limit = _limit(info, kinds[info.name], known=importance is not None)
        wrong = np.flatnonzero(~(errors <= limit))  # true for NaN too
        if wrong.size:
            faults.append(
                f"{_which(info, wrong.tolist())}, {kinds[info.name]}, has a relative squared error "
                f"of {errors[at]:.2g} (limit {limit:.2g})"
            )
        worst = max(worst, (float(errors[at]), info.name))
        progress.advance(len(errors))
    if faults:
        raise _refused(artifact, faults)
    return Integrity(len(source.tensors), matrices, *worst)


def _limit(info: TensorInfo, type_name: str, *, known: bool) -> float:
    if type_name in UNWEIGHTED_ERROR:
        return UNWEIGHTED_ERROR[type_name]
    return MAX_EXPERT_ERROR if info.matrices > 1 and not known else MAX_ERROR


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
        if key not in made:
            faults.append(f"its metadata has no {key}")
        elif (there := made[key].value) != value.value:
            short = len(str(value.value)) <= 40
            faults.append(f"its {key} {f'is {there}, not {value.value}' if short else 'differs'}")
    return faults


def _type_faults(found: Mapping[str, str], wanted: Mapping[str, str]) -> list[str]:
    missing = [f"{name} is missing" for name in wanted if name not in found]
    extra = [f"{name} is not in the model" for name in found if name not in wanted]
    wrong = [
        f"{name} is {found[name]}, not {kind}"
        for name, kind in wanted.items()
        if found.get(name, kind) != kind
    ]
    return missing + extra + wrong


def _errors(
    info: TensorInfo,
    source: TensorSource,
    made: TensorSource,
    rng: np.random.Generator,
    importance: NDArray[np.float32] | None,
) -> NDArray[np.float64]:
    """Relative squared error of the sampled rows of each matrix, shape (matrices,)."""
    rows = info.rows // info.matrices
    each = min(rows, ROWS_OF_A_MATRIX if info.matrices == 1 else ROWS_OF_AN_EXPERT)
    weights = np.ones((info.matrices, info.row_elements))
    if importance is not None:
        weights = np.broadcast_to(importance.astype(np.float64), weights.shape)
    errors = np.zeros(info.matrices)
    for matrix in range(info.matrices):
        chosen = [matrix * rows + int(row) for row in rng.choice(rows, each, replace=False)]
        expected, found = (
            np.concatenate([of.read_rows(info.name, at, at + 1) for at in chosen]).astype(
                np.float64
            )
            for of in (source, made)
        )
        errors[matrix] = _relative(found - expected, expected, weights[matrix])
    return errors


def _relative(
    difference: NDArray[np.float64], expected: NDArray[np.float64], weights: NDArray[np.float64]
) -> float:
    """Weighted squared difference over the squared values; unweighted if all weights are 0."""
    for by in (weights, np.ones_like(weights)):
        lost, whole = (float((np.square(x) * by).sum()) for x in (difference, expected))
        if whole != 0:
            return lost / whole
    return 0.0 if lost == 0 else math.inf
