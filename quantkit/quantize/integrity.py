"""Whether an artifact is what it should be: names, types, metadata, samples of its weights.

Retrieval may survive two experts in each other's place, or one tensor that decodes to noise. So
every matrix of the artifact is looked at before the model is asked anything.
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
MOST_ERROR = 0.9
"""Relative squared error of a matrix. Zeros would have 1, another expert about 2."""
MOST_UNSEEN_ERROR = 1.2
"""Of an expert, where it is not known which columns counted when it was quantized: one that the
calibration hardly reached is kept in those few, and may lose most of the others."""
UNWEIGHTED_ERROR = {"F32": 1e-9, "F16": 1e-4, "BF16": 1e-4, "Q8_0": 1e-3}
"""Of types that take no importance: equal but for rounding."""


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
    importance: Mapping[str, NDArray[np.float32]] | None = None,
    seed: int = 1,
    progress: Progress = SILENT,
) -> Integrity:
    """Compare `artifact` with its allocation and with the model that it was made from.

    Args:
        metadata: that it should have; it may have more.
        types: tensor → type that it should have; None: any.
        importance: tensor → weights of its columns that it was quantized with, shape (columns,) or
            (experts, columns); errors are weighted so. None: not known.

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
        weights = None if importance is None else importance.get(info.name)
        errors = _errors(info, source, made, rng, weights)
        matrices += len(errors)
        at = int(errors.argmax())
        limit = _limit(info, kinds[info.name], known=importance is not None)
        wrong = np.flatnonzero(~(errors <= limit))  # nan too
        if wrong.size:
            faults.append(
                f"{_which(info, wrong.tolist())}, {kinds[info.name]}: a relative squared error of "
                f"{errors[at]:.2g} (limit {limit:.2g}), so not the model's weights"
            )
        worst = max(worst, (float(errors[at]), info.name))
        progress.advance(len(errors))
    if faults:
        raise _refused(artifact, faults)
    return Integrity(len(source.tensors), matrices, *worst)


def _limit(info: TensorInfo, type_name: str, *, known: bool) -> float:
    if type_name in UNWEIGHTED_ERROR:
        return UNWEIGHTED_ERROR[type_name]
    return MOST_UNSEEN_ERROR if info.matrices > 1 and not known else MOST_ERROR


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
        elif there.value != value.value:
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
    """Weighted squared difference over the squared values; unweighted where no weight is left."""
    lost, whole = (float((np.square(x) * weights).sum()) for x in (difference, expected))
    if whole == 0:
        lost, whole = (float(np.square(x).sum()) for x in (difference, expected))
    if whole == 0:
        return 0.0 if lost == 0 else math.inf
    return lost / whole
