"""The relative error of each tensor at each type that it may have.

Σ w·(x − q(x))² / Σ w·x², with the imatrix' mean squared activation, capped, as the weight w of a
column: the share of the output's energy that quantization loses if inputs are uncorrelated, which
is the imatrix' own assumption. Of a large tensor a seeded sample of rows and experts is measured.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantkit.config.recipe import MeasureRecipe
from quantkit.core.journal import Journal
from quantkit.core.progress import SILENT, Progress
from quantkit.formats.tensor_types import BY_NAME, QuantType
from quantkit.formats.tensors import TensorInfo, TensorSource
from quantkit.llamacpp import ggml_kernels
from quantkit.quantize import kernels
from quantkit.quantize.encode import Importance, row_blocks
from quantkit.study.candidates import admissible, is_quantizable
from quantkit.study.columns import column_weights

SPEED_ROWS, SPEED_ELEMENTS = 8, 2048


@dataclass(frozen=True)
class TensorErrors:
    """Errors of one tensor.

    Attributes:
        errors: type → relative error, types in the order of the candidates.
        rows: that were measured.
        standard_error: of the sample, relative to the error itself, largest of the types; 0 when
            all rows were measured.
    """

    name: str
    errors: Mapping[str, float]
    rows: int
    standard_error: float


@dataclass(frozen=True)
class Piece:
    """Rows of one matrix that stand for all of it.

    Attributes:
        rows: F32, rows × row elements.
        energies: Σ w·x² of each.
        counts: how often each was drawn; all 1 where the matrix is whole.
        energy: Σ w·x² of the whole matrix.
    """

    matrix: int
    rows: NDArray[np.float32]
    energies: NDArray[np.float64]
    counts: NDArray[np.int64]
    energy: float
    whole: bool


@dataclass(frozen=True)
class Sample:
    """What was drawn of a tensor, of `matrices` all together."""

    pieces: tuple[Piece, ...]
    matrices: int


def sample(
    source: TensorSource,
    info: TensorInfo,
    importance: NDArray[np.float32] | None,
    recipe: MeasureRecipe,
) -> Sample:
    """All rows, or a seeded sample of rows and experts of a large tensor.

    Experts are drawn with equal chances, rows with chances in proportion to Σ w·x², their part of
    the tensor's energy: a few rows can have most of it, and then nearly all of the error too.
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
            every = np.concatenate(
                [
                    _energies(source.read_rows(info.name, start + a, start + b), column)
                    for _, a, b in row_blocks(one)
                ]
            )
            energy = float(every.sum())
            chosen, counts = _systematic(every, wanted, random)
            energies = every[chosen]
            rows = np.concatenate(
                [source.read_rows(info.name, start + int(r), start + int(r) + 1) for r in chosen]
            )
        pieces.append(Piece(int(matrix), rows, energies, counts, energy, whole))
    return Sample(tuple(pieces), info.matrices)


def _systematic(
    sizes: NDArray[np.float64], count: int, random: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`count` equidistant points on the sizes laid end to end: (which were hit, how often each)."""
    if not sizes.sum() > 0:
        return np.zeros(1, np.int64), np.full(1, count, np.int64)
    points = (random.random() + np.arange(count)) * (sizes.sum() / count)
    hit = np.searchsorted(np.cumsum(sizes), points, side="right")
    chosen, counts = np.unique(np.minimum(hit, sizes.size - 1), return_counts=True)
    return chosen.astype(np.int64), counts.astype(np.int64)


def relative_error(
    kind: QuantType, drawn: Sample, importance: NDArray[np.float32] | None
) -> tuple[float, float]:
    """(relative error, its standard error from sampling); 0 for an all-zero tensor.

    With chances in proportion to energy, the mean of the drawn rows' own relative errors is the
    matrix' (Hansen and Hurwitz, 1943); over drawn experts the ratio of sums is the tensor's, with
    the variance of Cochran, Sampling Techniques, 1977, ch. 6.
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


def measure_errors(
    source: TensorSource,
    importance: Importance,
    recipe: MeasureRecipe,
    work: Path,
    workers: int,
    progress: Progress = SILENT,
) -> tuple[TensorErrors, ...]:
    """Measure every quantizable tensor at every type that it may have, in the source's order.

    One line a finished tensor is kept in `work`, so a killed run goes on with the next tensor. A
    tensor whose rows fit no candidate has no entry: it keeps its type.
    """
    infos = [info for info in source.tensors if is_quantizable(info)]
    sampling = ("candidates", "sample_rows", "sample_experts", "seed")
    purpose = json.dumps(recipe.model_dump(mode="json", include=set(sampling)))
    journal = Journal(work / "errors.jsonl", purpose)
    entries = (TensorErrors(**json.loads(line)) for line in journal.lines)
    done = {entry.name: entry for entry in entries}
    for kind in {BY_NAME[name] for name in recipe.candidates}:
        kernels.prepare(kind)
    progress.start(len(infos), "tensors", "errors")
    with ThreadPoolExecutor(workers) as pool:
        for info in infos:
            if info.name not in done:
                weights = importance.get(info.name)
                drawn = sample(source, info, weights, recipe)
                kinds = admissible(info, weights is not None, recipe.candidates)
                found = list(pool.map(lambda k, d=drawn, w=weights: relative_error(k, d, w), kinds))
                errors = {k.name: error for k, (error, _) in zip(kinds, found, strict=True)}
                relative = max((spread / error for error, spread in found if error > 0), default=0)
                rows = sum(len(piece.rows) for piece in drawn.pieces)
                done[info.name] = TensorErrors(info.name, errors, rows, float(relative))
                journal.append(json.dumps(asdict(done[info.name])))
            progress.advance(1)
    return tuple(done[info.name] for info in infos if done[info.name].errors)


def seconds_of_errors(
    tensors: Sequence[TensorInfo], importance: Importance, recipe: MeasureRecipe, workers: int
) -> float:
    """About how long `measure_errors` will take on this machine: a short run of each kernel."""
    speeds = kernel_speeds([BY_NAME[name] for name in recipe.candidates])
    seconds = 0.0
    for info in tensors:
        if is_quantizable(info):
            rows = min(recipe.sample_rows or info.rows, info.rows)
            for kind in admissible(info, info.name in importance, recipe.candidates):
                seconds += rows * info.row_elements / speeds[kind.name]
    return seconds / workers


def kernel_speeds(kinds: Sequence[QuantType]) -> dict[str, float]:
    """Type → elements a second that one core quantizes, decodes and compares."""
    random = np.random.default_rng(1)
    rows = random.standard_normal((SPEED_ROWS, SPEED_ELEMENTS), np.float32)
    weights = np.ones((1, SPEED_ELEMENTS), np.float32)
    every = np.ones(SPEED_ROWS)
    piece = Piece(0, rows, every, every.astype(np.int64), float(every.sum()), whole=True)
    drawn = Sample((piece,), 1)
    speeds = {}
    for kind in kinds:
        kernels.prepare(kind)
        speeds[kind.name] = max(rows.size / seconds for seconds in _timed(kind, drawn, weights))
    return speeds


def _timed(
    kind: QuantType, drawn: Sample, weights: NDArray[np.float32], runs: int = 3
) -> Iterator[float]:
    for _ in range(runs):
        began = time.perf_counter()
        relative_error(kind, drawn, weights)
        yield time.perf_counter() - began
