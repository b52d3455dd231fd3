"""The figures of positions, against llama-perplexity's own formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest

from quantkit.formats.logits_file import scored_positions
from quantkit.study.kld_statistics import PositionStatistics, kld_text


def test_the_second_half_counts_but_for_the_last_which_nothing_follows() -> None:
    assert list(scored_positions(8)) == [4, 5, 6]
    assert list(scored_positions(7)) == [3, 4, 5]
    assert len(scored_positions(512)) == 255


def test_figures_equal_llama_perplexitys_formulas() -> None:
    random = np.random.default_rng(5)
    kld = random.exponential(0.05, 999)
    base = random.exponential(3, 999)
    nll = base + random.normal(0.02, 0.2, 999)
    top = random.random(999) < 0.9
    found = PositionStatistics(kld, nll, base, top).summary()
    # sums as perplexity.cpp has them: variance of the mean = (E[x²] − E[x]²) / (n − 1)
    n = len(kld)
    mean = kld.sum() / n
    assert found.tokens == n
    assert found.mean == pytest.approx(mean, rel=1e-12)
    variance = (kld @ kld / n - mean**2) / (n - 1)
    assert found.mean_error == pytest.approx(math.sqrt(variance), rel=1e-9)
    ranked = np.sort(kld)
    assert found.median == ranked[n // 2]
    assert found.p999 == pytest.approx(
        ranked[997] + (0.999 * 998 - 997) * (ranked[998] - ranked[997])
    )
    assert ranked[987] < found.p99 < ranked[989]
    assert found.maximum == ranked[-1]

    def covariance(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / n - a.mean() * b.mean()) / (n - 1))

    error = covariance(nll, nll) + covariance(base, base) - 2 * covariance(nll, base)
    assert found.ln_ratio_error == pytest.approx(math.sqrt(error), rel=1e-9)
    assert found.perplexity == pytest.approx(math.exp(nll.mean()), rel=1e-12)
    assert found.perplexity_ratio == pytest.approx(
        found.perplexity / found.base_perplexity, rel=1e-12
    )
    share = top.sum() / n
    assert found.same_top == share
    assert found.same_top_error == pytest.approx(math.sqrt(share * (1 - share) / (n - 1)))


def test_a_kld_has_two_digits_whatever_its_size() -> None:
    texts = [kld_text(nats) for nats in (2.5, 0.04029, 0.00215, 0.0004993, 3.6e-10, 0.0)]
    assert texts == ["2.5000", "0.0403", "0.00215", "0.00050", "3.6e-10", "0.0000"]
    assert kld_text(9.5e-05, of=0.00045) == "0.00010"
    assert kld_text(0.00358, of=0.1007) == "0.0036"
