"""The KLD against exact arithmetic, and its statistics against llama-perplexity's formulas."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal, localcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit.study import kld_statistics
from quantkit.study.kld_statistics import (
    BaseDistribution,
    Logits,
    PositionStatistics,
    compare,
    kld_text,
    kld_with_error,
)


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
    assert kld_with_error(0.0123, 0.00079) == "0.0123 ± 0.0008"
    assert kld_with_error(0.0123, None) == kld_with_error(0.0123, 0.0) == "0.0123"


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as threads:
        yield threads


def exact(base: Logits, other: Logits) -> float:
    """KLD of one position with fifty digits."""
    with localcontext() as context:
        context.prec = 50
        p, q = ([Decimal(float(z)).exp() for z in row] for row in (base, other))
        sum_p, sum_q = sum(p), sum(q)
        return float(
            sum(
                a / sum_p * ((a / sum_p).ln() - (b / sum_q).ln()) for a, b in zip(p, q, strict=True)
            )
        )


@pytest.mark.parametrize("scale", [1e-4, 1e-2, 1.0, 10.0])
def test_equal_to_exact_arithmetic_however_small(scale: float, pool: ThreadPoolExecutor) -> None:
    random = np.random.default_rng(3)
    base = (12 * random.standard_normal((6, 300))).astype(np.float32)
    other = base + (scale * random.standard_normal(base.shape)).astype(np.float32)
    found = BaseDistribution.of(base).divergence(other, pool)
    for position, value in enumerate(found):
        expected = exact(base[position], other[position])
        assert value == pytest.approx(expected, rel=2e-3, abs=1e-7 * scale)


def test_blocks_and_far_rows_change_nothing(
    pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(4)
    base = random.standard_normal((9, 64)).astype(np.float32)
    other = base + random.standard_normal(base.shape).astype(np.float32)
    other[3, 5] = base[3, 5] + 200  # exp(200) is beyond F32
    whole = BaseDistribution.of(base).divergence(other, pool)
    assert whole[3] == pytest.approx(exact(base[3], other[3]), rel=1e-6)
    monkeypatch.setattr(kld_statistics, "BLOCK_BYTES", 2 * 4 * 64)
    assert np.array_equal(BaseDistribution.of(base).divergence(other, pool), whole)


@settings(max_examples=50)
@given(
    st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=20),
    st.floats(-1000, 1000, width=32),
)
def test_a_shift_of_all_logits_is_no_divergence(row: list[float], shift: float) -> None:
    base = np.array([row], np.float32)
    with ThreadPoolExecutor(1) as pool:
        found = BaseDistribution.of(base).divergence(base, pool)
        assert found[0] == 0.0
        moved = BaseDistribution.of(base).divergence(base + np.float32(shift), pool)
    assert 0 <= moved[0] < 1e-6  # what adding the shift in F32 rounds away


def test_the_next_token_costs_what_its_softmax_says() -> None:
    random = np.random.default_rng(7)
    base = (5 * random.standard_normal((4, 200))).astype(np.float32)
    other = base + random.standard_normal(base.shape).astype(np.float32)
    other[2] += 300  # a shift changes no probability
    targets = np.array([3, 0, 199, int(base[3].argmax())], np.int32)
    _, nll = compare(base, other, targets)
    wide = other.astype(np.float64)
    expected = np.log(np.exp(wide - wide[:, :1]).sum(axis=1)) + wide[:, 0]
    expected -= wide[np.arange(4), targets]
    np.testing.assert_allclose(nll, expected, atol=3e-5)  # F32 of logits at 300
    np.testing.assert_allclose(nll[[0, 1, 3]], expected[[0, 1, 3]], atol=2e-6)
    kld, _ = compare(base, base, targets)
    assert kld.max() == 0.0


def test_tokens_that_are_ruled_out(pool: ThreadPoolExecutor) -> None:
    """A padded vocabulary has logits of -inf in both models: that is no divergence."""
    random = np.random.default_rng(8)
    base = random.standard_normal((3, 50)).astype(np.float32)
    other = base + random.standard_normal(base.shape).astype(np.float32)
    targets = np.zeros(3, np.int32)
    wanted = compare(base[:, :40], other[:, :40], targets)
    base[:, 40:] = other[:, 40:] = -np.inf
    found = compare(base, other, targets)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    np.testing.assert_array_equal(BaseDistribution.of(base).divergence(other, pool), found[0])
    # what only the base allows is infinitely far, and what is no number is none
    other[0, 3], other[1, 5] = -np.inf, np.nan
    kld, _ = compare(base, other, targets)
    assert kld[0] == np.inf
    assert np.isnan(kld[1])
    assert np.isfinite(kld[2])
