"""The relative quantization error of each tensor at each candidate type.

Σ w·(x − q(x))² / Σ w·x², where the weight w of a column is its mean squared activation from the
imatrix, capped: the share of the output's energy that is lost if inputs are uncorrelated, which
the imatrix assumes too. Large tensors are measured on a seeded sample of rows and experts.
"""

from __future__ import annotations

import functools
import timeit
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeInt

from quantkit.config.recipe import MeasureRecipe
from quantkit.core.documents import Amount
from quantkit.formats.tensor_types import QuantType
from quantkit.formats.tensors import TensorInfo, TensorSource
from quantkit.llamacpp import ggml_kernels
from quantkit.quantize import kernels
from quantkit.quantize.candidates import admissible, is_quantizable
from quantkit.quantize.encode import Importance, row_blocks

SPEED_ROWS, SPEED_ELEMENTS = 8, 2048
READ_ROWS_BYTES = 4 << 20
"""Limit for the rows that are read at once, as F32."""
LARGEST_WEIGHT = 1000.0
"""Cap of a column's weight, in medians of its matrix.

The massive activations of an attention sink are up to 10^5 times the others in a few columns.
Their outputs are normalised away, so their error costs next to nothing; uncapped they would be
nearly the whole sum, and the errors of two types could not be compared (ADR 10).
"""


@dataclass(frozen=True)
class TensorErrors:
    """Type → relative error of one tensor, measured on `rows` rows.

    `standard_error` is that of sampling, relative to the error, the largest of all types.
    """

    name: str
    errors: Mapping[str, Amount]
    rows: NonNegativeInt
    standard_error: Amount


@dataclass(frozen=True)
class MatrixSample:
    """Sampled rows of one matrix.

    Attributes:
        rows: F32, shape (rows, row elements).
        energies: Σ w·x² of each row.
        counts: how often each row was drawn; all 1 if the matrix is `whole`.
        energy: Σ w·x² of the whole matrix.
    """

    matrix: int
    rows: NDArray[np.float32]
    energies: NDArray[np.float64]
    counts: NDArray[np.int64]
    energy: float
    whole: bool


@dataclass(frozen=True)
class TensorSample:
    """Sampled matrices of a tensor that has `matrices` in all."""

    pieces: tuple[MatrixSample, ...]
    matrices: int


def column_weights(
    importance: NDArray[np.float32] | None, matrix: int, width: int
) -> NDArray[np.float64]:
    """Mean squared activations of `matrix`, capped, shape (width,); ones without an imatrix."""
    if importance is None:
        return np.ones(width)
    weights = importance[matrix].astype(np.float64)
    positive = weights[weights > 0]
    limit = LARGEST_WEIGHT * float(np.median(positive)) if positive.size else 0.0
    return np.asarray(np.minimum(weights, limit), np.float64)


