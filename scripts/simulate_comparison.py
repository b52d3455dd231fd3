"""How often `quantkit compare` tells artifacts apart by their text: equal ones, and unequal ones.

ADR 18 has what it prints. Two artifacts of equal mean are drawn again and again, and tested by the
means of chunks, by blocks of 15 positions, and by positions. A chunk has 255 of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from quantkit.report.comparison.evidence import chunk_means

F64 = NDArray[np.float64]
POSITIONS, BLOCK = 255, 15
TESTS = 15
"""Of three artifacts without questions are 9, with questions 15: what Holm divides the level by."""
LEVEL = 0.05
Draw = Callable[[np.random.Generator, int], tuple[F64, F64]]


def factors(random: np.random.Generator, shape: float, size: tuple[int, ...]) -> F64:
    """Log-normal, of mean 1."""
    return random.lognormal(-shape * shape / 2, shape, size)


def divergences(shapes: tuple[float, float], means: tuple[float, float] = (1.0, 1.0)) -> Draw:
    """KLDs, log-normal with these shapes; a chunk is hard for both, and harder for one of them.

    Q5_0 to Q4_0 of the demo model have a shape of 0.75, and chunk means whose standard deviation is
    9 to 23 % of the mean; Q8_0 has 0.9 and 44 %.
    """

    def draw(random: np.random.Generator, chunks: int) -> tuple[F64, F64]:
        shared = factors(random, 0.25, (chunks, 1))
        one, other = (
            mean
            * shared
            * factors(random, 0.15, (chunks, 1))
            * factors(random, shape, (chunks, POSITIONS))
            for shape, mean in zip(shapes, means, strict=True)
        )
        return one.ravel(), other.ravel()

    return draw


def tops(share: float) -> Draw:
    """Whether the top token differs from the base's, for this share of positions."""

    def draw(random: np.random.Generator, chunks: int) -> tuple[F64, F64]:
        rates = share * factors(random, 0.25, (2, chunks, 1))
        found = random.random((2, chunks, POSITIONS)) < rates
        one, other = found.astype(np.float64).reshape(2, -1)
        return one, other

    return draw


EQUAL: dict[str, Draw] = {
    "KLD": divergences((0.8, 0.8)),
    "KLD, heavy-tailed": divergences((2.0, 2.0)),
    "KLD, one heavy-tailed": divergences((0.8, 2.0)),
    "top token, 10 % differ": tops(0.10),
    "top token, 0.5 % differ": tops(0.005),
}
UNEQUAL: dict[str, Draw] = {
    "KLD 0.034 and 0.137": divergences((0.8, 0.8), (0.034, 0.137)),
    "KLD 0.034 and 0.051": divergences((0.8, 0.8), (0.034, 0.051)),
}


def rejections(draw: Draw, chunks: int, trials: int) -> F64:
    """Shares of `trials` that each test calls different, (unit, level)."""
    random = np.random.default_rng(18)
    found = np.zeros((3, 2))
    for _ in range(trials):
        one, other = draw(random, chunks)
        for row, units in enumerate((chunks, one.size // BLOCK, one.size)):
            p = chunk_means(one, other, units).p
            found[row] += (p <= LEVEL, p <= LEVEL / TESTS)
    return found / trials


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=4000)
    trials: int = parser.parse_args().trials
    print(f"| | chunks | by chunks | by blocks | by positions | by chunks at 0.05 / {TESTS} |")
    print("|---|--:|--:|--:|--:|--:|")
    for name, draw in (EQUAL | UNEQUAL).items():
        for chunks in (4, 8, 16, 64) if name in EQUAL else (4, 8, 16):
            found = rejections(draw, chunks, trials)
            cells = (*found[:, 0], found[0, 1])
            print(f"| {name} | {chunks} | {' | '.join(f'{x:.2%}' for x in cells)} |")


if __name__ == "__main__":
    main()
