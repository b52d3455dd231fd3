"""Which rows of an artifact are encoded again: all, or some of as many matrices as it allows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from quantkit.formats.tensor_types import BY_NAME
from quantkit.formats.tensors import TensorInfo
from quantkit.quantize.encode import ENCODED_ROWS_BYTES, row_blocks

ROWS_OF_A_MATRIX = 4
ROWS_OF_AN_EXPERT = 1
MOST_REQUESTS = 2000
"""For one artifact elsewhere: the Hub grants 3000 in five minutes to those without an account."""


@dataclass(frozen=True)
class Sampling:
    """Which rows are compared.

    Attributes:
        seed: chooses them.
        full: all of them.
        most_requests: for one artifact; None where a reading costs next to nothing. Rows of a
            matrix then lie together, and of the experts of a stack some may be left out.
    """

    seed: int
    full: bool = False
    most_requests: int | None = None


@dataclass(frozen=True)
class Span:
    """Rows [start, stop) of a tensor in its type in the artifact; they lie in one matrix."""

    info: TensorInfo
    matrix: int
    start: int
    stop: int

    @property
    def row_bytes(self) -> int:
        return BY_NAME[self.info.type_name].size_bytes(self.info.row_elements)


def spans(infos: Sequence[TensorInfo], sampling: Sampling) -> Iterator[list[Span]]:
    """The rows to compare, some at a time: a tensor's where all are, else all at once."""
    infos = [info for info in infos if info.elements]
    if sampling.full:
        for info in infos:
            yield [Span(info, *block) for block in row_blocks(info, ENCODED_ROWS_BYTES)]
        return
    rng = np.random.default_rng(sampling.seed)
    stacks = sum(info.matrices > 1 for info in infos)
    experts = None
    if sampling.most_requests is not None and stacks:
        experts = max(1, (sampling.most_requests - (len(infos) - stacks)) // stacks)
    yield [span for info in infos for span in _sampled(info, rng, experts, sampling)]


def _sampled(
    info: TensorInfo, rng: np.random.Generator, experts: int | None, sampling: Sampling
) -> Iterator[Span]:
    each = info.rows // info.matrices
    count = min(each, ROWS_OF_A_MATRIX if info.matrices == 1 else ROWS_OF_AN_EXPERT)
    chosen: Sequence[int] = range(info.matrices)
    if experts is not None and experts < info.matrices:
        chosen = sorted(rng.choice(info.matrices, experts, replace=False).tolist())
    for matrix in chosen:
        base = matrix * each
        if sampling.most_requests is not None:  # one request
            first = base + int(rng.integers(each - count + 1))
            yield Span(info, matrix, first, first + count)
        else:
            for row in sorted(rng.choice(each, count, replace=False).tolist()):
                yield Span(info, matrix, base + row, base + row + 1)