def sample(
    source: TensorSource,
    info: TensorInfo,
    importance: NDArray[np.float32] | None,
    recipe: MeasureRecipe,
) -> TensorSample:
    """All rows, or a seeded sample of rows and experts of a large tensor.

    Experts are drawn with equal probability, rows in proportion to their energy Σ w·x²: a few rows
    can hold most of the energy, and then nearly all of the error too.
    """
    random = np.random.default_rng([recipe.seed, *info.name.encode()])
    matrices = np.arange(info.matrices)
    if 0 < recipe.sample_experts < info.matrices:
        matrices = np.sort(random.choice(info.matrices, recipe.sample_experts, replace=False))
    rows_each = info.rows // info.matrices
    one = TensorInfo(info.name, (rows_each, info.row_elements), info.type_name)
    wanted = max(1, recipe.sample_rows // len(matrices)) if recipe.sample_rows else rows_each
    pieces = []
    for matrix in matrices:
        column = column_weights(importance, int(matrix), info.row_elements)
        start, stop = int(matrix) * rows_each, (int(matrix) + 1) * rows_each
        whole = wanted >= rows_each
        if whole:
            rows = source.read_rows(info.name, start, stop)
            energies = _energies(rows, column)
            counts = np.ones(rows_each, np.int64)
            energy = float(energies.sum())
        else:
            read = functools.partial(source.read_rows, info.name)
            parts = [(start + a, start + b) for _, a, b in row_blocks(one, READ_ROWS_BYTES)]
            every = np.concatenate([_energies(read(a, b), column) for a, b in parts])
            energy = float(every.sum())
            chosen, counts = _systematic(every, wanted, random)
            energies = every[chosen]
            rows = np.concatenate([read(start + int(r), start + int(r) + 1) for r in chosen])
        pieces.append(MatrixSample(int(matrix), rows, energies, counts, energy, whole))
    return TensorSample(tuple(pieces), info.matrices)


def _systematic(
    sizes: NDArray[np.float64], count: int, random: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Systematic sampling in proportion to `sizes`: (indices drawn, how often each)."""
    if not sizes.sum() > 0:
        return np.zeros(1, np.int64), np.full(1, count, np.int64)
    points = (random.random() + np.arange(count)) * (sizes.sum() / count)
    hit = np.searchsorted(np.cumsum(sizes), points, side="right")
    chosen, counts = np.unique(np.minimum(hit, sizes.size - 1), return_counts=True)
    return chosen.astype(np.int64), counts.astype(np.int64)


def relative_error(
    kind: QuantType, drawn: TensorSample, importance: NDArray[np.float32] | None
) -> tuple[float, float]:
    """(relative error, its standard error from sampling); 0 for an all-zero tensor.

    Rows: the Hansen-Hurwitz estimator (1943), the mean of the drawn rows' relative errors.
    Experts: the ratio estimator with the variance of Cochran, Sampling Techniques, 1977, ch. 6.
    """
    lost, within = [], []
    for piece in drawn.pieces:
        weights = None if importance is None else importance[piece.matrix]
        width = piece.rows.shape[1]
        raw = kernels.quantize(kind, piece.rows, weights)
        restored = ggml_kernels.dequantize(kind, raw, width)
        gone = _energies(piece.rows - restored, column_weights(importance, piece.matrix, width))
        if piece.whole:
            lost.append(float(gone.sum()))
            within.append(0.0)
            continue
        shares = np.divide(gone, piece.energies, out=np.zeros_like(gone), where=piece.energies > 0)
        draws = int(piece.counts.sum())
        mean = float((piece.counts * shares).sum() / draws)
        spread = float((piece.counts * np.square(shares - mean)).sum()) / max(draws - 1, 1)
        lost.append(mean * piece.energy)
        within.append(spread / draws * piece.energy**2)
    a, b = np.array(lost), np.array([piece.energy for piece in drawn.pieces])
    if not b.sum() > 0:
        return 0.0, 0.0
    error = float(a.sum() / b.sum())
    variance = float(np.sum(within))
    if 1 < a.size < drawn.matrices:
        between = float(np.square(a - error * b).sum() / (a.size - 1))  # with that within them
        variance = max(variance, a.size * between * (1 - a.size / drawn.matrices))
    return error, float(np.sqrt(variance) / b.sum())


def _energies(rows: NDArray[np.float32], column: NDArray[np.float64]) -> NDArray[np.float64]:
    energies: NDArray[np.float64] = np.square(rows, dtype=np.float64) @ column
    return energies


def tensor_errors(
    source: TensorSource,
    info: TensorInfo,
    importance: Importance,
    recipe: MeasureRecipe,
    pool: Executor,
) -> TensorErrors:
    """Measure one tensor at every admissible type."""
    kinds = admissible(info, info.name in importance, recipe.candidates)
    for kind in kinds:
        kernels.prepare(kind)
    weights = importance.get(info.name)
    drawn = sample(source, info, weights, recipe)
    found = list(pool.map(lambda kind: relative_error(kind, drawn, weights), kinds))
    errors = {kind.name: error for kind, (error, _) in zip(kinds, found, strict=True)}
    relative = max((spread / error for error, spread in found if error > 0), default=0)
    rows = sum(len(piece.rows) for piece in drawn.pieces)
    return TensorErrors(info.name, errors, rows, float(relative))


def elements_of_errors(
    tensors: Iterable[TensorInfo], importance: Container[str], recipe: MeasureRecipe
) -> Counter[str]:
    """Type → how many weights are quantized to it where errors are measured.

    Args:
        importance: names of the tensors that have an importance.
    """
    found = Counter[str]()
    for info in tensors:
        if is_quantizable(info):
            rows = min(recipe.sample_rows or info.rows, info.rows)
            for kind in admissible(info, info.name in importance, recipe.candidates):
                found[kind.name] += rows * info.row_elements
    return found


def kernel_speeds(kinds: Sequence[QuantType]) -> dict[str, float]:
    """Type → elements per second that one core quantizes, decodes and compares."""
    random = np.random.default_rng(1)
    rows = random.standard_normal((SPEED_ROWS, SPEED_ELEMENTS), np.float32)
    weights = np.ones((1, SPEED_ELEMENTS), np.float32)
    every = np.ones(SPEED_ROWS)
    piece = MatrixSample(0, rows, every, every.astype(np.int64), float(every.sum()), whole=True)
    drawn = TensorSample((piece,), 1)
    speeds = {}
    for kind in kinds:
        kernels.prepare(kind)
        timer = timeit.Timer(functools.partial(relative_error, kind, drawn, weights))
        speeds[kind.name] = rows.size / min(timer.repeat(3, number=1))
    return speeds
