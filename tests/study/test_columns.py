"""The weight of a column in the error."""

from __future__ import annotations

import numpy as np

from quantkit.study.columns import LARGEST, column_weights


def test_a_massive_activation_is_capped_and_the_rest_is_not() -> None:
    importance = np.array([[1, 2, 3, 0, 2e6], [0, 0, 0, 0, 0]], np.float32)
    assert column_weights(importance, 0, 5).tolist() == [1, 2, 3, 0, LARGEST * 2.5]
    assert column_weights(importance, 1, 5).tolist() == [0] * 5


def test_without_statistics_all_count_alike() -> None:
    assert column_weights(None, 7, 3).tolist() == [1, 1, 1]
